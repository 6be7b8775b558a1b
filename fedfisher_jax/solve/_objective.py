"""The aggregated objective around its anchor, and what every solver of it shares."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._doors import require_weights
from .._trees import from_numbered, weighted_sum
from ..curvature import Fisher, Mixture
from ..curvature.structures._protocol import mean_diagonals, power_near

PyTree = Any
ROUNDING = 10  # how many standard errors of a sum still are rounding


class Objective(NamedTuple):
    """The aggregated objective Q, written around its anchor."""

    curvature: Fisher  # H
    pull: PyTree  # r
    anchor: PyTree  # θ̄, where the solvers start and where null(H) stays
    value_at_anchor: Any  # Q(θ̄)
    size: Any = None  # of the numbers whose differences Q(θ̄) is, where it is one: it is rounded relative to them

    def value(self, params: PyTree) -> jax.Array:
        """Evaluate Q at `params`, a tree like the anchor."""
        delta = jax.tree.map(jnp.subtract, params, self.anchor)
        slope = optax.tree.vdot(self.pull, delta)
        return self.value_at_anchor - 2 * slope + optax.tree.vdot(delta, self.curvature.matvec(delta))

    def half_gradient(self, params: PyTree) -> PyTree:
        """Evaluate ½∇Q = H (θ − θ̄) − r at `params`: one product with H, where differentiating `value` takes two."""
        delta = jax.tree.map(jnp.subtract, params, self.anchor)
        return jax.tree.map(jnp.subtract, self.curvature.matvec(delta), self.pull)


class Solution(NamedTuple):
    """A solver's result; diagnostics are scalars: objective_start, objective_end, residual, iterations, converged."""

    params: PyTree
    diagnostics: dict[str, Any]


Solver = Callable[[Objective], Solution]


def objective(fishers: PyTree, params: PyTree, weights: Any) -> Objective:
    """Make the objective Q(θ) = Σ w_i (θ − θ_i)ᵀ F_i (θ − θ_i) of stacked clients (arXiv 2403.12329, section 3).

    Args:
        fishers: the clients' Fishers F_i, with a leading client axis.
        params: the clients' models θ_i, with a leading client axis.
        weights: [M], the w_i, which are divided by their sum.

    Returns:
        Q around the weighted mean of the models, its anchor; the clients' Fishers stay apart in a `Mixture`.

    Raises:
        ValueError: another number of weights than of clients, or weights that are negative or sum to zero.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> models, fishers = jnp.asarray([[0.0], [2.0]]), ff.Diagonal(jnp.asarray([[1.0], [3.0]]))  # two clients
        >>> problem = ff.solve.objective(fishers, models, jnp.ones(2))
        >>> problem.anchor.tolist(), float(problem.value(jnp.asarray([1.5])))  # (1.5² · 1 + 0.5² · 3) / 2
        ([1.0], 1.5)
    """
    weights = jnp.asarray(weights)
    weights = weights if jnp.issubdtype(weights.dtype, jnp.floating) else weights.astype(float)  # sums of integers wrap
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((fishers, params))}
    if counts != {weights.shape}:
        raise ValueError(f"weights: got shape {weights.shape}, expected one for each of the clients, {sorted(counts)}")
    require_weights(weights)
    shares = weights / jnp.sum(weights)
    anchor = weighted_sum(shares, params)
    gaps = jax.tree.map(jnp.subtract, params, anchor)
    pulls = jax.vmap(lambda fisher, gap: fisher.matvec(gap))(fishers, gaps)
    pull = weighted_sum(shares, pulls)
    values = jax.vmap(optax.tree.vdot)(gaps, pulls)
    at_anchor = jnp.tensordot(shares.astype(jnp.result_type(values)), values, axes=1)
    return Objective(Mixture(fishers, shares), pull, anchor, at_anchor)


def _mean_diagonals(problem: Objective) -> PyTree:
    """Compute the mean diagonal entry of each leaf's block."""
    by_leaf = {}
    for block, mean in zip(problem.curvature.blocks(), mean_diagonals(problem.curvature), strict=True):
        by_leaf |= dict.fromkeys(block, mean)
    return from_numbered(jax.tree.structure(problem.anchor), by_leaf)


def _shifts(problem: Objective, damping: float) -> PyTree:
    """Compute each leaf's λ: damping times the mean diagonal entry of its block."""
    return jax.tree.map(lambda mean: damping * mean, _mean_diagonals(problem))


def _solution(problem: Objective, delta: PyTree, shifts: PyTree, *, iterations: Any, converged: Any) -> Solution:
    params = jax.tree.map(lambda a, d: (a + d).astype(a.dtype), problem.anchor, delta)
    applied = jax.tree.map(lambda hv, d, s: hv + s * d, problem.curvature.matvec(delta), delta, shifts)
    largest = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(problem.pull)]
    unit = power_near(jnp.max(jnp.stack(largest)))
    gap = optax.tree.norm(jax.tree.map(lambda r, hd: unit * (r - hd), problem.pull, applied))
    size = optax.tree.norm(jax.tree.map(lambda r: unit * r, problem.pull))
    residual = jnp.where(size == 0, 0.0, gap / jnp.where(size == 0, 1, size))  # NaN where the pull is
    start, end = _squares(problem, problem.value_at_anchor), _squares(problem, problem.value(params))
    return Solution(
        params,
        {
            "objective_start": start,
            "objective_end": end,
            "residual": residual,
            "iterations": jnp.asarray(iterations),
            "converged": jnp.asarray(converged) & jnp.isfinite(residual),
        },
    )


def _squares(problem: Objective, value: jax.Array) -> jax.Array:
    """Give zero for a value of Q, a sum of squares, that is below zero by rounding; what is further below stays."""
    value = jnp.asarray(value)
    size = jnp.abs(problem.value_at_anchor if problem.size is None else problem.size)
    leaves = jax.tree.leaves(problem.anchor)
    numbers = sum(leaf.size for leaf in leaves)
    eps = max(float(jnp.finfo(one.dtype).eps) for one in (value, *leaves))  # weights may be wider than parameters
    rounding = ROUNDING * numbers**0.5 * eps * size  # of so many sums, whose errors are random
    return jnp.where((value < 0) & (value >= -rounding), 0, value)


def _divide(a: jax.Array, b: jax.Array, shift: Any = 0.0) -> jax.Array:
    """Divide a by b + shift, with zero where that is zero."""
    total = b + shift
    return jnp.where(total > 0, a / jnp.where(total > 0, total, 1), 0)
