"""Starting parameters made for what is read from them without training: the same for all clients, and free of data."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def designed(params: PyTree) -> PyTree:
    """Design a start's convolutions for linear heads on its features (`merge.analytic`); dense layers lose their mean.

    The first convolution's filters become two-dimensional cosines of lowest frequency (the DCT-II basis, the same for
    every input channel) without the constant one, each once with either sign: after a ReLU the features are edges of
    either direction, and not random mixtures of them. Every later filter adds three of the four lowest cosines, of
    channels drawn at random from a fixed seed, so that a feature sees two or three things together. A filter, or a
    dense layer's column, that had a mean would measure little more than the sum of its inputs, which are all positive.

    Args:
        params: parameters from `Network.init` of a network whose first convolution is called conv1.

    Raises:
        ValueError: there is no conv1.

    Example:
        >>> import jax, fedfisher_jax as ff
        >>> network = ff.models.build("lenet", (28, 28, 1), 10)
        >>> start = ff.models.designed(network.init(jax.random.key(0)))
        >>> bool(abs(start["conv2"]["kernel"].mean((0, 1, 2))).max() < 1e-7)  # to rounding
        True
    """
    flat, treedef = jax.tree.flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    if "conv1/kernel" not in paths:
        raise ValueError("start: got a model without conv1, expected lenet or cnn for the designed start")
    random = np.random.default_rng(0)

    def one(path: str, leaf: Any) -> Any:
        if jnp.ndim(leaf) < 2:
            return leaf
        if jnp.ndim(leaf) == 2:
            return leaf - leaf.mean(0)
        filters = _edges(leaf.shape) if path == "conv1/kernel" else _mixtures(leaf.shape, random)
        return jnp.asarray(filters / np.sqrt(3 * np.mean(np.sum(filters**2, (0, 1, 2)))), leaf.dtype)

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


def _edges(shape: tuple[int, ...]) -> np.ndarray:
    """Fill a kernel [H, W, I, O] with cosines of lowest frequency but the constant, each with either sign."""
    height, width, channels, count = shape
    waves = _waves(height, width)[1:]
    signed = [sign * waves[n % len(waves)] for n in range(-(-count // 2)) for sign in (1, -1)]
    return np.repeat(np.stack(signed[:count], -1)[:, :, None], channels, axis=2)


def _mixtures(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Fill a kernel [H, W, I, O] with sums of three signed cosines of single channels, without mean."""
    height, width, channels, count = shape
    waves = _waves(height, width)[:4]
    kernel = np.zeros(shape)
    for number in range(count):
        for choice in random.choice(len(waves) * channels, min(3, len(waves) * channels), replace=False):
            wave, channel = divmod(int(choice), channels)
            kernel[:, :, channel, number] += random.choice([-1, 1]) * waves[wave]
    return kernel - kernel.mean((0, 1, 2))


def _waves(height: int, width: int) -> list[np.ndarray]:
    """The two-dimensional cosines [H, W], lowest frequencies first."""
    rows, columns = cosines(height), cosines(width)
    order = sorted(itertools.product(range(height), range(width)), key=lambda ij: (ij[0] ** 2 + ij[1] ** 2, ij))
    return [np.outer(rows[i], columns[j]) for i, j in order]
