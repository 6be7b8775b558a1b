"""The scripts around one-shot cells, at sizes of seconds."""

import json
import sys

import numpy as np
import pytest

from experiments.fedfisher import synthetic_binary
from fedfisher_jax.cli import _cli as cli

TINY = ("--quick", "--rules", "fedavg", "fisher-merge", "--seeds", "2")
OWN_RULE = '''
"""Coordinate-wise median of the clients' models."""
import jax
import jax.numpy as jnp
from fedfisher_jax.merge import MeasureFisher, Merged, Rule


def median(apply, likelihood):
    solve = lambda sent, start: Merged(jax.tree.map(lambda leaf: jnp.median(leaf, axis=0), sent.params), {})
    return Rule("median", MeasureFisher(apply, likelihood, None), lambda payload, start: payload, solve, "stack")
'''


@pytest.mark.slow
def test_table(script):
    table, summary, lines = script("fedfisher.one_shot_table", *TINY, "--epochs", "1", "--alphas", "0.5")
    assert "each draws a split and a training" in table
    column = "digits α=0.5"
    ensembles = {"ensemble", "ensemble_by_size", "ensemble_by_class"}
    assert set(summary["accuracy"][column]) == {"fedavg", "fisher-merge", "best_local", "pooled"} | ensembles
    found = {}
    for line in lines:
        if "accuracy" in line["result"]:
            found.setdefault(line["settings"]["method"], []).append(100 * line["result"]["accuracy"])
    for method, numbers in found.items():
        assert summary["accuracy"][column][method] == pytest.approx(np.mean(numbers), abs=0.01)
        assert summary["std"][column][method] == pytest.approx(np.std(numbers, ddof=1), abs=0.01)
        if method != "fedavg":
            gaps = np.subtract(numbers, found["fedavg"])
            assert summary["minus_fedavg_std"][column][method] == pytest.approx(np.std(gaps, ddof=1), abs=0.01)
            assert f"{gaps.mean():+.1f}±{np.std(gaps, ddof=1):.1f} ({(gaps > 0).sum()}/2)" in table


@pytest.mark.slow
def test_a_users_rule_is_in_the_table_and_in_the_command(script, tmp_path, monkeypatch):
    assert len(OWN_RULE.splitlines()) < 40
    (tmp_path / "somebodys.py").write_text(OWN_RULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    flags = ("--quick", "--epochs", "1", "--alphas", "0.5", "--seeds", "1", "--rules", "fedavg")
    _, _, before = script("fedfisher.one_shot_table", *flags)
    table, summary, lines = script("fedfisher.one_shot_table", *flags, "somebodys:median")
    assert lines[: len(before)] == before and [r["settings"]["method"] for r in lines[len(before) :]] == [
        "somebodys:median"
    ]
    assert "| somebodys:median |" in table
    run = ["run", "--alpha", "0.5", "--epochs", "1", "--rules", "fedavg", "somebodys:median", "--out", "run"]
    cli.main(run)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for name, accuracy in summary["accuracy"]["digits α=0.5"].items():
        if name != "pooled":
            same = result["rules"][name] if name in result["rules"] else result["references"][name]
            assert accuracy == pytest.approx(100 * same["accuracy"], abs=0.3), name


def test_seeds_of_split_and_training_vary_separately(script):
    table, _, lines = script("fedfisher.one_shot_table", *TINY, "--epochs", "1", "--vary", "crossed")
    assert "2 splits (of means over training seeds) ± std over 2 training seeds" in table
    numbers = {}
    for line in lines:
        if line["settings"]["method"] == "fedavg":
            numbers[line["settings"]["data_seed"], line["settings"]["train_seed"]] = 100 * line["result"]["accuracy"]
    assert sorted(numbers) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    square = np.reshape([numbers[pair] for pair in sorted(numbers)], (2, 2))
    between, within = np.std(square.mean(1), ddof=1), np.sqrt(np.var(square, axis=1, ddof=1).mean())
    assert f"{square.mean():.1f}±{between:.1f}±{within:.1f}" in table


@pytest.mark.slow
def test_synthetic(script):
    table, summary, lines = script("fedfisher.synthetic_binary", *TINY, "--epochs", "1", "--examples", "400")
    assert summary["fedavg"] == summary["accuracy"]["α=0.1"]["fedavg"]
    assert "| α=0.1 | fedavg |" in table and "62.6" in table
    assert len({line["result"]["accuracy"] for line in lines if line["settings"]["method"] == "pooled"}) == 2


def test_the_synthetic_problem_is_the_one_stated():
    data = synthetic_binary.draw(0, 20_000)
    signs = 2 * data.train_y[:, None] - 1
    expected = np.r_[np.full(10, 0.7 / np.sqrt(10)), np.zeros(90)]
    np.testing.assert_allclose((signs * data.train_x).mean(0), expected, atol=4 / np.sqrt(20_000))
    np.testing.assert_allclose((signs * data.train_x).std(0), 1, atol=4 / np.sqrt(40_000))
    bayes = ((data.test_x @ expected > 0) == data.test_y).mean()
    assert bayes == pytest.approx(0.758, abs=4 * 0.43 / np.sqrt(20_000))
