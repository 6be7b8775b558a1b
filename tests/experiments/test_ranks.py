"""The experiment of ranks, at a size of seconds."""

import pytest


@pytest.mark.slow
def test_what_few_products_cost(script):
    table, summary, (line,) = script("fedfisher.ranks", "--quick", "--ranks", "8", "--epochs", "2")
    found = line["result"]
    assert found["stack"]["gap"] < 1e-6 and found["4 regions, rank 8"]["gap"] < 1e-2  # five silos each, at most
    assert found["one region, rank 8"]["bytes"] < found["stack"]["bytes"] and 0 < found["one region, rank 8"]["off"] < 1
    assert found["files of 8, the largest silos"]["gap"] > found["one region, rank 8"]["gap"]
    assert found["fedavg, then recalibrate"]["bytes"] > found["fedavg"]["bytes"]
    assert f"{summary['all payloads: accuracy']:.1f}" in table
