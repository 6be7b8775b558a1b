"""Starting parameters made for what is read from them without training: the same for all clients, and free of data."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def designed(params: PyTree) -> PyTree:
    """Design a start's convolutions for linear heads on its features (`merge.analytic`); dense layers stay.

    The first convolution's filters become the two-dimensional cosines of lowest frequency (the DCT-II basis, in the
    order of JPEG's zigzag, the same for every input channel), so that its features are edges and means of patches and
    not random mixtures of them. Later ones stay random, but each filter loses its mean: after a ReLU all features are
    positive, and a filter that has a mean measures little more than their sum. Norms are those of the usual start.

    Args:
        params: parameters from `Network.init` of a network whose first convolution is called conv1.

    Raises:
        ValueError: there is no conv1.

    Example:
        >>> import jax, fedfisher_jax as ff
        >>> network = ff.models.build("lenet", (28, 28, 1), 10)
        >>> start = ff.models.designed(network.init(jax.random.key(0)))
        >>> bool(abs(start["conv2"]["kernel"].sum((0, 1, 2))).max() < 1e-6)
        True
    """
    flat, treedef = jax.tree.flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    if "conv1/kernel" not in paths:
        raise ValueError("start: got a model without conv1, expected lenet or cnn for the designed start")

    def one(path: str, leaf: Any) -> Any:
        if path == "conv1/kernel":
            return jnp.asarray(_filters(leaf.shape) / math.sqrt(3 * leaf.shape[2]), leaf.dtype)
        return leaf - leaf.mean((0, 1, 2)) if jnp.ndim(leaf) == 4 else leaf

    return treedef.unflatten([one(path, leaf) for path, (_, leaf) in zip(paths, flat, strict=True)])


STARTS: Mapping[str, Callable[[PyTree], PyTree]] = {"usual": lambda params: params, "designed": designed}
"""What is made of the parameters of `Network.init`, by name."""


def by_frequency(height: int, width: int) -> list[tuple[int, int]]:
    """List pairs of frequencies, lowest sums first."""
    return sorted(((i, j) for i in range(height) for j in range(width)), key=lambda ij: (sum(ij), ij))


def cosines(size: int) -> np.ndarray:
    """The DCT-II basis [frequency, place], orthonormal."""
    places, frequencies = np.arange(size) + 0.5, np.arange(size)[:, None]
    basis = np.cos(np.pi * frequencies * places / size) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def _filters(shape: tuple[int, ...]) -> np.ndarray:
    """Fill a kernel [H, W, I, O] with orthonormal cosines; beyond H·W of them signs alternate."""
    height, width, channels, count = shape
    rows, columns = cosines(height), cosines(width)
    order = by_frequency(height, width)
    filters = [
        np.outer(rows[i], columns[j]) * (-1) ** turn for turn in range(-(-count // len(order))) for i, j in order
    ]
    return np.repeat(np.stack(filters[:count], -1)[:, :, None], channels, axis=2)
