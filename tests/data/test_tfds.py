"""Prepared sets are made here by TFDS's own writer from encoded images, which needs no tensorflow.

The tests' requirements leave tensorflow out, so all of this also shows that prepared sets are read without it.
"""

import io
import shutil
import struct

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from fedfisher_jax.data import DataNotFoundError, load
from fedfisher_jax.data import _tfds as tfds
from fedfisher_jax.data._specs import SPECS, normalise


def picture(array, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array.squeeze()).save(buffer, form)
    return buffer.getvalue()


def images(count, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write(data_dir, name, version, splits, shape, num_classes, *, file_format="array_record", form="PNG"):
    """Write `splits` (name → images, labels) as the prepared set `data_dir/name/version`, three examples per shard."""
    features = tensorflow_datasets.features
    folder = data_dir / name / version
    folder.mkdir(parents=True)
    identity = tensorflow_datasets.core.dataset_info.DatasetIdentity(
        name=name.split("/")[0],
        version=tensorflow_datasets.core.Version(version),
        data_dir=str(folder),
        module_name="test",
    )
    image = features.Image(shape=shape, encoding_format=form.lower())
    info = tensorflow_datasets.core.DatasetInfo(
        builder=identity,
        features=features.FeaturesDict({"image": image, "label": features.ClassLabel(num_classes=num_classes)}),
    )
    writer = tensorflow_datasets.core.SequentialWriter(info, max_examples_per_shard=3, file_format=file_format)
    writer.initialize_splits(list(splits))
    writer.add_examples(
        {
            split: [{"image": picture(x, form), "label": int(y)} for x, y in zip(*arrays, strict=True)]
            for split, arrays in splits.items()
        }
    )
    writer.close_all()
    return folder


def test_a_prepared_set_is_read(tmp_path):
    x, y = images(7, (32, 32, 3)), np.arange(7)
    write(tmp_path, "cifar10", "3.0.2", {"train": (x, y), "test": (x[:2], y[:2])}, (32, 32, 3), 10)
    data = load("cifar10", data_dir=tmp_path)
    expected = (x / 255 - [0.491, 0.482, 0.447]) / [0.247, 0.243, 0.262]
    np.testing.assert_allclose(data.train_x, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(data.train_y, y)
    np.testing.assert_array_equal(data.test_x, data.train_x[:2])
    assert data.augment and data.num_classes == 10


def tfrecord(records):
    return b"".join(struct.pack("<Q", len(record)) + b"\0" * 4 + record + b"\0" * 4 for record in records)


def as_tfrecords(folder):
    """Rewrite a prepared set's shards as tfrecord files (its checksums left out), as TFDS prepares by default."""
    from array_record.python.array_record_module import ArrayRecordReader

    for path in list(folder.glob("*.array_record-*")):
        reader = ArrayRecordReader(str(path))
        records = reader.read(list(range(reader.num_records())))
        path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(tfrecord(records))
        path.unlink()
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


def test_tfrecord_files_are_read(tmp_path):
    x, y = images(5, (28, 28, 1)), np.arange(5)
    folder = write(tmp_path, "kmnist", "3.0.1", {"train": (x, y), "test": (x[:2], y[:2])}, (28, 28, 1), 10)
    as_tfrecords(folder)
    data = load("kmnist", data_dir=tmp_path)
    np.testing.assert_array_equal(data.train_x, normalise(x, SPECS["kmnist"].mean, SPECS["kmnist"].std))
    np.testing.assert_array_equal(data.train_y, y)
    shard = sorted(folder.glob("*train.tfrecord*"))[0]
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is truncated"):
        load("kmnist", data_dir=tmp_path)


def test_emnist_is_turned_upright(tmp_path):
    upright = images(4, (28, 28, 1))
    stored, y = upright.swapaxes(1, 2), np.array([0, 61, 5, 7])
    write(tmp_path, "emnist/byclass", "3.1.0", {"train": (stored, y), "test": (stored, y)}, (28, 28, 1), 62)
    data = load("emnist", data_dir=tmp_path)
    np.testing.assert_array_equal(data.train_x, normalise(upright, SPECS["emnist"].mean, SPECS["emnist"].std))
    np.testing.assert_array_equal(data.test_y, y)


def test_gtsrb_is_resized_and_tested_on_its_validation_split(tmp_path):
    shape, y = (None, None, 3), np.array([42, 3])
    pictures = [np.full((72, 80, 3), 64, np.uint8), np.full((90, 72, 3), 200, np.uint8)]
    splits = {"train": (pictures, y), "validation": (pictures[:1], y[:1]), "test": (pictures, [0, 0])}
    write(tmp_path, "visual_domain_decathlon/gtsrb", "1.2.0", splits, shape, 43, form="JPEG")
    data = load("gtsrb", data_dir=tmp_path)
    assert data.train_x.shape == (2, 32, 32, 3) and data.test_x.shape == (1, 32, 32, 3)
    np.testing.assert_allclose(data.train_x[0], (64 / 255 - 0.5) / 0.5, atol=0.02)
    np.testing.assert_allclose(data.train_x[1], (200 / 255 - 0.5) / 0.5, atol=0.02)
    np.testing.assert_array_equal(data.test_y, [42])


def test_the_newest_version_wins_by_number(tmp_path):
    for version in ("3.0.9", "3.0.10", "incomplete.AB_3.0.11"):
        folder = tmp_path / "mnist" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
    found = tfds.find(SPECS["mnist"], tmp_path)
    assert found is not None and found.name == "3.0.10"


def test_damaged_prepared_sets_are_refused(tmp_path):
    x, y = images(4, (32, 32, 3)), np.arange(4)
    write(tmp_path / "a", "cifar10", "3.0.2", {"train": (x, y)}, (32, 32, 3), 10)
    with pytest.raises(ValueError, match="has no split 'test', only .*train"):
        load("cifar10", data_dir=tmp_path / "a")
    small = images(4, (16, 16, 3))
    write(tmp_path / "b", "cifar10", "3.0.2", {"train": (small, y), "test": (small, y)}, (16, 16, 3), 10)
    with pytest.raises(ValueError, match="has 16×16 pixels, expected 32×32"):
        load("cifar10", data_dir=tmp_path / "b")


def test_a_missing_shard_is_refused(tmp_path):
    x, y = images(5, (28, 28, 1)), np.arange(5)
    folder = write(tmp_path, "kmnist", "3.0.1", {"train": (x, y), "test": (x, y)}, (28, 28, 1), 10)
    as_tfrecords(folder)
    first, second = sorted(folder.glob("*train.tfrecord*"))
    second.write_bytes(tfrecord([]))
    with pytest.raises(ValueError, match="split 'train' has 3 examples, not 5"):
        load("kmnist", data_dir=tmp_path)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.tfds])
def test_no_data_is_an_error_that_says_what_to_do_and_asks_no_network(tmp_path, offline, name):
    with pytest.raises(DataNotFoundError, match="is not on this machine") as caught:
        load(name, data_dir=tmp_path)
    message = str(caught.value)
    assert isinstance(caught.value, FileNotFoundError) and isinstance(caught.value, ValueError)
    assert f"{SPECS[name].tfds}/<version>/" in message and "fedfisher-jax[tensorflow]" in message
    assert str(tmp_path) in message and "\n" not in message


def test_download_without_tensorflow_says_what_to_install(tmp_path, offline, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        DataNotFoundError, match=r"building cifar10 needs tensorflow: pip install 'fedfisher-jax\[tensor"
    ):
        load("cifar10", data_dir=tmp_path, download=True)


class FakeBuilder:
    name = "cifar10"
    url_infos = {"https://example.invalid/cifar-10.tar.gz": None}

    def __init__(self, folder):
        self.data_dir, self.prepared = str(folder), 0

    def download_and_prepare(self, *, file_format):
        assert file_format == "array_record"
        self.prepared += 1


def test_download_without_network_fails_before_the_downloader_retries(tmp_path, monkeypatch):
    def unknown(host, port):
        raise OSError(f"{host} unknown")

    builder = FakeBuilder(tmp_path / "cifar10" / "3.0.2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("tensorflow_datasets.builder", lambda name, **kwargs: builder)
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr("fedfisher_jax.data._tfds.getproxies", dict)
    with pytest.raises(DataNotFoundError, match="no network, example.invalid not found"):
        load("cifar10", data_dir=tmp_path, download=True)
    assert builder.prepared == 0
    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    (tmp_path / "downloads" / "manual" / "cifar-10.tar.gz").write_bytes(b"")  # the only file is here: no network needed
    assert tfds.prepare(SPECS["cifar10"], tmp_path) == tmp_path / "cifar10" / "3.0.2"
    assert builder.prepared == 1


def test_download_builds_once_and_then_reads_what_it_built(tmp_path, monkeypatch):
    x, y = images(4, (32, 32, 3)), np.arange(4)
    elsewhere = write(tmp_path / "made", "cifar10", "3.0.2", {"train": (x, y), "test": (x, y)}, (32, 32, 3), 10)

    class Builder(FakeBuilder):
        def download_and_prepare(self, *, file_format):
            shutil.copytree(elsewhere, self.data_dir)
            super().download_and_prepare(file_format=file_format)

    builder = Builder(tmp_path / "data" / "cifar10" / "3.0.2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("tensorflow_datasets.builder", lambda name, **kwargs: builder)
    monkeypatch.setattr("socket.getaddrinfo", lambda host, port: ["an address"])
    for _ in range(2):
        np.testing.assert_array_equal(load("cifar10", data_dir=tmp_path / "data", download=True).train_y, y)
    assert builder.prepared == 1
