"""The scripts over rounds, at sizes of seconds."""

import pytest

from experiments.lib import cells


@pytest.mark.slow
def test_fedfish_language(script, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text("the quick brown fox jumps over the lazy dog. " * 10)
    flags = ("--quick", "--folder", str(folder), "--rounds", "2", "--epochs", "1", "--width", "8", "--sampled", "2")
    table, summary, _ = script("fedfish.language", *flags, "--tokens", "characters")
    assert "3 clients pre-train, 3 personalise" in table
    assert 0 < summary["unigram"][0] < summary["bigram"][0] < 1


@pytest.mark.slow
def test_pretrained(script):
    flags = ("--quick", "--epochs", "1", "--seeds", "1", "--rules", "fedavg", "fedfisher-kfac")
    table, summary, lines = script("fedfisher.pretrained", *flags, "--pretrain-epochs", "1")
    assert "Pre-trained on digits (5 classes)" in table
    _, longer, all_lines = script("fedfisher.pretrained", *flags, "--pretrain-epochs", "12")
    assert len(all_lines) == 2 * len(lines)  # other weights are other runs
    assert summary["accuracy"]["scratch"] == longer["accuracy"]["scratch"]
    assert summary["accuracy"]["pre-trained"] != longer["accuracy"]["pre-trained"]


@pytest.mark.slow
def test_the_last_layer():
    """By the order of layers, not of names."""
    for model, names in (("lenet", ("fc3",)), ("resnet18_pretrained", ("final",)), ("mlp", ("fc3",))):
        network, captured = cells.captured_network(model, (32, 32, 3) if model != "mlp" else (64,), 10)
        world = cells.World(None, (), network, captured)
        assert cells.last_layer(world) == names


@pytest.mark.slow
def test_rivals_of_natural_gradient_steps(script):
    """Each rival's settings are the best by validation, and it has as many rounds as its share of the bits allows."""
    flags = ("--quick", "--examples", "200", "--clients", "2", "--epochs", "1", "--rates", "0.01", "0.1")
    table, summary, lines = script("fedfisher.rivals", *flags)
    ours, averages = (
        [line for line in lines if line["settings"]["method"] == name and not line["settings"]["held"]]
        for name in ("natural gradient", "FedAvg")
    )
    room, sent = ours[0]["result"]["bits"][-1], averages[0]["result"]["bits"]
    assert len(sent) == max(3, room // sent[0])
    tried = [line for line in lines if line["settings"]["method"] == "FedAvg" and line["settings"]["held"]]
    best = max(tried, key=lambda line: line["result"]["accuracy"][-1])
    assert len(tried) == 2 and averages[0]["settings"]["rate"] == best["settings"]["rate"]
    after = 100 * averages[0]["result"]["accuracy"][2]
    assert summary["accuracy"]["FedAvg"]["by_exchanges"]["3"] == pytest.approx(after) and f"{after:.1f} (" in table
