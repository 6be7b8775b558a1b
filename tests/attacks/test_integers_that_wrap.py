"""Integers beyond what a reader casts them to are refused, or keep their value."""

import struct

import numpy as np
import pytest
from commands import refused

from fedfisher_jax import _likelihood as likelihood
from fedfisher_jax.data import load
from fedfisher_jax.data._idx import parse
from fedfisher_jax.silos import _silo_data as silo_data

X = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 60)
LABELS = {
    "plus 2**32": Y + 2**32,
    "minus 2**32": Y - 2**32,
    "plus 2**31": Y + 2**31,
    "plus 2**63": Y.astype(np.uint64) + np.uint64(2**63),
    "uint64 plus 2**40": Y.astype(np.uint64) + np.uint64(2**40),
    "uint32 plus 2**31": Y.astype(np.uint32) + np.uint32(2**31),
    "big endian": (Y + 2**32).astype(">i8"),
    "floats": Y + 2.0**32,
}


@pytest.fixture(autouse=True)
def in_a_new_folder(folder):
    """All of them work in files."""


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_wrap_into_classes(name):
    np.savez("d.npz", x=X, y=LABELS[name])
    for words in (("measure", "--epochs", 1, "--rule", "fedavg"), ("evaluate", "start.safetensors")):
        assert "d.npz: y: got" in refused(*words, "--data", "d.npz")
    np.savez("e.npz", train_x=X, train_y=LABELS[name], test_x=X, test_y=Y)
    with pytest.raises(ValueError, match=r"e\.npz: train_y: got"):
        load("e.npz")
    np.savez("e.npz", train_x=X, train_y=Y, test_x=X, test_y=LABELS[name])
    with pytest.raises(ValueError, match=r"e\.npz: test_y: got"):
        load("e.npz")
    if name != "floats":
        assert "--outputs" in refused("init", "--data", "d.npz", "--out", "other.safetensors")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint64, bool, ">i4"])
def test_labels_of_any_integer_type_are_labels(dtype):
    np.savez("d.npz", x=X, y=Y.astype(dtype))
    y = silo_data.targets_of("d", likelihood.categorical(), (60, 3), silo_data.read("d.npz", "train")[1])
    np.testing.assert_array_equal(y, Y.astype(dtype).astype(int))
    assert y.dtype == np.int32


@pytest.mark.parametrize("value", [3_000_000_000, -3_000_000_000, 2**40, 7])
@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_targets_to_regress_on_are_floats(value, dtype):
    np.savez("d.npz", x=X, y=np.full((60, 2), value, dtype))
    read = silo_data.read("d.npz", "train")[1]
    np.testing.assert_array_equal(np.asarray(read, np.float64), value)
    y = silo_data.targets_of("d", likelihood.gaussian(), (60, 2), read)
    assert y.dtype == np.float32 and (y == np.float32(value)).all()


def test_a_target_beyond_float32():
    np.savez("d.npz", x=X, y=np.full((60, 2), 1e300))
    with pytest.raises(ValueError, match="data: d: y: got inf"):
        silo_data.targets_of("d", likelihood.gaussian(), (60, 2), silo_data.read("d.npz", "train")[1])


def test_an_idx_header_whose_product_wraps():
    shape = (2**31, 2**31, 4)  # 2**64 bytes
    with pytest.raises(ValueError, match="truncated or damaged"):
        parse(b"\0\0\x08\x03" + struct.pack(">3I", *shape), "x")
    for shape in ((0, 2**32 - 1, 2**32 - 1), (1,) * 65):
        content = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + b"\0" * (0 not in shape)
        with pytest.raises(ValueError, match="which no array has"):
            parse(content, "x")
