"""Runs on numbers to regress on and on several labels: files in, the library's numbers out."""

import contextlib
import csv
import json

import jax
import numpy as np
import pytest

from fedfisher_jax import report
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.report import trackers
from fedfisher_jax.silos import _model_file as model_file

QUICK = ("--clients", "2", "--epochs", "2", "--batch-size", "16", "--rules", "fedavg", "--strategy", "sequential")


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


def result(out):
    return json.loads((out / "result.json").read_text())


def numbers():
    random = np.random.default_rng(0)
    x = random.normal(size=(120, 4)).astype(np.float32)
    return x, x @ random.normal(size=4) + 0.1 * random.normal(size=120)


@pytest.fixture(scope="module")
def regressed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    x, y = numbers()
    np.savez(folder / "d.npz", train_x=x[:90], train_y=y[:90], test_x=x[90:], test_y=y[90:])
    command("run", "--dataset", folder / "d.npz", "--likelihood", "gaussian", *QUICK, "--out", folder / "one")
    rounds = ("--rounds", "2", "--personalise", "1", "--alpha", "5", "--track", "tensorboard")
    told = []

    @contextlib.contextmanager
    def listening(place, settings):
        yield told.append

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trackers.TRACKERS, "tensorboard", listening)
        command(
            "run", "--dataset", folder / "d.npz", "--likelihood", "gaussian", *QUICK, *rounds, "--out", folder / "two"
        )
    (folder / "told.json").write_text(json.dumps(told))
    return folder


@pytest.mark.slow
def test_regression_is_judged_by_its_error(regressed, capsys):
    found, (x, y) = result(regressed / "one"), numbers()
    model = model_file.read(regressed / "one" / "models" / "fedavg.safetensors")
    assert model.kind.likelihood == "gaussian" and model.kind.outputs == 1
    outputs = jax.jit(model.network.apply)(model.params, model.scaling(x[90:]))
    rmse = np.sqrt(np.mean((np.asarray(outputs)[:, 0] - y[90:]) ** 2))
    assert found["rules"]["fedavg"]["rmse"] == pytest.approx(rmse, rel=1e-4)
    assert len(found["clients"]["rmses"]) == 2 and found["references"]["best_local"]["rmse"] == min(
        found["clients"]["rmses"]
    )
    assert found["strata"]["what"] == "range of targets" and np.sum(found["clients"]["label_counts"]) == 90
    command("evaluate", regressed / "one" / "models" / "fedavg.safetensors", "--data", regressed / "d.npz")
    assert f"rmse {rmse:.4f}" in capsys.readouterr().out
    page = report.page([(name, result(regressed / name)) for name in ("one", "two")])
    assert "test RMSE" in page and "range of targets" in page and "accuracy" not in page.split("<h2>")[1]


def test_rounds_of_regression_have_curves(regressed):
    rule = result(regressed / "two")["rules"]["fedavg"]
    assert [line["rmse"] for line in rule["rounds"]][-1] == pytest.approx(rule["rmse"])
    assert rule["personalised"]["accuracy"] == [None, None] and len(rule["clients"]["loss"]) == 2


def test_trackers_are_told_what_is_written(regressed):
    told = json.loads((regressed / "told.json").read_text())
    assert [(one["kind"], one["name"], one["round"]) for one in told] == [
        ("round", "fedavg", 1),
        ("round", "fedavg", 2),
        ("rule", "fedavg", 2),
    ]
    rows = [json.loads(line) for line in (regressed / "two" / "records.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["round", "round", "rule"]
    lines = result(regressed / "two")["rules"]["fedavg"]["rounds"]
    assert [row["rmse"] for row in rows[:2]] == [one["rmse"] for one in told[:2]] == [line["rmse"] for line in lines]
    table = list(csv.DictReader((regressed / "one" / "records.csv").read_text().splitlines()))
    assert [row["name"] for row in table if row["kind"] == "client"] == ["client 0", "client 1"]
    assert float(table[-1]["rmse"]) == result(regressed / "one")["rules"]["fedavg"]["rmse"]


@pytest.mark.slow
def test_several_labels_in_a_table(tmp_path, capsys):
    random = np.random.default_rng(1)
    x = random.normal(size=(100, 3))
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "c", "ill", "old"])
        writer.writerows([*row.round(3), int(row[0] > 0), int(row[1] > 0)] for row in x)
    labels, out = ("--label", "ill", "old"), tmp_path / "out"
    command("run", "--dataset", tmp_path / "t.csv", "--likelihood", "bernoulli", *labels, *QUICK, "--out", out)
    found = result(out)
    rule = found["rules"]["fedavg"]
    assert 0.5 < rule["auc"] <= 1 and 0 <= rule["accuracy"] <= 1 and "confusion" not in rule
    assert set(found["strata"]["names"]) == {"none", "0", "1", "0+1"}
    model = out / "models" / "fedavg.safetensors"
    command("evaluate", model, "--data", tmp_path / "t.csv", *labels)
    assert ", auc " in capsys.readouterr().out
    command("predict", model, "--data", tmp_path / "t.csv", *labels, "--out", tmp_path / "p.csv")
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert set(rows[0]) == {"row", "output_0", "output_1"} and 0 < float(rows[0]["output_0"]) < 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "digits", "--likelihood", "gaussian"], "likelihood: got gaussian for digits"),
        (["--dataset", "d.npz"], "expected integer labels or texts (for numbers say the likelihood gaussian)"),
        (["--dataset", "d.npz", "--likelihood", "bernoulli"], "expected 0 and 1"),
        (["--dataset", "d.npz", "--likelihood", "gaussian", "--rules", "dense"], "expected categorical"),
    ],
)
def test_targets_that_do_not_fit_are_named(regressed, arguments, words, tmp_path, capsys):
    given = [str(regressed / word) if word == "d.npz" else word for word in arguments]
    with pytest.raises(SystemExit) as stop:
        command("run", *given, "--out", tmp_path)
    assert stop.value.code == 2 and words in capsys.readouterr().err
