"""The scripts over rounds, at sizes of seconds."""

import jax
import numpy as np
import pytest

from experiments.fedfish import kinds, pretraining
from experiments.fipa import frozen_body
from experiments.lib import cells
from fedfisher_jax import categorical, evaluate


@pytest.mark.slow
def test_fedfish_language(script, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text("the quick brown fox jumps over the lazy dog. " * 10)
    flags = ("--quick", "--folder", str(folder), "--rounds", "2", "--epochs", "1", "--width", "8", "--sampled", "2")
    flags += ("--tokens", "characters", "--local", "adam-0.02", "--tuned", "1", "1000")
    table, summary, lines = script("fedfish.language", *flags)
    assert "3 clients pre-train, 3 personalise" in table
    assert 0 < summary["unigram"][0] < summary["bigram"][0] < 1
    found = [line["result"] for line in lines]
    assert all(one["factor_all"] == 1 and one["perplexity_after_all"] < one["perplexity_before_all"] for one in found)
    gain = np.log(found[0]["perplexity"][-1][1]) - np.log(found[1]["perplexity"][-1][1])
    (told,) = summary["gain_in_log_perplexity"]["adam-0.02, 1 epochs"].values()
    assert told["gain"] == pytest.approx(gain) and told["seeds_better"] == (gain > 0)


@pytest.mark.slow
def test_a_servers_optimiser_is_chosen_by_spare_windows_on_other_seeds(script, tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    flags = ("--quick", "--folder", str(tmp_path), "--rounds", "2", "--epochs", "1", "--width", "8", "--sampled", "2")
    flags += ("--tokens", "characters", "--local", "adam-0.02", "--tuned", "1", "--rules", "fedavg")
    table, summary, lines = script("fedfish.language", *flags, "--windows", "8", "--servers", "adam-1", "plain")
    told = [(one["settings"]["seed"], one["settings"]["server"], one["settings"]["choosing"]) for one in lines]
    assert told == [(20, "adam-1", True), (20, "plain", True), (0, "plain", False)]
    scores = {one["settings"]["server"]: one["result"]["perplexity"][-1][1] for one in lines[:2]}
    assert summary["searched"]["fedavg, adam-0.02, 1"] == pytest.approx(scores) and scores["plain"] < scores["adam-1"]
    assert "epochs, server plain" in table
    found = pretraining.text("kinds", str(tmp_path), "characters")
    with pytest.raises(ValueError, match="windows: got 99, which leaves no client a spare one"):
        pretraining.spare_windows(found, 99)


def test_kinds_of_text_are_files_by_pattern_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "PIECE", 4)
    monkeypatch.setattr(kinds, "MOST", 6)
    for name, text in {"b/x.md": "second", "a/y.md": "first", "c/z.md": "third", "t.csv": "1,2", "u.csv": "3"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "s.csv").write_bytes(b"\xff\xfe")
    patterns = {"manuals": "*.md", "of t": "t.*", "tables": "*.csv", "none": "*.rst"}
    found = kinds.kinds({tmp_path: patterns}, least=1)
    assert found == {"manuals": ("firs", "seco"), "of t": ("1,2",), "tables": ("3",)}
    with pytest.raises(ValueError, match="kinds: got 1 with 5"):
        kinds.kinds({tmp_path: patterns}, least=5)


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


def test_rounds_with_a_frozen_body_go_on_from_the_warm_up():
    setting = {"dataset": "digits", "clients": 4, "sampled": 2, "alpha": 0.5}
    found = frozen_body.run("fedavg", "whole", 1.0, 3, 1, count=1, **setting)
    longer = frozen_body.warm(seed=3, count=2, **setting)
    scored = evaluate(longer.here.network.apply, categorical(), longer.state.params, *longer.here.arrays[2:])
    np.testing.assert_allclose(found["accuracy"][0], scored.accuracy, atol=1e-6)
    head = frozen_body.run("fedavg", "last", 1.0, 3, 1, count=1, **setting)
    kernel = jax.tree.leaves(longer.state.params)[longer.here.captured.layers[-1].weight]
    assert head["bits"] == 32 * kernel.size < found["bits"]
    assert 0 < head["moved"][0] < found["moved"][0]
