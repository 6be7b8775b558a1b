import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from fedfisher_jax.data import DataNotFoundError, load
from fedfisher_jax.data._idx import DEBIAN_FOLDER, FILES, parse

FASHION = Path(DEBIAN_FOLDER) / "fashion-mnist"


def encode(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def arrays(train=7, test=4, side=28):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n, side, side), dtype=np.uint8) for n in (train, test)]
    labels = [rng.integers(0, 10, n, dtype=np.uint8) for n in (train, test)]
    return dict(zip(FILES, (images[0], labels[0], images[1], labels[1]), strict=True))


def write(folder, contents, *, gzipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        data = content if isinstance(content, bytes) else encode(content)
        (folder / (f"{name}.gz" if gzipped else name)).write_bytes(gzip.compress(data) if gzipped else data)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_parse_inverts_encode(rank):
    array = np.random.default_rng(rank).integers(0, 256, (3, 2, 5, 4)[:rank], dtype=np.uint8)
    np.testing.assert_array_equal(parse(encode(array), "x"), array)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "x is not an idx file of unsigned bytes: it starts with nothing"),
        (b"\x89PNG\r\n", "x is not an idx file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "x is not an idx file of unsigned bytes"),
        (b"\0\0\x08\x03\0\0\0\x01", "x is truncated: 8 bytes, its header alone has 16"),
        (encode(np.zeros((2, 3), np.uint8))[:-1], "x is truncated or damaged: 17 bytes, its header says 18"),
        (encode(np.zeros((2, 3), np.uint8)) + b"!", "x is truncated or damaged: 19 bytes, its header says 18"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "x is truncated or damaged: 16 bytes"),
    ],
)
def test_parse_refuses_garbage(content, message):
    with pytest.raises(ValueError, match=message):
        parse(content, "x")


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("folder", ["", "mnist", "MNIST/raw"])
def test_mnist_is_found_under_data_dir_and_normalised(tmp_path, folder, gzipped):
    written = arrays()
    write(tmp_path / folder, written, gzipped=gzipped)
    data = load("mnist", data_dir=tmp_path)
    assert (data.name, data.num_classes, data.augment) == ("mnist", 10, False)
    assert data.train_x.shape == (7, 28, 28, 1) and data.train_x.dtype == np.float32
    expected = (written[FILES[2]][..., None] / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(data.test_x, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(data.train_y, written[FILES[1]])
    np.testing.assert_array_equal(data.test_y, written[FILES[3]])


def test_found_through_the_environment_by_its_own_folder_only(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDFISHER_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    write(tmp_path, arrays())  # files of *some* set, without the folder that says which
    with pytest.raises(DataNotFoundError):
        load("mnist")
    write(tmp_path / "mnist", arrays(train=9))
    assert len(load("mnist").train_x) == 9


def test_never_another_data_set(tmp_path):
    write(tmp_path / "fashion_mnist", arrays())
    with pytest.raises(DataNotFoundError):
        load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("changes", [{FILES[1]: np.zeros(8, np.uint8)}, {FILES[2]: np.zeros((4, 20, 28), np.uint8)}])
def test_files_that_do_not_fit_each_other_are_refused(tmp_path, changes):
    write(tmp_path, arrays() | changes)
    with pytest.raises(ValueError, match="expected one 28×28 image per label"):
        load("mnist", data_dir=tmp_path)


def test_damaged_gzip_is_refused(tmp_path):
    write(tmp_path, arrays(), gzipped=True)
    path = tmp_path / f"{FILES[0]}.gz"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"not gzip at all", whole[:40] + b"\0" * 40 + whole[80:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{FILES[0]}.gz is not a whole gzip file"):
            load("mnist", data_dir=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian():
    data = load("fashion_mnist")
    assert data.train_x.shape == (60000, 28, 28, 1) and data.test_x.shape == (10000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(data.train_y), np.full(10, 6000))
    np.testing.assert_array_equal(np.bincount(data.test_y), np.full(10, 1000))
    np.testing.assert_array_equal(data.test_y[:8], [9, 2, 1, 1, 6, 1, 4, 6])
    pixels = data.train_x * 0.3081 + 0.1307  # Fashion-MNIST's own mean and standard deviation: 0.2860 and 0.3530
    np.testing.assert_allclose(
        [pixels.mean(dtype=np.float64), pixels.std(dtype=np.float64)], [0.2860, 0.3530], atol=1e-4
    )
