"""Minimise the aggregated objective Q(θ) = Σ_i w_i (θ − θ_i)ᵀ F_i (θ − θ_i), with Σ w_i = 1 (arXiv 2403.12329, eq. 8).

Around the anchor θ̄ = Σ w_i θ_i it reads Q(θ̄ + δ) = Q(θ̄) − 2 rᵀδ + δᵀHδ with H = Σ w_i F_i and
r = Σ w_i F_i (θ_i − θ̄): an `Objective` holds just these, so that sums over clients and stacked clients look alike.
A solver is a function `Objective → Solution`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from .curvature import Diagonal, Full, Mixture
from .curvature.structures import Fisher
from .examples import wide

PyTree = Any


class Objective(NamedTuple):
    """Q around its anchor."""

    curvature: Fisher  # H
    pull: PyTree  # r
    anchor: PyTree  # θ̄, where the solvers start and where null(H) stays
    value_at_anchor: Any  # Q(θ̄)

    def value(self, params: PyTree) -> jax.Array:
        """Q(params)."""
        delta = jax.tree.map(jnp.subtract, params, self.anchor)
        slope = optax.tree.vdot(self.pull, delta)
        return self.value_at_anchor - 2 * slope + optax.tree.vdot(delta, self.curvature.matvec(delta))


class Solution(NamedTuple):
    """A solver's result; diagnostics are scalars: objective_start, objective_end, residual, iterations, converged."""

    params: PyTree
    diagnostics: dict[str, Any]


Solver = Callable[[Objective], Solution]


def objective(fishers: Any, params: PyTree, weights: Any) -> Objective:
    """Q from stacked clients: `fishers` and `params` have a leading client axis, `weights` [M] need not sum to 1."""
    shares = weights / jnp.sum(weights)
    anchor = jax.tree.map(lambda leaf: jnp.tensordot(shares.astype(leaf.dtype), leaf, axes=1), params)
    gaps = jax.tree.map(jnp.subtract, params, anchor)
    pulls = jax.vmap(lambda fisher, gap: fisher.matvec(gap))(fishers, gaps)
    pull = jax.tree.map(lambda leaf: jnp.tensordot(shares.astype(leaf.dtype), leaf, axes=1), pulls)
    values = jax.vmap(optax.tree.vdot)(gaps, pulls)
    at_anchor = jnp.tensordot(shares.astype(jnp.result_type(values)), values, axes=1)
    return Objective(Mixture(fishers, shares), pull, anchor, at_anchor)


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


def conjugate_gradients(*, damping: float = 0.3, iterations: int = 100, tolerance: float = 1e-4) -> Solver:
    """Preconditioned conjugate gradients on (H + λ) δ = r, every block of H at its own pace. The default solver.

    Args:
        damping: λ of a block as a multiple of its mean diagonal entry: needs no labelled data, unlike early stopping.
        iterations: at most.
        tolerance: a block stops when its residual falls below this multiple of its right-hand side.
    """

    def solve(problem: Objective) -> Solution:
        leaves, treedef = jax.tree.flatten(problem.pull)
        owner = {leaf: block for block, group in enumerate(problem.curvature.blocks()) for leaf in group}
        blocks = [owner[leaf] for leaf in range(len(leaves))]
        shifts = _shifts(problem, damping)
        # Blocks in units of their own size, or the dots of a Fisher of 1e-20 underflow; powers of two round nothing.
        units = jax.tree.map(_unit, _mean_diagonals(problem))
        pull = jax.tree.map(jnp.multiply, units, problem.pull)
        precondition = jax.tree.map(lambda u, h, s: u * (h + s), units, problem.curvature.diagonal(), shifts)

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
            conditioned = jax.tree.map(_divide, residual, precondition)
            new = dots(residual, conditioned)
            beta = ratio(new, rho, active)
            direction = jax.tree.map(jnp.add, conditioned, scaled(beta, direction))
            return delta, residual, direction, new, count + 1

        def unfinished(state: tuple) -> jax.Array:
            return (state[4] < iterations) & jnp.any(dots(state[1], state[1]) > goal)

        first = jax.tree.map(_divide, pull, precondition)
        start = (optax.tree.zeros_like(pull), pull, first, dots(pull, first), jnp.asarray(0))
        delta, residual, _, _, count = jax.lax.while_loop(unfinished, step, start)
        converged = ~jnp.any(dots(residual, residual) > goal)
        return _solution(problem, delta, shifts, iterations=count, converged=converged)

    return solve


def paper_loop(
    optimizer: optax.GradientTransformation | None = None,
    *,
    steps: int = 2000,
    every: int = 100,
    validation: Callable[[PyTree], jax.Array] | None = None,
) -> Solver:
    """The authors' server loop as a jitted optax loop on ½∇Q from the anchor (arXiv 2403.12329, released code).

    Args:
        optimizer: any optax transformation of H δ − r; default `released_adam("diagonal")`.
        steps: updates.
        every: with `validation`, iterates 1, 1 + every, 1 + 2·every … are scored and the first best one is returned.
        validation: params → score, higher is better. The released method scores accuracy on 500 labelled training
            examples at the server; without it the last iterate is returned and no labels are needed.
    """
    transform = released_adam("diagonal") if optimizer is None else optimizer

    def solve(problem: Objective) -> Solution:
        def update(state: tuple) -> tuple:
            delta, inner = state
            slope = jax.tree.map(jnp.subtract, problem.curvature.matvec(delta), problem.pull)
            change, inner = transform.update(slope, inner, delta)
            return optax.apply_updates(delta, change), inner

        def round_(carry: tuple, length: int) -> tuple:
            state, best, score = carry
            state = update(state)
            if validation is not None:
                new = validation(jax.tree.map(jnp.add, problem.anchor, state[0])).astype(jnp.float32)
                best = jax.tree.map(lambda b, d: jnp.where(new > score, d, b), best, state[0])
                score = jnp.maximum(score, new)
            state = jax.lax.fori_loop(1, length, lambda _, s: update(s), state)
            return state, best, score

        zeros = optax.tree.zeros_like(problem.anchor)
        carry = ((zeros, transform.init(zeros)), zeros, jnp.asarray(-jnp.inf, jnp.float32))
        carry = jax.lax.fori_loop(0, steps // every, lambda _, c: round_(c, every), carry)
        if steps % every:
            carry = round_(carry, steps % every)
        (delta, _), best, score = carry
        chosen = delta if validation is None else best
        solution = _solution(problem, chosen, jax.tree.map(lambda _: 0.0, chosen), iterations=steps, converged=False)
        if validation is not None:
            solution.diagnostics["validation"] = score
        small = solution.diagnostics["residual"] < 1e-3
        return solution._replace(diagnostics=solution.diagnostics | {"converged": small})

    return solve


def released_adam(structure: str, learning_rate: float = 0.01) -> optax.GradientTransformation:
    """The released server optimiser: mom ← v + 0.9 mom, del ← v² + 0.99 del, θ −= η mom / denominator.

    The denominator is √del + 0.01 for "diagonal" and √(del + 0.01) otherwise. It is Adam(0.9, 0.99) without bias
    correction, with eps = 1e-3 (diagonal) or eps_root = 1e-4, on other scales; optax's Adam always corrects the bias.
    """

    def init(params: PyTree) -> tuple[PyTree, PyTree]:
        return optax.tree.zeros_like(params), optax.tree.zeros_like(params)

    def update(slope: PyTree, state: tuple, params: PyTree = None) -> tuple[PyTree, tuple]:
        del params
        momentum = jax.tree.map(lambda v, m: v + 0.9 * m, slope, state[0])
        squares = jax.tree.map(lambda v, s: v**2 + 0.99 * s, slope, state[1])
        if structure == "diagonal":
            change = jax.tree.map(lambda m, s: -learning_rate * m / (jnp.sqrt(s) + 0.01), momentum, squares)
        else:
            change = jax.tree.map(lambda m, s: -learning_rate * m / jnp.sqrt(s + 0.01), momentum, squares)
        return change, (momentum, squares)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _mean_diagonals(problem: Objective) -> PyTree:
    """The mean diagonal entry of each leaf's block."""
    leaves, treedef = jax.tree.flatten(problem.curvature.diagonal())
    means: list[Any] = [0.0] * len(leaves)
    for block in problem.curvature.blocks():
        mean = sum(jnp.sum(leaves[leaf]) for leaf in block) / sum(leaves[leaf].size for leaf in block)
        for leaf in block:
            means[leaf] = mean
    return jax.tree.unflatten(treedef, means)


def _shifts(problem: Objective, damping: float) -> PyTree:
    """λ per leaf: damping times the mean diagonal entry of the leaf's block."""
    return jax.tree.map(lambda mean: damping * mean, _mean_diagonals(problem))


def _unit(size: jax.Array) -> jax.Array:
    """A power of two that brings a positive size near one; 1 for zero."""
    most = 3 * jnp.finfo(size.dtype).maxexp // 4
    near = size.astype(wide(size.dtype))
    exponent = jnp.clip(jnp.frexp(near)[1], -most, most)
    return jnp.where(size > 0, jnp.ldexp(jnp.ones_like(near), -exponent), 1).astype(size.dtype)


def _solution(problem: Objective, delta: PyTree, shifts: PyTree, *, iterations: Any, converged: Any) -> Solution:
    params = jax.tree.map(lambda a, d: (a + d).astype(a.dtype), problem.anchor, delta)
    applied = jax.tree.map(lambda hv, d, s: hv + s * d, problem.curvature.matvec(delta), delta, shifts)
    unit = _unit(jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(problem.pull)])))
    gap = optax.tree.norm(jax.tree.map(lambda r, hd: unit * (r - hd), problem.pull, applied))
    size = optax.tree.norm(jax.tree.map(lambda r: unit * r, problem.pull))
    return Solution(
        params,
        {
            "objective_start": problem.value_at_anchor,
            "objective_end": problem.value(params),
            "residual": jnp.where(size > 0, gap / jnp.where(size > 0, size, 1), 0.0),
            "iterations": jnp.asarray(iterations),
            "converged": jnp.asarray(converged),
        },
    )


def _divide(a: jax.Array, b: jax.Array, shift: Any = 0.0) -> jax.Array:
    """A / (b + shift), zero where that is zero."""
    total = b + shift
    return jnp.where(total > 0, a / jnp.where(total > 0, total, 1), 0)


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
