"""`fedfisher sweep`, and the tables that it makes, against sums by hand."""

import csv
import json
import shlex

import numpy as np
import pytest
import tyro

from fedfisher_jax import report
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.cli import _sweep
from fedfisher_jax.cli._names import file_name
from fedfisher_jax.cli._run_words import words_on_settings
from fedfisher_jax.cli._settings import RunSettings
from fedfisher_jax.cli._sweep_settings import SweepSettings, cells_of

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


def test_means_of_last_rounds_and_what_else_rounds_tell():
    def over(seed, barriers):
        lines = [{"round": n, "accuracy": 0.1 * n, "test_loss": n, "barrier_loss": b} for n, b in enumerate(barriers)]
        personal = {"accuracy_before": [0.2, 0.4], "accuracy": [0.5, 0.7], "loss_before": [1, 1], "loss": [1, 1]}
        rule = {"accuracy": 0.2, "loss": 2, "rounds": lines, "personalised": personal}
        rules = {"fedavg": rule, "fedfish": rule | {"personalised_few": personal}}
        settings = {"warm_up_rounds": 1, "shots": 3}
        return {"varied": "accuracy", "seed": seed, "settings": settings, "rules": rules, "references": {}}

    cells = [over(0, [9, 1, 2]), over(1, [9, 3, 4])]
    (row,) = report.summarise(report.mean_of_last(cells, 2), "fedavg").rules["fedavg"]
    assert row == pytest.approx((15, 0, 2))
    found = [
        report.summarise(values, "fedavg", one)
        for one, values in report.further(cells, report.summarise(cells, None).measure)
    ]
    before, after, few, barrier = found
    assert before.rules["fedavg"][0].mean == pytest.approx(30) and after.rules["fedavg"][0].mean == pytest.approx(60)
    assert few.rules["fedavg"] == [None] and few.rules["fedfish"][0].mean == pytest.approx(60)
    assert "by 3 examples each" in few.measure.said and few.differences == {"fedfish − fedavg": [None]}
    assert barrier.rules["fedfish"][0] == pytest.approx((2.5, np.sqrt(2), 2))  # without the warm-up's
    rows = list(csv.DictReader(report.comma_separated(found[0], found[1:]).splitlines()))
    assert [float(row["mean"]) for row in rows if row["what"] == "barrier"] == pytest.approx([2.5, 2.5])
    assert before.columns == ["accuracy"] and barrier.columns == ["barrier"]
    rounds = report.summarise(report.by_round(cells), "fedavg")  # of more columns than what else they tell
    rows = list(csv.DictReader(report.comma_separated(rounds, found).splitlines()))
    told = [(row["what"], row["settings"]) for row in rows if row["name"] == "fedfish"]
    assert told[:3] == [("rule", "round 0"), ("rule", "round 1"), ("rule", "round 2")]
    assert told[3:] == [(one.measure.key, one.columns[0]) for one in found]
    assert not report.further([cell("α 1", 0, 0.5, 0.6)], report.summarise([cell("α 1", 0, 0.5, 0.6)], None).measure)


def test_settings_go_together():
    flags = "--alpha 1 2 --epochs 1 4 --rounds 20 20 --together epochs rounds --seeds 1".split()
    cells = cells_of(tyro.cli(SweepSettings, args=flags))
    assert [(cell.alpha, cell.epochs, cell.rounds) for _, cell in cells] == [
        (1, 1, 20),
        (1, 4, 20),
        (2, 1, 20),
        (2, 4, 20),
    ]
    assert cells[0][0] == "α 1, epochs 1, rounds: 20" and len({cell.out for _, cell in cells}) == 4


def test_one_value_each_goes_together_too():
    """So a file's lists may be overridden on the command line."""
    flags = "--alpha 1 2 --epochs 4 --rounds 20 --together epochs rounds --seeds 1".split()
    assert [(cell.alpha, cell.epochs, cell.rounds) for _, cell in cells_of(tyro.cli(SweepSettings, args=flags))] == [
        (1, 4, 20),
        (2, 4, 20),
    ]


def test_columns_of_other_settings_have_other_names(tmp_path):
    """Or their cells would count as seeds of one."""
    flags = f"--dataset {tmp_path}/a/data.npz {tmp_path}/b/data.npz --alpha 0.1 0.10000001 --seeds 1".split()
    columns = [column for column, _ in cells_of(tyro.cli(SweepSettings, args=flags))]
    assert len(set(columns)) == 4 and columns[0] == f"dataset {tmp_path}/a/data.npz, alpha 0.1"


def test_a_cell_that_fails_is_named_and_the_next_ones_run(tmp_path, capsys):
    flags = (*QUICK, "--learning-rate", "1e30", "0.05", "--seeds", "2", "--seed", "0", "--out", tmp_path)
    with pytest.raises(SystemExit) as stop:
        command(*flags)
    said = capsys.readouterr().err.strip().splitlines()
    name = "clients=2,epochs=1,learning_rate=1e+30,seed="
    assert stop.value.code == 2
    assert said[-1].endswith(f"2 of 4 cells failed: {name}0; {name}1; the same command runs them again")
    assert sum(line.startswith(f"failed: {name}") and "lower the learning rate?" in line for line in said) == 2
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 1] and len({line["varied"] for line in lines}) == 1
    table = (tmp_path / "table.md").read_text()
    assert "over 2 seeds" in table
    (made_by,) = [line for line in table.splitlines() if line.startswith("`fedfisher sweep ")]
    words = shlex.split(made_by.split("`")[1])
    again = cells_of(tyro.cli(SweepSettings, args=[*words[2:], "--out", str(tmp_path)]))
    assert again == cells_of(tyro.cli(SweepSettings, args=list(map(str, flags[1:]))))
    assert "jax " in made_by.split("`")[2]
    command(*flags, "--status")
    printed = capsys.readouterr().out
    assert "4 cells: 2 done, 2 failed, 0 begun" in printed and "-- ended: failed" in printed


def raising(input_shape, classes):
    raise RuntimeError(f"no network for {input_shape} and {classes}")


def test_code_of_a_user_that_fails_stops_no_other_cell(tmp_path, capsys):
    flags = (*QUICK, "--model", "test_sweep:raising", "mlp", "--seeds", "1", "--out", tmp_path)
    with pytest.raises(SystemExit):
        command(*flags)
    said = capsys.readouterr().err
    assert "RuntimeError: no network for" in said and "1 of 2 cells failed" in said
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["settings"]["model"] == "mlp"
    (log,) = tmp_path.glob("cells/*/log.txt")
    assert "in raising" in log.read_text()  # where it was raised


def test_cells_of_many_settings_have_folders_of_their_own():
    long = "some_module_with_a_long_name:and_a_function_with_a_name_that_is_long_as_well,with-an-option="
    flags = [
        "--warm-up",
        f"{long}1",
        f"{long}2",
        "--model",
        "x" * 100,
        "--warm-up-rounds",
        "1",
        "--rounds",
        "2",
        "--seeds",
        "2",
    ]
    names = [cell.out.name for _, cell in cells_of(tyro.cli(SweepSettings, args=flags))]
    assert len(set(names)) == 4 and max(map(len, names)) <= 200 and names[1].endswith(",seed=1")


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
        (["--last", "2"], "last: got 2, expected 1 to 1"),
        (
            ["--alpha", "1", "2", "--together", "alpha", "min-size"],
            "together: got numbers of values alpha 2, min_size 0",
        ),
        (
            ["--alpha", "1", "1", "--seed", "1", "--min-size", "2", "2", "--together", "alpha", "min-size"],
            "values that differ",
        ),
    ],
)
def test_bad_sweeps_are_one_line(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command(*QUICK, *arguments, "--out", tmp_path)
    assert stop.value.code == 2 and words in capsys.readouterr().err.strip().splitlines()[-1]


def test_names_of_files_are_names_of_one_thing_each():
    names = ["fedavg", "fedfish,eps=0.1", "a:b", "a_b", "a/b", "ä" * 120, "ä" * 121, "x" * 300, "x" * 301]
    made = [file_name(name) for name in names]
    assert len(set(made)) == len(names) and made[:2] == names[:2] and made[3] == "a_b"
    assert all(len(name.encode()) <= 180 and "/" not in name for name in made)
    flags = ["--dataset", "a/data.npz", "a_data.npz", "--seeds", "1"]
    assert len({cell.out for _, cell in cells_of(tyro.cli(SweepSettings, args=flags))}) == 2


def test_a_setting_that_nothing_reads_is_told():
    said = words_on_settings(RunSettings(optimizer="adam", momentum=0.5, partition="iid", alpha=1.0, samples=3))
    assert [word.partition(":")[0] for word in said] == ["momentum", "alpha", "samples"]
    assert words_on_settings(RunSettings(rules=("fedfish,estimator=monte_carlo",), samples=3)) == []
    assert words_on_settings(RunSettings()) == []
