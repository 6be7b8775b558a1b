"""Parameter trees in files: a leaf by its path, a whole tree by its fingerprint."""

import hashlib
import math
from collections.abc import Sequence
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
        """Its number of entries."""
        return math.prod(self.shape)


def leaves(params: PyTree) -> tuple[Leaf, ...]:
    """The leaves of a tree of arrays (or of shapes), in order.

    Raises:
        ValueError: two leaves have one path, or there is no leaf, or one is not of floating-point numbers.
    """
    found = []
    for keys, leaf in jax.tree.leaves_with_path(params):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        dtype = np.dtype(leaf.dtype)
        if not jax.numpy.issubdtype(dtype, jax.numpy.floating):
            raise ValueError(f"params: {path} is of {dtype}, expected floating-point numbers")
        found.append(Leaf(path, tuple(int(size) for size in np.shape(leaf)), dtype.name))
    if not found or len({leaf.path for leaf in found}) != len(found):
        raise ValueError("params: expected leaves with different paths, at least one")
    return tuple(found)


def fingerprint(params: PyTree) -> str:
    """SHA-256 of paths, shapes, types and numbers of a tree: equal for equal models, in hexadecimal."""
    digest = hashlib.sha256()
    for leaf, value in zip(leaves(params), jax.tree.leaves(params), strict=True):
        digest.update(f"{leaf.path}\0{leaf.shape}\0{leaf.dtype}\0".encode())
        digest.update(little_endian(np.asarray(value)).tobytes())
    return digest.hexdigest()


def little_endian(array: np.ndarray) -> np.ndarray:
    """The array contiguous and in the byte order of files."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)


def nested(described: Sequence[Leaf], values: Sequence[Any]) -> PyTree:
    """Nested dictionaries from paths and values.

    Raises:
        ValueError: the tree that was written was not of nested dictionaries, so that its order would be lost.
    """
    tree: dict[str, Any] = {}
    for leaf, value in zip(described, values, strict=True):
        *outer, last = leaf.path.split("/")
        place = tree
        for key in outer:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise ValueError(f"params: {leaf.path} lies under another parameter")
        if last in place:
            raise ValueError(f"params: {leaf.path} is there twice, or lies over another parameter")
        place[last] = value
    if [leaf.path for leaf in leaves(jax.tree.map(np.asarray, tree))] != [leaf.path for leaf in described]:
        raise ValueError("params: not a tree of nested dictionaries; give the starting model's tree")
    return tree
