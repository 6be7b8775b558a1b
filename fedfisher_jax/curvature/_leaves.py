"""The leaves of a parameter tree by their paths."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from .._trees import paths

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
        ValueError: two leaves have one path, or there is no leaf, or one is no array of floating-point numbers.
    """
    found = []
    for path, leaf in zip(paths(params), jax.tree.leaves(params), strict=True):
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if isinstance(dtype, str) or not jax.numpy.issubdtype(dtype, jax.numpy.floating):
            raise ValueError(f"params: got {path} of {dtype}, expected an array of floating-point numbers")
        found.append(Leaf(path, tuple(int(size) for size in np.shape(leaf)), np.dtype(dtype).name))
    return tuple(found)
