"""The experiment of ranks, at a size of seconds."""

import pytest

from experiments.fedfisher import ranks


@pytest.mark.slow
def test_what_few_products_cost(script, monkeypatch):
    monkeypatch.setattr(ranks, "SILOS", 6)
    monkeypatch.setattr(ranks, "REGIONS", 2)
    table, summary, (line,) = script("fedfisher.ranks", "--quick", "--ranks", "3", "--epochs", "2")
    found = line["result"]
    assert found["stack"]["gap"] < 1e-6 and found["2 regions, rank 3"]["gap"] < 1e-2  # three silos each, at most
    assert found["one region, rank 3"]["bytes"] < found["stack"]["bytes"] and 0 < found["one region, rank 3"]["off"] < 1
    assert found["files of 3, the largest silos"]["gap"] > found["one region, rank 3"]["gap"]
    assert found["fedavg, then recalibrate"]["bytes"] > found["fedavg"]["bytes"]
    assert f"{summary['all payloads: accuracy']:.1f}" in table
