"""Columns of the outputs' Fisher factors one by one: all, or those worth it, since a sure classifier has few."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._examples import Examples, take
from .._likelihood import Likelihood
from ..tracing._convolution import for_loops
from ._cotangents import counted

PyTree = Any


class Columns(NamedTuple):
    """Columns of the outputs' Fisher factors, as examples: one place for each."""

    examples: Examples
    number: jax.Array  # which column of its example's factor


def every(data: Examples, count: int) -> Columns:
    """List all columns, `count` for each example: where those of one example are too much at once."""
    places = data._replace(indices=jnp.repeat(data.indices, count), size=data.size * count)
    return Columns(places, jnp.tile(jnp.arange(count), data.indices.shape[0]))


def heaviest(
    apply: Callable, likelihood: Likelihood, params: PyTree, data: Examples, batch_size: int, skip: float
) -> Columns:
    """Find the columns that carry all but a share `skip` of Σ_x tr(S_x S_xᵀ), S_x = `likelihood.fisher_factor`.

    The heaviest come first.
    Leaving the others out lowers (1/n) Σ_x J_xᵀ S_x S_xᵀ J_x by (1/n) Σ J_xᵀ s sᵀ J_x over the columns s left out,
    which is positive semi-definite and whose trace is at most `skip` · (1/n) Σ_x tr(S_x S_xᵀ) · max ‖J_x‖².
    """
    places = jnp.arange(-(-data.indices.shape[0] // batch_size) * batch_size).reshape(-1, batch_size)

    def weights(start: Any) -> jax.Array:
        batch = take(data, start, batch_size)
        factors = jax.vmap(lambda outputs, y: counted(likelihood, y, likelihood.fisher_factor(outputs)))(
            for_loops(apply)(params, batch.x), batch.y
        )
        squares = jnp.sum(factors**2, axis=tuple(range(2, factors.ndim)))
        return jnp.where(batch.mask[:, None], squares, 0)

    found = jax.lax.map(weights, places[:, 0])  # [batches, batch_size, columns]
    number = found.shape[-1]
    flat = found.reshape(-1)
    order = jnp.argsort(-flat)
    left = jnp.cumsum(flat[order][::-1])[::-1]  # what is lost by stopping before each place
    kept = jnp.sum(~(left <= skip * left[0]))  # NaN keeps all columns, so that nobody takes it for no knowledge
    indices = data.indices[jnp.minimum(order // number, data.indices.shape[0] - 1)]
    return Columns(data._replace(indices=indices, size=kept.astype(data.size.dtype)), order % number)
