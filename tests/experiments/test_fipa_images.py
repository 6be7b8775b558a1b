"""FIPA as a refinement on images, at sizes of seconds."""

import numpy as np
import pytest

from experiments.lib import cells, over_rounds


@pytest.mark.slow
def test_methods_go_on_from_one_warm_up_and_are_counted(script):
    flags = ("--quick", "--seeds", "1", "--rounds", "2", "--warm-up", "1", "--every", "1", "--rank", "2")
    methods = ("fedavg sgd-1", "fedavg sgd-0.25", "memory sgd-0.25")
    table, summary, lines = script(
        "fipa.images", *flags, "--clients", "6", "--participation", "0.5", "--methods", *methods
    )
    plain, quarter, refined = (line["result"] for line in lines)
    assert plain["before"] == quarter["before"] == refined["before"]
    np.testing.assert_allclose(quarter["moved"][0], plain["moved"][0] / 4, rtol=1e-5)  # the same clients in the round
    assert refined["moved"][0] != quarter["moved"][0]
    last = 32 * 10  # the MLP's last layer has no bias
    assert refined["bits"] - plain["bits"] == 32 * 2 * (last + 1)
    best = max(np.mean(plain["accuracy"]), np.mean(quarter["accuracy"]))
    assert summary["gain_last_layer"] == pytest.approx(100 * (np.mean(refined["accuracy"]) - best))
    assert "FIPA, last layer, memory, sgd-0.25" in table
    assert len(script("fipa.images", *flags, "--clients", "6", "--participation", "0.5", "--methods", *methods)[2]) == 3


def test_paired_differences():
    values = np.array([1.0, 2.0, 4.0])
    half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)  # Student's t with two degrees of freedom
    np.testing.assert_allclose(over_rounds.interval(values), [values.mean() - half, values.mean() + half], rtol=1e-6)
    assert over_rounds.paired(values - 1.5).endswith(", 2/3")
    assert over_rounds.server("plain") is None
    for wrong in ("sgd", "adam-1-2", "plain-1", "lion-1"):
        with pytest.raises(ValueError, match="server: got"):
            over_rounds.server(wrong)


@pytest.mark.slow
def test_the_last_layer():
    """By the order of layers, not of names."""
    for model, names in (("lenet", ("fc3",)), ("resnet18_pretrained", ("final",)), ("mlp", ("fc3",))):
        network, captured = cells.captured_network(model, (32, 32, 3) if model != "mlp" else (64,), 10)
        world = cells.World(None, (), network, captured)
        assert cells.last_layer(world) == names
