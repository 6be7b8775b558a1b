"""Sums that neither order nor grouping changes, against fractions."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax.merge import _exact_sums as exact

DRAW = np.random.default_rng(5)
ADDENDS = (DRAW.normal(size=(40, 30)) * 10.0 ** DRAW.uniform(-9, 9, size=(40, 30))).astype(np.float32)


def summed(rows):
    sums = exact.nothing({"a": rows[0]})
    for row in rows:
        sums = exact.added(sums, {"a": row})
    return sums


def test_the_sum_is_that_of_fractions_and_is_rounded_once():
    sums = summed(ADDENDS)
    for place in range(ADDENDS.shape[1]):
        want = sum(map(Fraction, ADDENDS[:, place].tolist()))
        high, low = float(sums.high["a"][place]), float(sums.low["a"][place])
        assert Fraction(high) + Fraction(low) == want
        assert high == float(want)  # a fraction's nearest float64
    naive = np.add.accumulate(ADDENDS)[-1]  # one after the other in float32, which is not that
    assert np.any(naive != exact.rounded(sums, {"a": ADDENDS[0]})["a"])


@pytest.mark.parametrize("seed", range(5))
def test_order_and_grouping_change_no_bit(seed):
    want = summed(ADDENDS)
    draw = np.random.default_rng(seed)
    rows = draw.permutation(ADDENDS)
    pieces = np.split(rows, np.sort(draw.integers(1, len(rows), 4)))
    regions = [summed(piece) for piece in pieces if len(piece)]
    got = regions[-1]
    for region in regions[:-1]:
        got = exact.joined(region, got)
    np.testing.assert_array_equal(got.high["a"], want.high["a"])
    np.testing.assert_array_equal(got.low["a"], want.low["a"])


def test_what_is_beyond_a_type_is_not_finite_and_warns_of_nothing():
    most = np.finfo(np.float32).max
    sums = summed(np.full((2, 1), most, np.float32))
    assert not jnp.isfinite(exact.rounded(sums, {"a": np.zeros(1, np.float32)})["a"]).any()
    assert np.isnan(summed(np.full((2, 1), np.inf)).low["a"]).all()
