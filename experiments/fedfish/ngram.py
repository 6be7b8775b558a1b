"""Unigram and bigram models of text, fitted by counting: what a network must beat; and a small network of the kind.

All are `apply(params, x)`, so that `evaluate` scores them as any model; the counted ones have log-probabilities as
parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fedfisher_jax.models import Network


def fit_unigram(y: np.ndarray, vocab: int, smoothing: float = 1.0) -> Float[Array, " v"]:
    """Log-probability of each token, whatever stands before it.

    Args:
        y: int [n, T] tokens below `vocab`.
        vocab: number of different tokens, V.
        smoothing: added to every count; positive, so that no token is impossible.

    Raises:
        ValueError: an argument out of range.
    """
    counts = np.bincount(_checked("y", y, vocab, smoothing).ravel(), minlength=vocab) + smoothing
    return jnp.asarray(np.log(counts / counts.sum()), float)


def fit_bigram(x: np.ndarray, y: np.ndarray, vocab: int, smoothing: float = 1.0) -> Float[Array, "v v"]:
    """Log-probability [V, V] of the next token (column) after each token (row).

    Args:
        x: int [n, T] tokens below `vocab`.
        y: int [n, T], the token after each of `x`.
        vocab: number of different tokens, V.
        smoothing: how many examples the unigram is worth; after a token never seen it stands alone.

    Raises:
        ValueError: an argument out of range, or shapes that differ.
    """
    x, y = _checked("x", x, vocab, smoothing), _checked("y", y, vocab, smoothing)
    if x.shape != y.shape:
        raise ValueError(f"y: got shape {y.shape}, expected that of x, {x.shape}")
    pairs = np.bincount(x.ravel() * vocab + y.ravel(), minlength=vocab**2).reshape(vocab, vocab)
    prior = np.exp(np.asarray(fit_unigram(y, vocab)))
    return jnp.asarray(np.log((pairs + smoothing * prior) / (pairs.sum(1, keepdims=True) + smoothing)), float)


def unigram(params: Float[Array, " v"], x: Int[Array, "n t"]) -> Float[Array, "n t v"]:
    """The same log-probabilities everywhere."""
    return jnp.broadcast_to(params, (*x.shape, params.size))


def bigram(params: Float[Array, "v v"], x: Int[Array, "n t"]) -> Float[Array, "n t v"]:
    """The row of each token."""
    return params[x]


def _checked(name: str, tokens: np.ndarray, vocab: int, smoothing: float) -> np.ndarray:
    tokens = np.asarray(tokens)
    if not smoothing > 0:
        raise ValueError(f"smoothing: got {smoothing}, expected a positive number")
    if not tokens.size or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"{name}: expected integer tokens, got shape {tokens.shape} of {tokens.dtype}")
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise ValueError(f"{name}: got tokens from {tokens.min()} to {tokens.max()}, expected 0 to {vocab - 1}")
    return tokens.astype(np.int64)


def network(vocab: int, width: int, tokens: int = 4) -> Network:
    """Predict the next token from the last few by one hidden layer (Bengio et al. 2003); before the first are zeros.

    Args:
        vocab: number of different tokens, V.
        width: numbers of an embedding; the hidden layer is four times as wide.
        tokens: how many are read.
    """
    shapes = {"embedding": (vocab, width), "hidden": (tokens * width, 4 * width), "out": (4 * width, vocab)}

    def init(key: Any) -> dict[str, jax.Array]:
        keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
        sizes = {"embedding": 1} | {name: shape[0] for name, shape in shapes.items() if name != "embedding"}
        return {n: jax.random.normal(keys[n], shape) / sizes[n] ** 0.5 for n, shape in shapes.items()}

    def apply(params: dict[str, jax.Array], x: Int[Array, "n t"]) -> Float[Array, "n t v"]:
        read = jnp.pad(params["embedding"][x], ((0, 0), (tokens - 1, 0), (0, 0)))
        last = [read[:, lag : lag + x.shape[1]] for lag in range(tokens)]
        return jnp.tanh(jnp.concatenate(last, -1) @ params["hidden"]) @ params["out"]

    return Network(init, apply, f"n-gram of {tokens}")
