"""What one example moves in the integers of a secure sum, by brute force, against what noise is made for."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="secure sums need pip install 'fedfisher-jax[privacy]'")

from test_example_noise import C, D, measured, neighbours, worst_pair  # noqa: E402

from fedfisher_jax.privacy import _fixed_point as fixed_point  # noqa: E402
from fedfisher_jax.privacy import _integer_noise as integer_noise  # noqa: E402
from fedfisher_jax.privacy import example_noise  # noqa: E402

CLIENTS = 3
PROMISE = example_noise.promise(2.0, 1e-5, clip_features=0.7, trust="distributed", sharers=2)


def test_no_neighbours_integers_are_farther_apart_than_counted_and_rounding_matters(monkeypatch):
    """With steps of 1/16, and 1/2 for classes, in place of 2⁻⁵⁰ or so: then rounding moves a third of what one may."""
    monkeypatch.setattr(integer_noise, "LEAST", 1)
    like = {"moments": measured(np.zeros((5, D)), np.zeros(5, int)).statistics, "weight": np.asarray(5.0)}
    share = integer_noise.share_of(PROMISE, [[57, 57, 60, 3]] * CLIENTS, CLIENTS, like)
    steps = np.ldexp(1.0, -share.bits)
    np.testing.assert_array_equal(np.unique(steps), [2.0**-58, 2.0**-4, 2.0**-1])
    first, second, third = example_noise.SHARES
    inverse = np.repeat([first**0.5 / 0.7**2, second**0.5 / 0.7, third**0.5, 0], [D * D, D * C, C, 1])
    draw, gaps = np.random.default_rng(0), []
    for _ in range(200):
        integers = []
        for x, y in neighbours(draw, worst_pair()):
            sums = [5 * np.asarray(array).ravel() for array in dataclasses.astuple(measured(x, y).statistics)[:3]]
            vector = np.concatenate([*sums, [5.0]])
            integers.append(fixed_point.encode(vector, CLIENTS, share.bits).view(np.int64))
        gaps.append(np.linalg.norm((integers[0] - integers[1]) * steps * inverse))
    stds = np.sqrt(np.asarray(share.variances, float)) * steps  # rounded up to an integer variance
    moved = stds * inverse * np.sqrt(PROMISE.sharers) / PROMISE.noise_multiplier
    assert moved[-1] == 0 and share.variances[-1] == 0  # the number of examples is public
    assert example_noise.sensitivity() < max(gaps) <= moved[:-1].min()
    assert moved[:-1].min() < 1.5 * example_noise.sensitivity()
