"""FedFish (arXiv 2311.10291): updates averaged by Fisher information, so that functions are matched on clients' data.

    Δ = Σ w_i F_i ⊙ Δ_i / (Σ w_i F_i + ε),    Δ_i = θ_i − θ,    the plain average where Σ w_i F_i ≤ floor

for diagonal F_i, with w_i = n_i / Σ n_j; a server optimiser takes −Δ as its gradient. The Fisher is the exact one by
default: once most clients fit their data, their squared gradients are tiny, and one client that fits badly decides.
What each gains is in docs/fisher-over-rounds.md. With Kronecker factors, a question that the paper leaves open,
Δ solves (Σ w_i F_i + damping) Δ = Σ w_i F_i Δ_i + damping · mean.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._examples import Examples
from .._likelihood import Likelihood
from .._trees import scaled
from ..curvature import Diagonal
from ..curvature._cotangents import KINDS
from ..solve._conjugate_gradients import conjugate_gradients
from ..solve._objective import Objective, Solver
from ._fedfisher import DAMPING, lift_sums, stacked
from ._measure import MeasureFisher, require_options
from ._rule import Kind, Merged, Payload, Rule, Update, moved, require_start, weight_of

PyTree = Any
SQUARES = "squares"
SCALES = ("as_is", "mean")
ESTIMATORS = (*KINDS, SQUARES)


def measure_squares(update: Update, data: Examples, key: jax.Array) -> Payload:
    """Make one client's payload with the squared minibatch gradients of its last local epoch as Fisher information.

    Raises:
        ValueError: the training did not gather them.
    """
    del key
    if update.squares is None:
        raise ValueError("update.squares: got None, expected the squared gradients of the last local epoch")
    weight = weight_of(data)
    return Payload(weight, update.params, Diagonal(update.squares), Kind(SQUARES))


def by_mean(payload: Payload) -> Payload:
    """Divide a client's Fisher by the mean of its diagonal; a Fisher of zeros stays."""
    leaves = jax.tree.leaves(payload.statistics.diagonal())
    mean = sum(jnp.sum(leaf) for leaf in leaves) / sum(leaf.size for leaf in leaves)
    return payload._replace(statistics=payload.statistics.scale(1 / jnp.where(mean > 0, mean, 1)))


def fedfish(
    apply: Callable,
    likelihood: Likelihood,
    *,
    estimator: str = "exact",
    structure: str = "diagonal",
    scale: str = "as_is",
    eps: float = 1e-8,
    floor: float = 0.0,
    solver: Solver | None = None,
    **options: Any,
) -> Rule:
    """Make FedFish's rule (arXiv 2311.10291), for any server optimiser; a client sends twice the parameters.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what is fitted.
        estimator: how the Fisher at the client's end is estimated: "exact", "monte_carlo", "empirical" (per example),
            or "squares": by squared minibatch gradients of the last local epoch, at no extra pass. Those are smaller
            than "empirical" by up to the batch size, which matters to `eps` and `floor` alone.
        structure: "diagonal" or "kronecker", the latter not from squares.
        scale: "as_is", or "mean": each client's Fisher is divided by the mean of its diagonal, so that a client counts
            by its examples alone, and not by how well it fits them.
        eps: what is added to Σ w F in the denominator; where clients know less than that, the step shrinks.
        floor: the largest Σ w F at which the step is the plain average.
        solver: the solver for Kronecker factors; default conjugate gradients, damped.
        options: what else `MeasureFisher` takes: samples, batch_size, skip, captured.

    Raises:
        TypeError: an unknown option.
        ValueError: unknown estimator, structure or scale, or a pair of the first two that does not exist; negative
            eps or floor; options for squares, which read none.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> clients = [(jnp.zeros((1, 1)), jnp.ones((1, 1))), (jnp.full((1, 1), 5.0), jnp.full((1, 1), 2.0))]  # (w, x)
        >>> rule = ff.fedfish(lambda w, x: x @ w, ff.gaussian())
        >>> start = jnp.zeros((1, 1))
        >>> payloads = [rule.measure(ff.Update(w, start), ff.examples(x), jax.random.key(0)) for w, x in clients]
        >>> print(f"{ff.merge_payloads(rule, payloads, start).params.item():.4f}")  # (1² · 0 + 2² · 5) / (1² + 2²)
        4.0000
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: got {estimator!r}, expected one of {', '.join(ESTIMATORS)}")
    if structure not in ("diagonal", "kronecker") or (structure == "kronecker" and estimator == SQUARES):
        raise ValueError(
            f"structure: got {structure!r} with {estimator}, expected diagonal, or kronecker not of squares"
        )
    if scale not in SCALES:
        raise ValueError(f"scale: got {scale!r}, expected one of {', '.join(SCALES)}")
    for name, value in (("eps", eps), ("floor", floor)):
        if not value >= 0:
            raise ValueError(f"{name}: got {value}, expected a number of at least 0")
    require_options(options, fedfish, MeasureFisher, "kind")
    gathered = estimator == SQUARES
    if gathered and options:
        raise ValueError(f"options: got {', '.join(options)}, which the estimator squares does not read")
    fisher = MeasureFisher(apply, likelihood, structure, kind=estimator, **options)
    measure, takes = measure_squares if gathered else fisher, fisher.takes()
    level = by_mean if scale == "mean" else lambda payload: payload
    lift = lambda payload, start: level(moved(payload, start))  # noqa: E731
    if structure == "kronecker":
        solve = _solved_by(solver or conjugate_gradients(damping=DAMPING["kronecker"]))
        return Rule("fedfish-kfac", measure, lift, solve, "stack", takes=takes, passes=True)
    summed = lambda payload, start: lift_sums(lift(payload, start))  # noqa: E731
    return Rule("fedfish", measure, summed, _entry_by_entry(eps, floor), "add", squares=gathered, takes=takes)


def _solved_by(solver: Solver) -> Callable[[Any, PyTree], Merged]:
    """Make the server's step for stacked payloads, whose Kronecker factors a solver weighs."""

    def solve(payloads: Payload | Objective, start: PyTree) -> Merged:
        step, diagnostics = solver(stacked(payloads))
        return Merged(jax.tree.map(jnp.add, start, step), diagnostics)

    return solve


def _entry_by_entry(eps: float, floor: float) -> Callable[[Any, PyTree], Merged]:
    """Make the server's step for sums of diagonals: Σ w F Δ / (Σ w F + eps), the plain average up to the floor."""

    def solve(summary: dict[str, Any], start: PyTree) -> Merged:
        share = 1 / summary["weight"]
        mean, product = scaled(share, summary["params"]), scaled(share, summary["product"])
        known = scaled(share, summary["fisher"]).values

        def entry(s: Any, m: Any, b: Any, f: Any) -> Any:
            enough = f > floor
            return s + jnp.where(enough, b / jnp.where(enough, f + eps, 1), m)

        params = jax.tree.map(entry, require_start(start), mean, product, known)
        leaves = jax.tree.leaves(known)
        unknown = sum(jnp.sum(f <= floor) for f in leaves) / sum(f.size for f in leaves)
        return Merged(params, {"share_averaged": unknown})

    return solve
