"""The exact minimiser for diagonal and full curvature."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ..curvature import Diagonal, Full, Mixture
from ._objective import Objective, Solution, Solver, _divide, _shifts, _solution


def closed_form(*, damping: float = 0.0, floor: float = 0.0, cutoff: float | None = None) -> Solver:
    """The exact minimiser nearest the anchor, θ̄ + (H + λ)⁺ r, for diagonal and full curvature.

    Args:
        damping: λ of a block (of `curvature.blocks()`) as a multiple of its mean diagonal entry.
        floor: eigenvalues of H at most this count as zero: there the anchor stays. A diagonal's are its entries.
        cutoff: the same for full curvature, as a multiple of the largest eigenvalue; default d · the smallest relative
            difference of its numbers, below which eigenvalues of a [d, d] matrix are rounding errors.

    Raises:
        TypeError: the curvature is neither diagonal nor full.
    """

    def solve(problem: Objective) -> Solution:
        shifts = _shifts(problem, damping)
        dense = _dense(problem.curvature)
        if dense is not None:
            pull, unravel = ravel_pytree(problem.pull)
            shift = ravel_pytree(jax.tree.map(jnp.full_like, problem.pull, shifts))[0]
            values, vectors = jnp.linalg.eigh(dense + jnp.diag(shift))
            relative = values.size * jnp.finfo(values.dtype).eps if cutoff is None else cutoff
            kept = values > relative * values[-1]
            if floor:  # of H, without the shift, which is one for all: a full matrix is one block
                kept &= values - shift[0] > floor
            inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
            delta = unravel(vectors @ (inverse * (vectors.T @ pull)))
        elif _is(problem.curvature, Diagonal):
            informed = jax.tree.map(lambda h: jnp.where(h > floor, h, 0), problem.curvature.diagonal())
            delta = jax.tree.map(
                lambda r, h, shift: jnp.where(h > 0, _divide(r, h, shift), 0), problem.pull, informed, shifts
            )
        else:
            raise TypeError(
                f"curvature: closed_form solves Diagonal and Full, got {type(_inner(problem.curvature)).__name__}"
            )
        return _solution(problem, delta, shifts, iterations=1, converged=True)

    return solve


def _inner(curvature: Any) -> Any:
    return curvature.fishers if isinstance(curvature, Mixture) else curvature


def _is(curvature: Any, structure: type) -> bool:
    return isinstance(_inner(curvature), structure)


def _dense(curvature: Any) -> jax.Array | None:
    if not _is(curvature, Full):
        return None
    if isinstance(curvature, Mixture):
        return jnp.tensordot(curvature.weights, curvature.fishers.matrix, axes=1)
    return curvature.matrix
