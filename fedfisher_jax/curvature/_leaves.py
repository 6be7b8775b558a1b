"""The leaves of a parameter tree by their paths."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

PyTree = Any


class Leaf(NamedTuple):
    """One leaf of a parameter tree."""

    path: str  # keys joined by "/"
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """The number of the leaf's entries."""
        return math.prod(self.shape)


def leaves(params: PyTree) -> tuple[Leaf, ...]:
    """List the leaves of a tree of arrays (or of shapes), in order.

    Raises:
        ValueError: two leaves have one path, or there is no leaf, or one is not of floating-point numbers.
    """
    found = []
    for keys, leaf in jax.tree.leaves_with_path(params):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        dtype = np.dtype(leaf.dtype)
        if not jax.numpy.issubdtype(dtype, jax.numpy.floating):
            raise ValueError(f"params: got {path} of {dtype}, expected floating-point numbers")
        found.append(Leaf(path, tuple(int(size) for size in np.shape(leaf)), dtype.name))
    if not found or len({leaf.path for leaf in found}) != len(found):
        raise ValueError("params: expected leaves with different paths, at least one")
    return tuple(found)
