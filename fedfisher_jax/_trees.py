"""What is done to whole parameter trees all over the library: scaling, means over clients, types that sums need."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._compat import Tracer

PyTree = Any


def scaled(factor: Any, tree: PyTree) -> PyTree:
    """Multiply every leaf of a tree by a factor, in the leaf's own type."""
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, tree)


def difference(end: PyTree, start: PyTree) -> PyTree:
    """Subtract the tree `start` from the tree `end`, leaf by leaf."""
    return jax.tree.map(jnp.subtract, end, start)


def clipped(tree: PyTree, longest: Any) -> tuple[PyTree, jax.Array]:
    """Shorten a tree whose l2 norm is above `longest` to that norm; also give the factor, at most 1."""
    norm = optax.tree.norm(tree)
    factor = jnp.where(norm > longest, longest / jnp.where(norm > longest, norm, 1), 1)
    return scaled(factor, tree), factor


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Stack trees of equal structure into one, along a new leading axis of clients."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def pick(stacked: PyTree, where: Any) -> PyTree:
    """Take one client's part, or that of many, of a tree whose leaves have a leading axis of clients."""
    if isinstance(where, slice) or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((stacked, where))):
        return _taken(stacked, where)
    where = where if isinstance(where, jax.Array) else np.asarray(where)
    return _taken_at_once(stacked, np.flatnonzero(where) if where.dtype == bool else where)


def _taken(stacked: PyTree, where: Any) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[where], stacked)


_taken_at_once = jax.jit(_taken)  # or each leaf's shape is compiled for itself, which people wait for


def array(name: str, value: Any) -> jax.Array:
    """Make an array, in which no integer wraps where JAX's integers have fewer bits than numpy's.

    Raises:
        ValueError: an integer that would, by the argument's name.
    """
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value)):
        return jnp.asarray(value)  # of JAX's types already, and perhaps traced
    found = jnp.asarray(value if hasattr(value, "dtype") else np.asarray(value))
    if not jnp.issubdtype(found.dtype, jnp.integer):
        return found
    given, held = np.asarray(value), np.iinfo(found.dtype)
    for number in (given.min(), given.max()) if given.size else ():
        if not held.min <= number <= held.max:
            raise ValueError(f"{name}: got {number}, expected integers from {held.min} to {held.max} ({held.dtype})")
    return found


def arrays(name: str, x: PyTree) -> PyTree:
    """Make arrays of inputs: of one, or of each in a dictionary, a tuple or another tree; a list is one array.

    Raises:
        ValueError: as `array`.
    """
    if jax.tree_util.all_leaves([x]) or isinstance(x, list):
        return array(name, x)
    return jax.tree.map(partial(array, name), x, is_leaf=lambda leaf: isinstance(leaf, list))


def from_numbered(treedef: Any, by_number: Mapping[int, Any]) -> PyTree:
    """Make a tree of its leaves by their numbers, 0 to their number − 1."""
    return treedef.unflatten([by_number[number] for number in range(len(by_number))])


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """List the leaves of a tree with their paths, keys joined by "/"."""
    keyed = jax.tree.leaves_with_path(tree)
    return [(jax.tree_util.keystr(keys, simple=True, separator="/"), leaf) for keys, leaf in keyed]


def paths(params: PyTree) -> list[str]:
    """List the paths of a parameter tree's leaves, their keys joined by "/", in order.

    Raises:
        ValueError: two leaves have one path, or there is no leaf.
    """
    found = [path for path, _ in named_leaves(params)]
    if not found or len(set(found)) != len(found):
        raise ValueError("params: expected leaves with different paths, at least one")
    return found


def count_rows(name: str, x: PyTree) -> int:
    """Count the examples of inputs, which are an array [n, ...] or a tree of such.

    Raises:
        ValueError: no example, or arrays for different numbers of them.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
    if not shapes or any(not shape or not shape[0] for shape in shapes):
        given = f"an array of shape {shapes[0]}" if len(shapes) == 1 else f"arrays of shapes {shapes}"
        raise ValueError(f"{name}: got {given}, expected at least one example")
    if len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"{name}: got arrays of shapes {shapes}, expected one common number of examples")
    return shapes[0][0]


def outline(x: PyTree, count: int) -> PyTree:
    """Shapes and types of inputs like x [n, ...], an array or a tree of such, for `count` examples."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype), x)


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
