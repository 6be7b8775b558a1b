"""Sums that are exact, so that neither order nor grouping changes a bit: each number is held as two of float64.

The second one holds what rounding takes from the first: Knuth's two-sum, and pairs as in Dekker, Numerische Mathematik
18 (1971). For addends of float32 nothing is lost while the largest sum and the smallest nonzero addend of an entry are
less than 2^80 apart, for float64 less than 2^50; beyond that the relative error is about 2^-104.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


class Sums(NamedTuple):
    """A sum of trees: `high` + `low`, trees of float64 on the host, with `high` the sum's nearest float64."""

    high: PyTree
    low: PyTree


def nothing(like: PyTree) -> Sums:
    """Begin a sum of trees like this one: zeros in the shapes of its arrays."""
    zeros = lambda: jax.tree.map(lambda leaf: np.zeros(leaf.shape), like)  # noqa: E731
    return Sums(zeros(), zeros())


def added(sums: Sums, tree: PyTree) -> Sums:
    """Add one tree to a sum."""
    with np.errstate(all="ignore"):  # what is not finite stays so, and is refused where it is used
        pairs = jax.tree.map(_added, sums.high, sums.low, tree)
    return Sums(*jax.tree.transpose(jax.tree.structure(tree), jax.tree.structure((0, 0)), pairs))


def removed(sums: Sums, tree: PyTree) -> Sums:
    """Take one tree out of a sum again: where nothing was lost, it is the sum of the others, bit for bit."""
    return added(sums, jax.tree.map(np.negative, tree))


def joined(first: Sums, second: Sums) -> Sums:
    """Add two sums."""
    return added(added(first, second.high), second.low)


def rounded(sums: Sums, like: PyTree) -> PyTree:
    """Round a sum, once, to the types of a tree of arrays or of their shapes."""
    with np.errstate(all="ignore"):
        return jax.tree.map(lambda high, leaf: jnp.asarray(np.asarray(high, leaf.dtype)), sums.high, like)


def _added(high: np.ndarray, low: np.ndarray, addend: Any) -> tuple[np.ndarray, np.ndarray]:
    rough, lost = _two_sum(high, np.asarray(addend, np.float64))
    return _two_sum(rough, np.asarray(low + lost))


def _two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest float64 of a + b, and a + b less that, exactly."""
    total = np.asarray(a + b)
    part = total - a
    return total, np.asarray((a - (total - part)) + (b - part))
