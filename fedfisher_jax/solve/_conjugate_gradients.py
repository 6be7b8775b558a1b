"""Preconditioned conjugate gradients on the aggregated objective: the default solver."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..curvature import Mixture
from ..curvature.structures._protocol import damped_inverse, power_near
from ._objective import Objective, Solution, Solver, _divide, _mean_diagonals, _shifts, _solution
from ._passes import Streamed

PyTree = Any
ITERATIONS = 100


def conjugate_gradients(*, damping: float = 0.3, iterations: int = ITERATIONS, tolerance: float = 1e-4) -> Solver:
    """Run preconditioned conjugate gradients on (H + λ) δ = r, every block of H at its own pace; the default solver.

    Clients that are read again for every product (`Passes`) are solved for by steps from the host.

    Args:
        damping: λ of a block as a multiple of its mean diagonal entry; unlike early stopping it needs no labelled data.
        iterations: the most steps taken.
        tolerance: a block stops when its residual falls below this multiple of its right-hand side.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> models, fishers = jnp.asarray([[0.0], [2.0]]), ff.Diagonal(jnp.asarray([[1.0], [3.0]]))  # two clients
        >>> problem = ff.solve.objective(fishers, models, jnp.ones(2))

        >>> solution = ff.conjugate_gradients(damping=0.0)(problem)
        >>> print(f"{solution.params[0]:.4f}", bool(solution.diagnostics["converged"]))
        1.5000 True
    """

    def solve(problem: Objective) -> Solution:
        leaves, treedef = jax.tree.flatten(problem.pull)
        owner = {leaf: block for block, group in enumerate(problem.curvature.blocks()) for leaf in group}
        blocks = [owner[leaf] for leaf in range(len(leaves))]
        shifts = _shifts(problem, damping)
        # Blocks in units of their own size, or the dots of a Fisher of 1e-20 underflow; powers of two round nothing.
        units = jax.tree.map(power_near, _mean_diagonals(problem))
        pull = jax.tree.map(jnp.multiply, units, problem.pull)
        precondition = _preconditioner(problem, shifts, units)

        def dots(a: PyTree, b: PyTree) -> jax.Array:
            products = [jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
            return jnp.stack(
                [sum(p for p, o in zip(products, blocks, strict=True) if o == n) for n in range(max(blocks) + 1)]
            )

        def scaled(factors: jax.Array, tree: PyTree) -> PyTree:
            scaled_leaves = [factors[o].astype(x.dtype) * x for x, o in zip(jax.tree.leaves(tree), blocks, strict=True)]
            return jax.tree.unflatten(treedef, scaled_leaves)

        def operator(v: PyTree) -> PyTree:
            return jax.tree.map(lambda u, hv, x, s: u * (hv + s * x), units, problem.curvature.matvec(v), v, shifts)

        def ratio(a: jax.Array, b: jax.Array, active: jax.Array) -> jax.Array:
            return jnp.where(active & (b > 0), a / jnp.where(b > 0, b, 1), 0)

        goal = tolerance**2 * dots(pull, pull)

        def step(state: tuple) -> tuple:
            delta, residual, direction, rho, count = state
            active = dots(residual, residual) > goal
            applied = operator(direction)
            alpha = ratio(rho, dots(direction, applied), active)
            delta = jax.tree.map(jnp.add, delta, scaled(alpha, direction))
            residual = jax.tree.map(jnp.subtract, residual, scaled(alpha, applied))
            conditioned = precondition(residual)
            new = dots(residual, conditioned)
            beta = ratio(new, rho, active)
            direction = jax.tree.map(jnp.add, conditioned, scaled(beta, direction))
            return delta, residual, direction, new, count + 1

        def unfinished(state: tuple) -> jax.Array:
            return (state[4] < iterations) & jnp.any(dots(state[1], state[1]) > goal)

        loop = _from_the_host if isinstance(problem.curvature, Streamed) else jax.lax.while_loop
        first = precondition(pull)
        start = (optax.tree.zeros_like(pull), pull, first, dots(pull, first), jnp.asarray(0))
        delta, residual, _, _, count = loop(unfinished, step, start)
        converged = ~jnp.any(dots(residual, residual) > goal)
        return _solution(problem, delta, shifts, iterations=count, converged=converged)

    return solve


def _from_the_host(unfinished: Callable[[tuple], Any], step: Callable[[tuple], tuple], state: tuple) -> tuple:
    """Do what `jax.lax.while_loop` does, with steps that may read files."""
    while bool(unfinished(state)):
        state = step(state)
    return state


def _preconditioner(problem: Objective, shifts: PyTree, units: PyTree) -> Callable[[PyTree], PyTree]:
    """Make the map r → M⁻¹ r, M being near u (H + λ): of the nearest Fisher of cheap spectrum, or the diagonal."""
    near = problem.curvature.nearest() if isinstance(problem.curvature, Mixture | Streamed) else None
    if near is None:
        diagonal = jax.tree.map(lambda u, h, s: u * (h + s), units, problem.curvature.diagonal(), shifts)
        return lambda residual: jax.tree.map(_divide, residual, diagonal)
    by_leaf = jax.tree.leaves(shifts)
    invert = damped_inverse(near, [by_leaf[block[0]] for block in near.blocks()])
    return lambda residual: jax.tree.map(jnp.divide, invert(residual), units)
