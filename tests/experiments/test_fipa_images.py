"""FIPA as a refinement on images, at sizes of seconds."""

import importlib
from pathlib import Path

import numpy as np


def test_refinement_begins_after_the_warm_up_and_is_counted(script):
    flags = ("--quick", "--seeds", "1", "--rounds", "3", "--warm-up", "2", "--epochs", "1", "--rank", "2")
    flags += ("--variants", "fedavg", "--refinements", "none", "last", "--clients", "6", "--participation", "0.5")
    table, summary, lines = script("fipa_images", *flags)
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


def test_the_last_layer(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "experiments"))
    images = importlib.import_module("fipa_images")
    assert (
        images.last_layer({"conv1": {"kernel": 0}, "fc1": {"kernel": 0}, "fc3": {"bias": 0, "kernel": 0}}) == "['fc3']"
    )
