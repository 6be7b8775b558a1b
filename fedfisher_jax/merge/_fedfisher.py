"""FedFisher (arXiv 2403.12329) and Fisher merging (arXiv 2111.09832): the mode of the product of Laplace posteriors.

Both minimise Q(θ) = Σ w_i (θ − θ_i)ᵀ F_i (θ − θ_i). Diagonal and full curvatures add up, Kronecker and low-rank ones
are stacked: a sum of Kronecker products is not one, and a sum of low-rank matrices has a higher rank.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._likelihood import Likelihood
from .._trees import scaled
from ..solve._closed_form import closed_form
from ..solve._conjugate_gradients import conjugate_gradients
from ..solve._objective import Objective, Solver, objective
from ._measure import MeasureFisher, require_options
from ._rule import Merged, Payload, Rule

PyTree = Any

# Relative to a block's mean diagonal entry. A Kronecker product errs in its small eigenvalues, a low-rank matrix in all
# that it leaves out; damping outweighs both. A diagonal has no such directions, and much damping only pulls it back to
# the average.
DAMPING = {"diagonal": 0.01, "kronecker": 0.3, "full": 0.01, "low_rank": 0.3}


def fedfisher(
    apply: Callable,
    likelihood: Likelihood,
    *,
    structure: str = "kronecker",
    solver: Solver | None = None,
    **options: Any,
) -> Rule:
    """Make FedFisher's rule (arXiv 2403.12329) with diagonal, Kronecker (K-FAC), full or low-rank Fisher.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what was fitted.
        structure: "diagonal", "kronecker", "full" or "low_rank". A full Fisher of an under-parameterised model can be
            far worse than FedAvg: the Laplace approximation is then taken far from zero loss (docs/theory.md). Outside
            of all clients' top eigenvectors, "low_rank" is the weighted mean.
        solver: what finds the minimiser; default `conjugate_gradients(damping=DAMPING[structure])`; `paper_loop(...)`
            is the released one.
        options: what else `MeasureFisher` takes: kind, samples, batch_size, skip, captured, subspace.

    Raises:
        TypeError: an unknown option.
        ValueError: an unknown structure.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> clients = [(jnp.zeros((1, 1)), jnp.ones((1, 1))), (jnp.full((1, 1), 5.0), jnp.full((1, 1), 2.0))]  # (w, x)
        >>> rule = ff.fedfisher(lambda w, x: x @ w, ff.gaussian(), solver=ff.conjugate_gradients(damping=0.0))
        >>> payloads = [rule.measure(ff.Update(w), ff.examples(x), jax.random.key(0)) for w, x in clients]
        >>> print(f"{ff.merge_payloads(rule, payloads).params.item():.4f}")  # (1² · 0 + 2² · 5) / (1² + 2²)
        4.0000
    """
    short = {"diagonal": "diag", "kronecker": "kfac", "full": "full", "low_rank": "lowrank"}
    names = {name: f"fedfisher-{word}" for name, word in short.items()}
    if structure not in names:
        raise ValueError(f"structure: got {structure!r}, expected one of {', '.join(names)}")
    require_options(options, fedfisher, MeasureFisher)
    measure = MeasureFisher(apply, likelihood, structure, **options)
    chosen = conjugate_gradients(damping=DAMPING[structure]) if solver is None else solver
    if structure in ("kronecker", "low_rank"):
        solve = lambda s, _: _merged(chosen, stacked(s))  # noqa: E731
        return Rule(names[structure], measure, with_fisher, solve, "stack", takes=measure.takes(), passes=True)
    solve = lambda s, _: _merged(chosen, summed(s))  # noqa: E731
    return Rule(names[structure], measure, lift_sums, solve, "add", takes=measure.takes())


def fisher_merge(apply: Callable, likelihood: Likelihood, *, floor: float = 0.0, **options: Any) -> Rule:
    """Merge by Σ w_i F_i θ_i / Σ w_i F_i (arXiv 2111.09832), by the weighted mean where Σ w_i F_i ≤ `floor`.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what was fitted.
        floor: the largest mean Fisher at which an entry counts as unknown.
        options: what else `MeasureFisher` takes: kind, samples, batch_size, skip, captured.

    Raises:
        TypeError: an unknown option.
        ValueError: a floor that is negative or not finite.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> clients = [(jnp.zeros((1, 1)), jnp.ones((1, 1))), (jnp.full((1, 1), 5.0), jnp.full((1, 1), 2.0))]  # (w, x)
        >>> rule = ff.fisher_merge(lambda w, x: x @ w, ff.gaussian())
        >>> payloads = [rule.measure(ff.Update(w), ff.examples(x), jax.random.key(0)) for w, x in clients]
        >>> print(f"{ff.merge_payloads(rule, payloads).params.item():.4f}")  # (1² · 0 + 2² · 5) / (1² + 2²)
        4.0000
    """
    require_options(options, fisher_merge, MeasureFisher)
    measure, solver = MeasureFisher(apply, likelihood, "diagonal", **options), closed_form(floor=floor)
    solve = lambda s, _: _merged(solver, summed(s))  # noqa: E731
    return Rule("fisher-merge", measure, lift_sums, solve, "add", takes=measure.takes())


def with_fisher(payload: Payload, start: PyTree = None) -> Payload:
    """Return the payload itself, if it has a Fisher.

    Raises:
        ValueError: it has none.
    """
    if payload.statistics is None:
        raise ValueError("payload.statistics: got None, expected each client's Fisher information")
    return payload


def lift_sums(payload: Payload, start: PyTree = None) -> dict[str, Any]:
    """Compute what Q follows from when added up: w, wθ, wF, wFθ and wθᵀFθ; a secure sum carries them."""
    payload = with_fisher(payload)
    weight, applied = payload.weight, payload.statistics.matvec(payload.params)
    return {
        "weight": weight,
        "params": scaled(weight, payload.params),
        "fisher": scaled(weight, payload.statistics),
        "product": scaled(weight, applied),
        "constant": weight * optax.tree.vdot(payload.params, applied),
    }


def summed(summary: dict[str, Any]) -> Objective:
    """Make Q from the sums over clients of `lift_sums`."""
    share = 1 / summary["weight"]
    anchor, curvature = scaled(share, summary["params"]), scaled(share, summary["fisher"])
    product, applied = scaled(share, summary["product"]), curvature.matvec(anchor)
    squares, crossed = optax.tree.vdot(anchor, applied), 2 * optax.tree.vdot(anchor, product)
    at_anchor = share * summary["constant"] + squares - crossed
    size = share * summary["constant"] + squares + jnp.abs(crossed)
    return Objective(curvature, jax.tree.map(jnp.subtract, product, applied), anchor, at_anchor, size)


def stacked(payloads: Payload | Objective) -> Objective:
    """Make Q from stacked payloads; where it was made before, of payloads that are not in memory, it is that."""
    if isinstance(payloads, Objective):
        return payloads
    return objective(payloads.statistics, payloads.params, payloads.weight)


def _merged(solver: Solver, problem: Objective) -> Merged:
    return Merged(*solver(problem))
