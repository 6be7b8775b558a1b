"""FedAvg (arXiv 1602.05629): the mean of the clients' parameters, weighted by their numbers of examples."""

from collections.abc import Callable
from typing import Any

from .._likelihood import Likelihood
from .._trees import scaled
from ._rule import MeasureFisher, Merged, Payload, Rule

PyTree = Any


def fedavg(apply: Callable, likelihood: Likelihood) -> Rule:
    """θ = Σ n_i θ_i / Σ n_i. Sends 32 d bits; folds by addition."""

    def lift(payload: Payload, start: PyTree) -> dict[str, Any]:
        return {"weight": payload.weight, "params": scaled(payload.weight, payload.params)}

    def solve(summary: dict[str, Any], start: PyTree) -> Merged:
        return Merged(scaled(1 / summary["weight"], summary["params"]), {})

    return Rule("fedavg", MeasureFisher(apply, likelihood, None), lift, solve, "add")
