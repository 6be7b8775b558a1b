"""FedAvg (arXiv 1602.05629): the mean of the clients' parameters, weighted by their numbers of examples."""

from collections.abc import Callable
from typing import Any

from .._likelihood import Likelihood
from .._trees import scaled
from ._measure import MeasureFisher
from ._rule import ONE_MODEL, Merged, Payload, Rule

PyTree = Any


def fedavg(apply: Callable, likelihood: Likelihood) -> Rule:
    """Make FedAvg's rule (arXiv 1602.05629), θ = Σ n_i θ_i / Σ n_i: a client sends d numbers, which add up.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; not called.
        likelihood: what was fitted; not used.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> rule = ff.fedavg(lambda w, x: x @ w, ff.categorical())
        >>> payloads = [ff.Payload(jnp.asarray(1.0), jnp.zeros(2)), ff.Payload(jnp.asarray(3.0), jnp.ones(2))]
        >>> ff.merge_payloads(rule, payloads).params.tolist()
        [0.75, 0.75]
    """

    def lift(payload: Payload, start: PyTree) -> dict[str, Any]:
        return {"weight": payload.weight, "params": scaled(payload.weight, payload.params)}

    def solve(summary: dict[str, Any], start: PyTree) -> Merged:
        return Merged(scaled(1 / summary["weight"], summary["params"]), {})

    return Rule("fedavg", MeasureFisher(apply, likelihood, None), lift, solve, "add", takes=ONE_MODEL)
