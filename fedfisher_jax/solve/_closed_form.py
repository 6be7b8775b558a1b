"""The exact minimiser where the curvature's spectrum is known: clients' arrays that add up, or one client's."""

from typing import Any

import jax
import jax.numpy as jnp

from .._doors import require_at_least
from ..curvature.structures._protocol import mean_diagonals
from ._objective import Objective, Solution, Solver, _shifts, _solution


def closed_form(*, damping: float = 0.0, floor: float = 0.0, cutoff: float | None = None) -> Solver:
    """Find the exact minimiser nearest the anchor, θ̄ + (H + λ)⁺ r, for diagonal, full or A ⊗ I (`Gram`) curvature.

    It takes any `Fisher` with a known spectrum: one client's of every structure, and a sum of clients' where their
    arrays add up.

    Args:
        damping: λ of a block (of `curvature.blocks()`) as a multiple of its mean diagonal entry.
        floor: eigenvalues of H at most this count as zero: there the anchor stays. A diagonal's are its entries.
        cutoff: the floor for matrices, as a multiple of the largest eigenvalue; default d · the smallest relative
            difference of its numbers, below which eigenvalues of a [d, d] matrix are rounding errors.

    Raises:
        ValueError: a damping, floor or cutoff that is negative or not finite.
        TypeError: the curvature is a sum whose arrays do not add up, as of Kronecker products.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> models, fishers = jnp.asarray([[0.0], [2.0]]), ff.Diagonal(jnp.asarray([[1.0], [3.0]]))  # two clients
        >>> problem = ff.solve.objective(fishers, models, jnp.ones(2))

        >>> ff.closed_form()(problem).params.tolist()  # (1 · 0 + 3 · 2) / (1 + 3)
        [1.5]
    """
    require_at_least("damping", damping, 0)
    require_at_least("floor", floor, 0)
    require_at_least("cutoff", 0 if cutoff is None else cutoff, 0)

    def solve(problem: Objective) -> Solution:
        means = mean_diagonals(problem.curvature)

        def inverse(values: jax.Array, noise: Any, block: int) -> jax.Array:
            total = values + damping * means[block]
            kept = (values > floor) & (total > noise)
            return jnp.where(kept, 1 / jnp.where(kept, total, 1), 0)

        delta = problem.curvature.spectral(inverse, cutoff)(problem.pull)
        return _solution(problem, delta, _shifts(problem, damping), iterations=1, converged=True)

    return solve
