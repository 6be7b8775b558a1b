"""Unigram and bigram models of text, fitted by counting: what a network for the next token must beat.

Both are `apply(params, x)` with log-probabilities as parameters, so that `evaluate` scores them as any model.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


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
