"""Experts that positions choose: matrices are taken out of a stack, and each position multiplies by its own.

So does Mixtral (arXiv 2401.04088) where every token copies the matrices of its experts. An expert is a layer whose
positions are those that chose it. How many these are differs from example to example, so its K-FAC block is the sum of
a aᵀ over them, times the mean of g gᵀ over all of them in all examples.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ._lookup import Lookup


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chosen:
    """Activations of stacked experts, and which positions chose which; or the sums of their moments, and of choices."""

    rows: Any  # [..., E, T, inputs], zero where a position did not choose the expert; or [E, inputs, inputs]
    chose: Any  # [..., E, T], 1 or 0; or [E]


def routed(rows: jax.Array, numbers: Lookup) -> Chosen:
    """Sort activations [T, inputs] by the expert that each position, or each stretch of positions, chose."""
    each = jnp.repeat(numbers.numbers, len(rows) // len(numbers.numbers))
    chose = (each == 1 + jnp.arange(numbers.size)[:, None]).astype(numbers.dtype)
    return Chosen(jnp.where(chose[..., None] > 0, rows, 0), chose)


def masked(a: Any, g: Any) -> Any:
    """Sort output gradients [K, T, outputs] of chosen experts likewise, as [K, E, T, outputs]; others stay."""
    return jnp.where(a.chose[..., None] > 0, g[:, None], 0) if isinstance(a, Chosen) else g
