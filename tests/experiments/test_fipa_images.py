"""FIPA as a refinement on images, at sizes of seconds."""

import numpy as np
import pytest

from experiments.lib import cells


def test_refinement_begins_after_the_warm_up_and_is_counted(script):
    flags = ("--quick", "--seeds", "1", "--rounds", "3", "--warm-up", "2", "--epochs", "1", "--rank", "2")
    flags += ("--variants", "fedavg", "--refinements", "none", "last", "--clients", "6", "--participation", "0.5")
    flags += ("--further-ranks", "--rivals")
    table, summary, lines = script("fipa.images", *flags)
    alone, refined = (line["result"] for line in lines)
    np.testing.assert_allclose(alone["loss"][:2], refined["loss"][:2], rtol=1e-6)
    assert abs(alone["loss"][2] - refined["loss"][2]) > 1e-6
    assert alone["joint_rank"] == [None] * 3 and refined["joint_rank"][2] == 6
    sent = np.diff(np.array(refined["bits"])) / 32
    d, last = np.diff(alone["bits"])[0] / 32, 32 * 10  # the MLP's last layer has no bias
    assert sent.tolist() == [d, d + 2 * (last + 1)]
    label = "FedAvg + FIPA, last layer"
    assert summary["accuracy"][label]["final"] == np.float64(100 * refined["accuracy"][-1])
    assert f"| {label} |" in table


@pytest.mark.slow
def test_rivals_and_ranks_send_what_their_payloads_hold(script):
    flags = ("--quick", "--seeds", "1", "--rounds", "2", "--warm-up", "1", "--epochs", "1", "--further-ranks", "3")
    flags += ("--variants", "fedavg", "--refinements", "none", "--clients", "4", "--participation", "0.5")
    table, _, lines = script("fipa.images", *flags)
    sent = {}
    for line in lines:
        name = line["settings"]["refinement"], line["settings"]["settings"].get("rank")
        sent[name] = np.diff([0, *line["result"]["bits"]]) / 32
    d, last = sent["none", None][0], 32 * 10
    inputs, outputs = (64, 64, 32), (64, 32, 10)  # of the MLP's layers, without biases
    factors = sum(n**2 for n in inputs + outputs)
    assert d == sum(a * b for a, b in zip(inputs, outputs, strict=True))
    assert sent["last", 3].tolist() == [d, d + 3 * (last + 1)]
    assert sent["fedfish", None].tolist() == [d, 2 * d]
    assert sent["fedfisher", None].tolist() == [d, d + factors]
    assert "FedAvg + FIPA, last layer, rank 3" in table and "FedAvg + FedFish" in table


@pytest.mark.slow
def test_the_last_layer():
    """By the order of layers, not of names."""
    for model, names in (("lenet", ("fc3",)), ("resnet18_pretrained", ("final",)), ("mlp", ("fc3",))):
        network, captured = cells.captured_network(model, (32, 32, 3) if model != "mlp" else (64,), 10)
        world = cells.World(None, (), network, captured)
        assert cells.last_layer(world) == names
