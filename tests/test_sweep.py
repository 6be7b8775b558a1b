"""`fedfisher sweep`, and the tables that it makes, against sums by hand."""

import csv
import json

import numpy as np
import pytest

from fedfisher_jax import report
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.cli import _sweep

QUICK = ("sweep", "--epochs", "1", "--clients", "2", "--rules", "fedavg", "fisher-merge", "--strategy", "sequential")


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


def cell(varied, seed, first, second, pooled=None):
    rules = {"fedavg": {"accuracy": first}, "a_rule": {"accuracy": second}}
    return {"varied": varied, "seed": seed, "rules": rules, "references": {"pooled": pooled and {"accuracy": pooled}}}


def test_means_spreads_and_paired_differences_by_hand():
    cells = [cell("α 1", 0, 0.5, 0.6, 0.9), cell("α 1", 1, 0.7, 0.9, 0.9), cell("α 2", 0, 0.3, 0.3)]
    found = report.summarise(cells, "fedavg")
    assert found.columns == ["α 1", "α 2"]
    assert found.rules["fedavg"][0] == pytest.approx((60, 100 * np.sqrt(0.02), 2))
    assert found.differences["a_rule − fedavg"][0] == pytest.approx((15, 100 * np.sqrt(0.005), 2))
    assert found.rules["fedavg"][1] == pytest.approx((30, None, 1)) and found.references["pooled"][1] is None
    text = report.markdown(found, "Caption.")
    assert "| a_rule | **75.0 ± 21.2** | **30.0** |" in text and "| fedavg | 60.0 ± 14.1 | **30.0** |" in text
    assert "| a_rule − fedavg | 15.0 ± 7.1 | 0.0 |" in text and "| pooled | 90.0 ± 0.0 | – |" in text
    tex = report.latex(found, "Caption.")
    assert (
        r"a\_rule & $\mathbf{75.0 \pm 21.2}$ & $\mathbf{30.0}$ \\" in tex and r"pooled & $90.0 \pm 0.0$ & -- \\" in tex
    )
    rows = list(csv.DictReader(report.comma_separated(found).splitlines()))
    assert [float(row["mean"]) for row in rows if row["name"] == "a_rule"] == pytest.approx([75, 30])


def test_runs_over_rounds_are_shown_at_rounds_1_2_4_and_the_last():
    def over(seed, *accuracies, first=1):
        lines = [{"round": first + n, "accuracy": a, "loss": 9.0, "test_loss": 1 - a} for n, a in enumerate(accuracies)]
        rules = {"fedavg": {"accuracy": accuracies[-1], "loss": 1 - accuracies[-1], "rounds": lines}}
        return {"varied": "accuracy", "seed": seed, "rules": rules, "references": {"pooled": {"accuracy": 0.9}}}

    cells = [over(0, 0.1, 0.2, 0.3, 0.4, 0.5), over(1, 0.3, 0.4, 0.5, 0.6, 0.7)]
    found = report.summarise(report.by_round(cells), None)
    assert found.columns == ["round 1", "round 2", "round 4", "round 5"]
    assert [one and one.mean for one in found.rules["fedavg"]] == pytest.approx([20, 30, 50, 60])
    assert [one and one.mean for one in found.references["pooled"]] == [None, None, None, 90]
    assert [one["rules"]["fedavg"]["loss"] for one in report.by_round(cells)[:2]] == [0.9, 0.7]  # on the test examples
    warm = report.by_round([over(0, 0.1, 0.2, first=17)])
    assert [one["varied"] for one in warm] == ["round 17", "round 18"]
    mixed = [over(0, 0.1, 0.2), over(0, 0.1, 0.2) | {"varied": "another"}]
    for others in (mixed, [over(0, 0.1)], [over(0, 0.1, 0.2), over(1, 0.1)], [cell("α 1", 0, 0.5, 0.6)], []):
        assert report.by_round(others) is others


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    command(*QUICK, "--alpha", "0.5", "2", "--seeds", "2", "--out", out)
    return out


FILES = ("results.jsonl", "table.md", "table.csv", "table.tex", "figure.png", "figure.pdf")


@pytest.mark.slow
def test_a_sweep_leaves_its_tables(swept):
    lines = [json.loads(line) for line in (swept / "results.jsonl").read_text().splitlines()]
    assert [(line["varied"], line["seed"]) for line in lines] == [("α 0.5", 0), ("α 0.5", 1), ("α 2", 0), ("α 2", 1)]
    assert all(line["settings"]["data_seed"] == line["seed"] for line in lines)
    accuracies = [100 * line["rules"]["fedavg"]["accuracy"] for line in lines[:2]]
    assert f"| fedavg | {np.mean(accuracies):.1f} ± {np.std(accuracies, ddof=1):.1f}" in (
        swept / "table.md"
    ).read_text().replace("**", "")
    assert (swept / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (swept / "figure.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_to_the_same_files(swept, tmp_path, monkeypatch, capsys):
    same = (*QUICK, "--alpha", "0.5", "2", "--seeds", "2", "--out", tmp_path)
    real, calls = _sweep.run_in, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(_sweep, "run_in", interrupted)
        command(*same)
    assert stop.value.code == 130 and "2 of 4 cells are done; the same command" in capsys.readouterr().err
    command(*same)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (swept / name).read_bytes(), name


def test_a_file_says_what_flags_say(swept, tmp_path, capsys):
    file = tmp_path / "s.toml"
    file.write_text('alpha = [0.5, 2]\nseeds = 5\nclients = 2\nepochs = 1\nstrategy = "sequential"\nseed = [1]\n')
    command(
        "sweep", "--file", file, "--rules", "fedavg", "fisher-merge", "--seed", "0", "1", "--seeds", "2", "--out", swept
    )
    assert "0:00" not in capsys.readouterr().out  # every cell was there: flags go before the file
    for content, words in (("a = 1", "got the key 'a'"), ("alpha = [[1]]", "alpha: got a list"), ("=", "as TOML")):
        file.write_text(content)
        with pytest.raises(SystemExit) as stop:
            command("sweep", "--file", file, "--out", tmp_path / "out")
        assert stop.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "1", "1"], "seed: got 1 1"),
        (["--seed", "1", "2", "--seeds", "3"], "seeds: got 3, and 2 numbers"),
        (["--alpha", "1", "1"], "alpha: got 1.0 1.0"),
        (["--alpha", "1", "-1"], "alpha"),
        (["--seeds", "0"], "seeds: got 0"),
        (["--against", "fedfish"], "against: got fedfish"),
        (["--rounds", "1", "--sampled", "1"], "rounds: got 1"),
    ],
)
def test_bad_sweeps_are_one_line(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command(*QUICK, *arguments, "--out", tmp_path)
    assert stop.value.code == 2 and words in capsys.readouterr().err.strip().splitlines()[-1]
