"""Audits of promised privacy: what an attacker really finds out over many runs of a mechanism."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from fedfisher_jax.privacy import noise


def ends(said, runs, chance):
    """(lower end of the rate of right answers, upper end of that of wrong ones), by Clopper and Pearson.

    Args:
        said: How often the attacker said "the first" where it was, and where it was not.
        runs: Number of times that each was there.
        chance: Probability that an end is wrong.
    """
    right, wrong = said
    return stats.beta.ppf(chance, right, runs - right + 1), stats.beta.ppf(1 - chance, wrong + 1, runs - wrong)


def gaussian(pair, noisy, scaled, delta, runs=1000):
    """A lower end, but for one in a million, of the ε that an attacker sees who knows all but which data set it was.

    The attacker projects what is released on the data sets' difference, in the mechanism's scale, and says "the first"
    above the middle, fixed beforehand. The ends of both rates give one of μ = Φ⁻¹(TPR) − Φ⁻¹(FPR), which a Gaussian
    mechanism bounds by 1/σ (Dong, Roth and Su, arXiv 1905.02383).

    Args:
        pair: Payloads without noise of two data sets that differ in one example, the canary.
        noisy: (payload, draw) → the payload with noise, of draw: shape → standard normal numbers.
        scaled: Payload → what is released, in the mechanism's scale, as a vector.
        delta: The promise's.
        runs: Number of runs of the mechanism for each data set.
    """
    first, second = map(scaled, pair)
    direction = (first - second) / np.linalg.norm(first - second)
    middle = direction @ (first + second) / 2

    @jax.jit
    @jax.vmap
    def answers(key):
        keys = iter(jax.random.split(key, 16))
        draw = lambda shape: jax.random.normal(next(keys), shape, float)  # noqa: E731
        return jnp.stack([direction @ scaled(noisy(one, draw)) > middle for one in pair])

    said = np.asarray(answers(jax.random.split(jax.random.key(0), runs))).sum(0)
    right, wrong = ends(said, runs, 5e-7)
    mu = stats.norm.ppf(right) - stats.norm.ppf(wrong)
    return noise.epsilon_of(1 / mu, delta) if mu > 0 else 0.0
