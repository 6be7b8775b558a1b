"""Which classes a client has, and how much of each: label shares from the last layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...curvature import Layer
from .fisher_inversion import Inputs

PyTree = Any
Shares = Float[Array, " c"]


def of_update(start: PyTree, params: PyTree, layer: Layer) -> Shares:
    """Guess shares from how training moved the last layer: classes of the client were pulled up, others pushed down.

    The gradient at output c is Σ (p_c − y_c) h with inputs h that are not negative after a ReLU, so that what a column
    (and the bias) gained follows Σ (y_c − p_c). Shares are the gains above the smallest one. The same holds of one step
    of SGD (Wainakh et al. 2021).

    Args:
        start: parameters that all clients began with.
        params: the client's.
        layer: the model's last, from `capture`.
    """
    gains = jax.tree.map(jnp.subtract, params, start)
    columns = jnp.sum(layer.to_matrix(jax.tree.leaves(gains)), axis=0)
    return shares_of(columns - jnp.min(columns))


def of_output_moment(moment: Float[Array, "c c"]) -> Shares:
    """Guess shares from G = E[g gᵀ] at the last layer's output: its diagonal.

    The exact Fisher has G_cc = E[p_c (1 − p_c)], how often class c is in doubt, and a class that a client does not
    have seldom is. The empirical one has G_cc = E[(p_c − y_c)²].
    """
    return shares_of(jnp.diagonal(moment))


def of_last_inputs(
    link: Callable[[jax.Array], jax.Array],
    params: PyTree,
    layer: Layer,
    inputs: Inputs,
    key: jax.Array,
    samples: int = 2000,
) -> Shares:
    """Guess shares from A of the last layer: the model's mean prediction for inputs of that mean and covariance.

    Training ends where predictions are right on average (the gradient of a bias, E[p] − shares, is zero), so the
    average prediction over the client's own examples is its shares. The layer's inputs are drawn as normal numbers of
    the moments that the payload tells, cut at zero as a ReLU leaves them.

    Args:
        link: outputs [c] → probabilities (`Likelihood.mean`).
        params: the client's parameters.
        layer: the model's last.
        inputs: mean and covariance from `fisher_inversion.inputs_of`.
        key: random key of the draws.
        samples: draws.
    """
    values, vectors = jnp.linalg.eigh(inputs.covariance)
    roots = jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T
    drawn = inputs.mean + jax.random.normal(key, (samples, inputs.mean.size), inputs.mean.dtype) @ roots
    drawn = jnp.maximum(drawn, 0)
    if layer.bias is not None:
        drawn = jnp.concatenate([drawn, jnp.ones_like(drawn[:, :1])], axis=1)
    outputs = drawn @ layer.to_matrix(jax.tree.leaves(params)).astype(drawn.dtype)
    return shares_of(jnp.mean(jax.vmap(link)(outputs), axis=0))


def shares_of(weights: Shares) -> Shares:
    """Cut weights at zero and scale them to sum to one; uniform if nothing is left."""
    kept = jnp.maximum(weights, 0)
    total = jnp.sum(kept)
    return jnp.where(total > 0, kept / jnp.where(total > 0, total, 1), 1 / kept.size)
