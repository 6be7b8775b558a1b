"""Centres of what clients send that a minority can move only so far: of each number by itself, or of whole vectors."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PyTree = Any
STEPS, SMOOTHING = 50, 1e-6  # of Weiszfeld's iteration


def trimmed_mean(stacked: PyTree, cut: int) -> PyTree:
    """Average each coordinate without its `cut` smallest and largest values (Yin et al. 2018, arXiv 1803.01498).

    Args:
        stacked: trees along a leading axis of n > 2 cut clients.
        cut: how many values to leave out at either end.

    Raises:
        ValueError: a cut that leaves nothing, or is negative.
    """
    count = jax.tree.leaves(stacked)[0].shape[0]
    if not 0 <= 2 * cut < count:
        raise ValueError(f"cut: got {cut} of {count} clients, expected at least 0, and less than half of them")
    return jax.tree.map(lambda leaf: jnp.mean(jnp.sort(leaf, axis=0)[cut : leaf.shape[0] - cut], axis=0), stacked)


def coordinate_median(stacked: PyTree) -> PyTree:
    """Take the median of each coordinate over clients (Yin et al. 2018, arXiv 1803.01498).

    Args:
        stacked: trees along a leading axis of clients.
    """
    return jax.tree.map(lambda leaf: jnp.median(leaf, axis=0), stacked)


def geometric_median(
    vectors: Float[Array, "n d"], weight: Float[Array, " n"]
) -> tuple[Float[Array, " d"], Float[Array, " n"]]:
    """Find the point with the least weighted sum of distances, by Weiszfeld's smoothed steps.

    Pillutla et al. (2019), "Robust aggregation for federated learning", arXiv 1912.13445, algorithm 2.

    Args:
        vectors: [n, d].
        weight: [n], not negative.

    Returns:
        The point [d], and the weights [n] of which it is the mean: w_i / ‖v_i − point‖.
    """
    apart = lambda point: jnp.sqrt(jnp.sum((vectors - point) ** 2, axis=1))  # noqa: E731
    first = apart(jnp.median(vectors, axis=0))  # not the mean, which is where the farthest client wants it
    usual = jnp.median(first)
    least = SMOOTHING * jnp.where(usual > 0, usual, 1)

    def mean(by: jax.Array) -> jax.Array:
        return by @ vectors / jnp.sum(by)

    def step(_: Any, by: jax.Array) -> jax.Array:
        return weight / jnp.maximum(apart(mean(by)), least)

    by = jax.lax.fori_loop(0, STEPS, step, weight / jnp.maximum(first, least))
    return mean(by), by
