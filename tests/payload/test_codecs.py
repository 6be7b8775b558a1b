import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import normal, psd

from fedfisher_jax.payload import Cholesky, Eigen, Raw, Root, Singular, Uniform
from fedfisher_jax.payload import _codecs as codecs
from fedfisher_jax.payload._codecs_json import from_json, to_json

FINE = Uniform(20), Uniform(20, signed=False)
EVERY = {
    "raw": Raw(),
    "uniform": Uniform(7),
    "positive": Uniform(7, signed=False),
    "stochastic": Uniform(7, stochastic=True),
    "root": Root(Uniform(7, signed=False)),
    "cholesky": Cholesky(Uniform(7)),
    "cholesky raw": Cholesky(Raw()),
    "eigen": Eigen(3, Uniform(6), Root(Uniform(9, signed=False))),
    "eigen raw": Eigen(30, Raw(), Raw(), tail=False),
    "singular": Singular(3, Uniform(8)),
}
semidefinite = {name: codec for name, codec in EVERY.items() if name.startswith(("cholesky", "eigen"))}


def through(codec, array, seed=0):
    """Encode, join, split and decode, as a file does; counts bits on the way."""
    parts = codecs.encode(codec, array, np.random.default_rng(seed))
    announced = codecs.layout(codec, array.shape, array.dtype)
    assert {name: (part.shape, part.dtype) for name, part in parts.items()} == announced
    joined = codecs.join(codec, parts)
    assert (joined.shape, joined.dtype) == codecs.joined_layout(codec, array.shape, array.dtype)
    assert codecs.bits(codec, array.shape, array.dtype) == 8 * joined.nbytes
    result = codecs.decode(codec, codecs.split(codec, joined, array.shape, array.dtype), array.shape, array.dtype)
    assert result.shape == array.shape and result.dtype == array.dtype
    return result


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_bits_counted_are_bytes_written(name, dtype, batch):
    array = np.stack([np.asarray(psd(i, 5), dtype) for i in range(math.prod(batch))]).reshape(*batch, 5, 5)
    array = abs(array) if name in ("positive", "root") else array
    through(EVERY[name], array)


@settings(deadline=None, max_examples=60)
@given(
    bits=st.integers(1, 16),
    signed=st.booleans(),
    stochastic=st.booleans(),
    values=st.lists(st.floats(-1e6, 1e6, width=32), max_size=30),
)
def test_uniform_stays_within_its_error(bits, signed, stochastic, values):
    array = np.array(values, np.float32)
    array = array if signed else abs(array)
    restored = through(Uniform(bits, signed, stochastic), array)
    largest = np.abs(array).max(initial=0)
    allowed = largest / (2**bits - 1) * (1 if stochastic else 0.5)
    assert np.abs(restored.astype(float) - array).max(initial=0) <= allowed * (1 + 1e-6) + 1e-37
    assert (restored >= 0).all() or signed


def test_uniform_is_the_released_formula():
    """round((2^s − 1) v/m)·m/(2^s − 1), from papers and by hand; a second pass changes nothing."""
    array = np.array([-1.0, -0.4, 0.0, 0.26, 0.9])
    expected = np.array([-3, -1, 0, 1, 3]) / 3  # s = 2
    np.testing.assert_allclose(through(Uniform(2), array), expected, rtol=1e-12)
    np.testing.assert_allclose(through(Uniform(2), expected), expected, rtol=1e-12)


def test_stochastic_rounding_is_unbiased():
    array = np.array([0.1, -0.37, 0.5, 1.0])
    draws = np.stack([through(Uniform(2, stochastic=True), array, seed) for seed in range(2000)])
    error = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - array) <= 4.5 * error + 1e-12).all()
    assert np.abs(through(Uniform(2), array) - array)[0] > 0.05  # where the nearest level is off, always to one side


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(sorted(semidefinite)), seed=st.integers(0, 10**6), n=st.integers(1, 9), rank=st.integers(1, 9)
)
def test_semidefinite_stays_semidefinite(name, seed, n, rank):
    restored = through(semidefinite[name], np.asarray(psd(seed, n, rank=rank), np.float64))
    np.testing.assert_array_equal(restored, restored.T)
    values = np.linalg.eigvalsh(restored)
    assert values[0] >= -1e-12 * max(values[-1], 1e-300)


@pytest.mark.parametrize(
    "codec", [Cholesky(FINE[0]), Eigen(9, *FINE), Singular(9, FINE[0])], ids=lambda c: type(c).__name__
)
def test_fine_factors_are_exact(codec):
    array = np.asarray(psd(3, 9), np.float64)
    np.testing.assert_allclose(through(codec, array), array, atol=1e-4 * array.max())


def test_eigen_is_the_best_of_its_rank_and_keeps_the_trace():
    array = np.asarray(psd(4, 8), np.float64)
    values = np.linalg.eigvalsh(array)[::-1]
    plain, tail = (through(Eigen(3, Raw(), Raw(), tail=t), array) for t in (False, True))
    assert np.linalg.norm(plain - array) == pytest.approx(np.linalg.norm(values[3:]), rel=1e-9)
    assert np.trace(tail) == pytest.approx(np.trace(array), rel=1e-12)
    assert np.linalg.norm(tail - array) == pytest.approx(np.linalg.norm(values[3:] - values[3:].mean()), rel=1e-9)


def test_root_keeps_small_entries():
    array = np.array([1.0, 1e-4, 1e-5], np.float32)
    root, plain = (through(codec, array) for codec in (Root(Uniform(8, signed=False)), Uniform(8, signed=False)))
    assert root[1] > 0 and plain[1] == 0


@pytest.mark.parametrize("codec", EVERY.values(), ids=EVERY)
def test_json_round_trip(codec):
    assert from_json(to_json(codec)) == codec


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "expected a codec"),
        ({"codec": "pickle"}, "expected a codec"),
        ({"codec": "uniform", "bits": 8, "signed": True}, "expected uniform with"),
        ({"codec": "uniform", "bits": 31, "signed": True, "stochastic": False}, "bits"),
        ({"codec": "uniform", "bits": 0, "signed": True, "stochastic": False}, "bits"),
        ({"codec": "uniform", "bits": True, "signed": True, "stochastic": False}, "bits"),
        ({"codec": "uniform", "bits": 8.0, "signed": True, "stochastic": False}, "bits"),
        ({"codec": "uniform", "bits": 8, "signed": 1, "stochastic": False}, "signed"),
        ({"codec": "singular", "rank": 2**30, "inner": {"codec": "raw"}}, "rank"),
        (to_json(Root(Root(Root(Root(Raw()))))), "deep"),
    ],
)
def test_json_that_is_no_codec(value, words):
    with pytest.raises(ValueError, match=words):
        from_json(value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": np.float32(np.nan)}, "scale"),
        ({"scale": np.float32(-1)}, "scale"),
        ({"codes": np.array([255], np.uint8)}, "codes"),
    ],
)
def test_parts_that_are_never_written(change, words):
    codec, array = Uniform(3), normal(0, 2).astype(np.float32)
    parts = codecs.encode(codec, array) | change
    with pytest.raises(ValueError, match=words):
        codecs.decode(codec, parts, (2,), np.float32)


def test_negative_eigenvalues_are_refused():
    codec = Eigen(2, Raw(), Raw())
    parts = codecs.encode(codec, np.asarray(psd(0, 3)))
    with pytest.raises(ValueError, match="eigenvalue"):
        codecs.decode(codec, parts | {"values": -parts["values"]}, (3, 3), np.float32)


def test_misuse():
    with pytest.raises(ValueError, match="sign"):
        codecs.encode(Uniform(3, signed=False), np.array([-1.0]))
    with pytest.raises(ValueError, match="square root"):
        codecs.encode(Root(Uniform(3)), np.array([-1.0]))
    with pytest.raises(ValueError, match="random"):
        codecs.encode(Uniform(3, stochastic=True), np.array([1.0]))
    with pytest.raises(ValueError, match="square matrix"):
        codecs.bits(Cholesky(Raw()), (3, 4), np.float32)


@pytest.mark.parametrize("codec", [Raw(), Root(Raw()), Uniform(8, signed=False), Root(Uniform(8, signed=False))])
def test_a_scalar_stays_an_array_without_axes(codec):
    found = through(codec, np.array(2.25, np.float32))
    assert isinstance(found, np.ndarray) and found.shape == () and found.dtype == np.float32
    np.testing.assert_allclose(found, 2.25, rtol=1e-6)
