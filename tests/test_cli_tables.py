"""A user's own table and network through run, evaluate and predict."""

import csv
import json

import jax
import numpy as np
import pytest

from fedfisher_jax import models
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.silos import _model_file as model_file
from fedfisher_jax.silos import _silo_data as silo_data

KINDS = ("cat", "dog", "owl")


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


def table(path, rows=150, **more):
    random = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["height", "weight", "farm", "kind"])
        for n in range(rows):
            centre = np.array([[0, 9], [9, 0], [9, 9]])[n % 3]
            writer.writerow([*(centre + random.normal(size=2)).tolist(), f"farm {n // 3 % 2}", KINDS[n % 3]])
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    how = ("--partition", "natural", "--clients", "2", "--epochs", "20", "--batch-size", "16")
    columns = ("--label", "kind", "--silo-column", "farm")
    rules = ("--rules", "fedavg", "--strategy", "sequential")
    command("run", "--dataset", table(folder / "t.csv"), *how, *columns, *rules, "--out", folder / "out")
    return folder


@pytest.mark.slow
def test_the_mapping_is_written_down(ran):
    result = json.loads((ran / "out" / "result.json").read_text())
    assert result["classes"] == list(KINDS) and result["rules"]["fedavg"]["accuracy"] > 0.9
    assert len(result["clients"]["sizes"]) == 2 and any("texts as labels" in word for word in result["words"])
    assert len(result["rules"]["fedavg"]["accuracy_by_class"]) == 3
    model = model_file.read(ran / "out" / "models" / "fedavg.safetensors")
    assert model.classes == KINDS and model.scaling is not None


def test_evaluate_and_predict_know_the_labels(ran, capsys, tmp_path):
    model = ran / "out" / "models" / "fedavg.safetensors"
    command("evaluate", model, "--data", ran / "t.csv", "--label", "kind", "--ignore", "farm", "--by-class")
    said = capsys.readouterr().out
    assert "150 examples" in said and "class owl: 50 examples, accuracy" in said
    out = tmp_path / "p.csv"
    command("predict", model, "--data", ran / "t.csv", "--label", "kind", "--ignore", "farm", "--out", out)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    right = np.mean([row["label"] == KINDS[n % 3] for n, row in enumerate(rows)])
    assert len(rows) == 150 and right == pytest.approx(float(said.split("accuracy ")[1].split()[0]), abs=1e-3)
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)
    other = tmp_path / "other.csv"
    other.write_text("height,weight,kind\n1,2,cow\n")
    with pytest.raises(SystemExit):
        command("evaluate", model, "--data", other, "--label", "kind")
    assert "got the label 'cow', expected one of the model's: cat, dog, owl" in capsys.readouterr().err


def test_labels_of_positions_are_named_as_those_of_examples():
    kind = model_file.Kind("mlp", (8,), 2)
    model = model_file.Model(kind, models.build("mlp", (8,), 2), None, "us", None, ("benign", "malign"))
    names = np.array([["malign", "benign"], ["benign", "benign"]])
    np.testing.assert_array_equal(silo_data.classes_of("d", model, names), [[1, 0], [0, 0]])
    with pytest.raises(ValueError, match="data: d: got the label 'odd'"):
        silo_data.classes_of("d", model, np.where(names == "malign", "odd", names))


def test_classes_in_model_files_are_checked(ran, tmp_path):
    model = model_file.read(ran / "out" / "models" / "fedavg.safetensors")
    for classes in (
        ("a", "b"),
        ("a", "b", "b"),
        ("a", "b", 3),
        ("a", "b", "\x1b"),
        (True, 1, 2),
        ("a", "b", "c" * 201),
    ):
        with pytest.raises(ValueError, match="classes: expected"):
            model_file.write(tmp_path / "m", model.kind, model.params, "test", None, classes)
    model_file.write(tmp_path / "m", model.kind, model.params, "test", None, (3, 5, 9))
    again = model_file.read(tmp_path / "m")
    assert again.classes == (3, 5, 9) and again.scaling is None
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.slow
def test_silos_may_bring_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(f"{n % 2 + 0.1 * n},{n % 2}" for n in range(20))
    (tmp_path / "mine.csv").write_text(f"x,label\n{rows}\n")
    command("describe", "--data", "mine.csv")
    command("init", "--data", "mine.csv", "--standardise", "sums.safetensors")
    command("measure", "--data", "mine.csv", "--silo", "0", "--epochs", "1", "--out", "p.safetensors")
    command("merge", "p.safetensors")
    command("evaluate", "global.safetensors", "--data", "mine.csv")
    assert "20 examples" in capsys.readouterr().out.splitlines()[-1]
    (tmp_path / "texts.csv").write_text("x,label\n1,a\n2,b\n")
    with pytest.raises(SystemExit):
        command("measure", "--data", "texts.csv", "--silo", "0")
    assert "got texts as labels" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_network.py").write_text(
        "import jax.numpy as jnp\n"
        "def linear(shape, outputs):\n"
        "    size = 1\n"
        "    for n in shape:\n"
        "        size *= n\n"
        "    init = lambda key: {'w': jnp.zeros((size, outputs))}\n"
        "    return init, lambda p, x: x.reshape(len(x), -1) @ p['w']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    how = ("--clients", "2", "--epochs", "2", "--rules", "fedavg", "--strategy", "sequential")
    command("run", "--model", "my_network:linear", *how, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["rules"]["fedavg"]["accuracy"] > 0.3
    saved = tmp_path / "out" / "models" / "fedavg.safetensors"
    assert model_file.read(saved, "my_network:linear").params["w"].shape == (64, 10)
