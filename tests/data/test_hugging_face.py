"""Hugging Face's data sets from disk, and Flower's partitioners, where they are installed."""

import json

import numpy as np
import pytest

from fedfisher_jax import data
from fedfisher_jax.cli import _cli as cli


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("hf")
    labels = datasets.ClassLabel(names=["cat", "dog", "owl"])
    features = datasets.Features({"image": datasets.Image(), "label": labels, "farm": datasets.Value("string")})

    def rows(count):
        from PIL import Image

        y = [n % 3 for n in range(count)]
        images = [Image.fromarray((80 * n + random.integers(0, 40, (6, 5))).astype(np.uint8)) for n in y]
        return {"image": images, "label": y, "farm": [f"farm {n // 3 % 2}" for n in range(count)]}

    parts = {name: datasets.Dataset.from_dict(rows(n), features) for name, n in (("train", 60), ("validation", 12))}
    datasets.DatasetDict(parts).save_to_disk(str(folder / "set"))
    return folder / "set"


def test_images_with_named_classes(pictures):
    found = data.load(f"hf:{pictures}", columns=data.Columns("label", "farm"))
    assert found.train_x.shape == (60, 6, 5, 1) and found.test_x.shape == (12, 6, 5, 1) and found.name == "set"
    assert found.classes == ("cat", "dog", "owl") and found.train_y[:4].tolist() == [0, 1, 2, 0]
    assert found.groups.tolist() == [n // 3 % 2 for n in range(60)]
    assert abs(found.train_x.mean()) < 1e-6 and found.scaling is not None
    raw = data.load(f"hf:{pictures}", inputs="as-is", columns=data.Columns("label", None, ("farm",)))
    np.testing.assert_allclose(raw.scaling or found.scaling(raw.train_x), found.train_x, atol=1e-5)


def test_a_run_evaluates_and_predicts_by_names(pictures, tmp_path, capsys):
    how = ("--silo-column", "farm", "--partition", "natural", "--clients", "2", "--epochs", "4", "--batch-size", "8")
    out = tmp_path / "out"
    run = (
        "run",
        "--dataset",
        f"hf:{pictures}",
        *how,
        "--rules",
        "fedavg",
        "--strategy",
        "sequential",
        "--out",
        str(out),
    )
    cli.main(list(run))
    assert json.loads((out / "result.json").read_text())["classes"] == ["cat", "dog", "owl"]
    cli.main(
        [
            "evaluate",
            str(out / "models/fedavg.safetensors"),
            "--data",
            f"hf:{pictures}",
            "--ignore",
            "farm",
            "--by-class",
        ]
    )
    assert "class owl: 4 examples" in capsys.readouterr().out


def test_columns_of_numbers_are_a_table(tmp_path):
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    rows = {"a": [1.0, 2.0, 3.0, 4.0] * 5, "b": [0] * 20, "kind": ["x", "y"] * 10}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "t"))
    found = data.load(f"hf:{tmp_path}/t", columns=data.Columns("kind"))
    assert found.train_x.shape == (16, 2) and found.classes == ("x", "y")
    datasets.Dataset.from_dict(rows | {"v": [[1, 2]] * 20}).save_to_disk(str(tmp_path / "v"))
    with pytest.raises(ValueError, match="expected one of images or arrays"):
        data.load(f"hf:{tmp_path}/v", columns=data.Columns("kind"))
    only = data.load(f"hf:{tmp_path}/v", columns=data.Columns("kind", None, ("a", "b")))
    assert only.train_x.shape == (16, 2)


def test_partitioners_of_flower():
    partitioner = pytest.importorskip("flwr_datasets.partitioner", exc_type=ImportError)
    y = np.arange(100) % 4
    for one in (
        partitioner.DirichletPartitioner(5, partition_by="label", alpha=0.5, min_partition_size=2, seed=0),
        partitioner.IidPartitioner(5),
    ):
        parts = data.by_partitioner(one, label=y)
        assert len(parts) == 5 and np.array_equal(np.sort(np.concatenate(parts)), np.arange(100))


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"hf:x needs the package datasets: pip install 'fedfisher-jax\[hf\]'"):
        data.load("hf:x")
