"""What is done to whole parameter trees all over the library: scaling, means over clients, types that sums need."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def scaled(factor: Any, tree: PyTree) -> PyTree:
    """Multiply every leaf of a tree by a factor, in the leaf's own type."""
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, tree)


def difference(end: PyTree, start: PyTree) -> PyTree:
    """Subtract the tree `start` from the tree `end`, leaf by leaf."""
    return jax.tree.map(jnp.subtract, end, start)


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Stack trees of equal structure into one, along a new leading axis of clients."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def pick(stacked: PyTree, where: Any) -> PyTree:
    """Take one client's part, or that of many, of a tree whose leaves have a leading axis of clients."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[where], stacked)


def weighted_sum(weights: Any, stacked: PyTree) -> PyTree:
    """Add up weights_i · tree_i over the leading axis of clients, in the tree's own types."""
    return jax.tree.map(lambda leaf: jnp.tensordot(jnp.asarray(weights, leaf.dtype), leaf, axes=1), stacked)


def wide(dtype: Any) -> Any:
    """Return the type in which many numbers of a type are added up: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def widened(tree: PyTree) -> PyTree:
    """Convert the floating-point leaves of a tree to `wide` types."""

    def one(leaf: Any) -> Any:
        dtype = jnp.result_type(leaf)
        return jnp.asarray(leaf, wide(dtype)) if jnp.issubdtype(dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)


def in_types_of(tree: PyTree, like: PyTree) -> PyTree:
    """Convert a tree to the types of `like`, or leave it as it is where `like` has another structure."""
    if jax.tree.structure(tree) != jax.tree.structure(like):
        return tree
    return jax.tree.map(lambda new, old: new.astype(jnp.result_type(old)), tree, like)
