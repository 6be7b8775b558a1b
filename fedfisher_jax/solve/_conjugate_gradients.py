"""Preconditioned conjugate gradients on the aggregated objective: the default solver."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from .._doors import require_at_least
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

    Raises:
        ValueError: a damping or tolerance that is negative or not finite, or fewer than 0 iterations.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> models, fishers = jnp.asarray([[0.0], [2.0]]), ff.Diagonal(jnp.asarray([[1.0], [3.0]]))  # two clients
        >>> problem = ff.solve.objective(fishers, models, jnp.ones(2))

        >>> solution = ff.conjugate_gradients(damping=0.0)(problem)
        >>> print(f"{solution.params[0]:.4f}", bool(solution.diagnostics["converged"]))
        1.5000 True
    """
    require_at_least("damping", damping, 0)
    require_at_least("tolerance", tolerance, 0)
    require_at_least("iterations", iterations, 0)

    def solve(problem: Objective) -> Solution:
        streamed = isinstance(problem.curvature, Streamed)
        compiled = jax.jit if streamed else lambda function: function  # what reads files cannot be within one program
        loop = _from_the_host if streamed else jax.lax.while_loop
        system, first = compiled(lambda given: _begun(given, damping, tolerance))(problem)
        advance = compiled(lambda known, state, product: _advanced(problem, known, state, product))
        unfinished = lambda s: (s.count < iterations) & jnp.any(_active(problem, system, s.residual))  # noqa: E731
        step = lambda state: advance(system, state, problem.curvature.matvec(state.direction))  # noqa: E731
        last = loop(unfinished, step, first)
        converged = ~jnp.any(_active(problem, system, last.residual))
        # Without steps where the residual is NaN, the answer would be the anchor, a plain average that says nothing.
        delta = jax.tree.map(lambda d, r: jnp.where(jnp.isnan(r), r, d), last.delta, last.residual)
        return _solution(problem, delta, system.shifts, iterations=last.count, converged=converged)

    return solve


class _System(NamedTuple):
    """What stays the same from step to step."""

    shifts: PyTree  # λ of every leaf
    units: PyTree  # 1 / size of every leaf's block, a power of two
    precondition: Partial  # r → M⁻¹ r
    goal: jax.Array  # [blocks], squares of the norms below which residuals count as none


class _State(NamedTuple):
    delta: PyTree
    residual: PyTree
    direction: PyTree
    rho: jax.Array  # [blocks], residual · M⁻¹ residual
    count: jax.Array


def _begun(problem: Objective, damping: float, tolerance: float) -> tuple[_System, _State]:
    shifts = _shifts(problem, damping)
    # Blocks in units of their own size, or the dots of a Fisher of 1e-20 underflow; powers of two round nothing.
    units = jax.tree.map(power_near, _mean_diagonals(problem))
    pull = jax.tree.map(jnp.multiply, units, problem.pull)
    precondition = _preconditioner(problem, shifts, units)
    goal = tolerance**2 * _dots(problem, pull, pull)
    first = precondition(pull)
    state = _State(optax.tree.zeros_like(pull), pull, first, _dots(problem, pull, first), jnp.asarray(0))
    return _System(shifts, units, precondition, goal), state


def _advanced(problem: Objective, system: _System, state: _State, product: PyTree) -> _State:
    """One step, from the product of H with the direction."""
    blocks, treedef = _blocks(problem), jax.tree.structure(state.delta)

    def scaled(factors: jax.Array, tree: PyTree) -> PyTree:
        leaves = [factors[o].astype(x.dtype) * x for x, o in zip(jax.tree.leaves(tree), blocks, strict=True)]
        return jax.tree.unflatten(treedef, leaves)

    def ratio(a: jax.Array, b: jax.Array, active: jax.Array) -> jax.Array:
        return jnp.where(active & (b > 0), a / jnp.where(b > 0, b, 1), 0)

    active = _active(problem, system, state.residual)
    applied = jax.tree.map(lambda u, hv, x, s: u * (hv + s * x), system.units, product, state.direction, system.shifts)
    alpha = ratio(state.rho, _dots(problem, state.direction, applied), active)
    delta = jax.tree.map(jnp.add, state.delta, scaled(alpha, state.direction))
    residual = jax.tree.map(jnp.subtract, state.residual, scaled(alpha, applied))
    conditioned = system.precondition(residual)
    new = _dots(problem, residual, conditioned)
    direction = jax.tree.map(jnp.add, conditioned, scaled(ratio(new, state.rho, active), state.direction))
    return _State(delta, residual, direction, new, state.count + 1)


def _active(problem: Objective, system: _System, residual: PyTree) -> jax.Array:
    """Which blocks are not solved yet."""
    return _dots(problem, residual, residual) > system.goal


def _dots(problem: Objective, a: PyTree, b: PyTree) -> jax.Array:
    """The dot product of each block's leaves."""
    blocks = _blocks(problem)
    products = [jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return jnp.stack([sum(p for p, o in zip(products, blocks, strict=True) if o == n) for n in range(max(blocks) + 1)])


def _blocks(problem: Objective) -> list[int]:
    """The number of every leaf's block."""
    owner = {leaf: block for block, group in enumerate(problem.curvature.blocks()) for leaf in group}
    return [owner[leaf] for leaf in range(len(owner))]


def _from_the_host(unfinished: Callable[[Any], Any], step: Callable[[Any], Any], state: Any) -> Any:
    """Do what `jax.lax.while_loop` does, with steps that may read files."""
    while bool(unfinished(state)):
        state = step(state)
    return state


def _preconditioner(problem: Objective, shifts: PyTree, units: PyTree) -> Partial:
    """Make the map r → M⁻¹ r, M being near u (H + λ): of the nearest Fisher of cheap spectrum, or the diagonal."""
    near = problem.curvature.nearest() if isinstance(problem.curvature, Mixture | Streamed) else None
    if near is None:
        diagonal = jax.tree.map(lambda u, h, s: u * (h + s), units, problem.curvature.diagonal(), shifts)
        return Partial(_over, diagonal)
    by_leaf = jax.tree.leaves(shifts)
    return Partial(_inverted, damped_inverse(near, [by_leaf[block[0]] for block in near.blocks()]), units)


def _over(diagonal: PyTree, residual: PyTree) -> PyTree:
    return jax.tree.map(_divide, residual, diagonal)


def _inverted(invert: Callable[[PyTree], PyTree], units: PyTree, residual: PyTree) -> PyTree:
    return jax.tree.map(jnp.divide, invert(residual), units)
