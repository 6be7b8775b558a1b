"""The discrete Gaussian against its exact probabilities."""

import numpy as np
import pytest
from scipy import special, stats

pytest.importorskip("cryptography", reason="secure sums need pip install 'fedfisher-jax[privacy]'")

from fedfisher_jax.privacy import noise  # noqa: E402
from fedfisher_jax.privacy._discrete_gaussian import below_from, discrete_gaussian  # noqa: E402

MANY = 20_000


def drawn(variance, number=1, many=MANY):
    below = below_from(bytes([number]) * 32)
    return np.asarray([discrete_gaussian(variance, below) for _ in range(many)], object)


def probabilities(variance, most):
    """P(x) for x from −most to most; what lies beyond is nothing in float64."""
    weights = np.exp(-(np.arange(-most, most + 1.0) ** 2) / (2 * variance))
    return weights / weights.sum()


def fit(found, variance):
    """The p-value of the numbers of draws of each integer, tails of fewer than ten put together."""
    most = 30
    expected = probabilities(variance, most) * len(found)
    counts = np.bincount((found + most).astype(int), minlength=2 * most + 1)
    inside = np.flatnonzero(expected >= 10)
    first, last = inside[0], inside[-1] + 1
    parts = [slice(0, first), *(slice(n, n + 1) for n in range(first, last)), slice(last, None)]
    together = [[array[part].sum() for part in parts] for array in (counts, expected)]
    return stats.chisquare(*together).pvalue


@pytest.mark.parametrize("variance", [1, 7])
def test_every_integer_is_as_frequent_as_it_should_be(variance):
    found = drawn(variance)
    assert fit(found, variance) > 1e-3
    assert fit(found, 1.1 * variance) < 1e-6  # the test can fail
    rounded = np.round(np.random.default_rng(0).normal(0, np.sqrt(variance), MANY))
    assert fit(rounded, variance) < 1e-3 or variance > 1  # a rounded Gaussian of σ = 1 is another one


def test_of_a_large_variance_mean_variance_and_tail_are_right_and_the_last_bits_uniform():
    variance = 3 * 2**81 + 1  # beyond 64 bits, as in a secure sum
    found = drawn(variance, many=6000)
    scaled = np.asarray(found / variance**0.5, float)
    assert stats.kstest(scaled, "norm").pvalue > 1e-3
    assert stats.kstest(1.06 * scaled, "norm").pvalue < 0.05  # the test can fail
    assert abs(scaled.mean()) < 4 / np.sqrt(len(found))
    assert abs(scaled.var() - 1) < 4 * np.sqrt(2 / len(found))
    assert abs((np.abs(scaled) > 2).sum() - 6000 * 2 * special.ndtr(-2)) < 4 * np.sqrt(6000 * 0.0455)
    low = np.asarray([int(x) & 255 for x in found])  # floating-point numbers of this size would end in zeros
    assert stats.chisquare(np.bincount(low, minlength=256)).pvalue > 1e-3


def test_the_same_key_draws_the_same_and_another_one_others():
    assert list(drawn(50, 1, 40)) == list(drawn(50, 1, 40)) != list(drawn(50, 2, 40))


def test_its_promise_is_that_of_the_gaussian_mechanism():
    """δ of the discrete mechanism by adding up (theorem 7 there), against the formula for real numbers."""
    for sigma, shift in ((50, 50), (40, 100)):
        at = np.arange(-60 * sigma, 60 * sigma + 1.0)
        log = -(at**2) / (2 * sigma**2)
        total = special.logsumexp(log)
        for epsilon in (0.5, 2.0):
            gap = (2 * at * shift - shift**2) / (2 * sigma**2)  # log of the ratio of both probabilities at x
            kept = np.exp(log - total) * np.maximum(1 - np.exp(np.minimum(epsilon + gap, 0)), 0)
            assert kept.sum() == pytest.approx(noise.delta_of(epsilon, sigma / shift), rel=2e-3)


def test_what_is_no_variance_is_refused():
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="variance: got"):
            discrete_gaussian(wrong, below_from(bytes(32)))
