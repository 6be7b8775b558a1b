"""Parameter trees in files: a leaf by its path, a whole tree by its fingerprint."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..curvature._leaves import Leaf as Leaf
from ..curvature._leaves import leaves as leaves

PyTree = Any


def fingerprint(params: PyTree) -> str:
    """Return the SHA-256 of paths, shapes, types and numbers of a tree: equal for equal models, in hexadecimal.

    Example:
        >>> import numpy as np
        >>> from fedfisher_jax import payload
        >>> one, two = {"w": np.ones(2, np.float32)}, {"w": np.array([1, 1.5], np.float32)}
        >>> len(payload.fingerprint(one)), payload.fingerprint(one) == payload.fingerprint(two)
        (64, False)
    """
    digest = hashlib.sha256()
    for leaf, value in zip(leaves(params), jax.tree.leaves(params), strict=True):
        digest.update(f"{leaf.path}\0{leaf.shape}\0{leaf.dtype}\0".encode())
        digest.update(little_endian(np.asarray(value)).tobytes())
    return digest.hexdigest()


def little_endian(array: np.ndarray) -> np.ndarray:
    """Make the array contiguous and in the byte order of files."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)


def nested(described: Sequence[Leaf], values: Sequence[Any]) -> PyTree:
    """Make nested dictionaries from paths and values.

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
