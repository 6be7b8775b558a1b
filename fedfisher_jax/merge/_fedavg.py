"""FedAvg (arXiv 1602.05629): the mean of the clients' parameters, weighted by their numbers of examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._likelihood import Likelihood
from ._rule import Measure, Merged, Payload, Rule


def fedavg(apply: Callable, likelihood: Likelihood) -> Rule:
    """θ = Σ n_i θ_i / Σ n_i. Sends 32 d bits; folds by addition."""

    def lift(payload: Payload) -> dict[str, Any]:
        return {"weight": payload.weight, "params": weighted(payload.weight, payload.params)}

    def solve(summary: dict[str, Any]) -> Merged:
        return Merged(weighted(1 / summary["weight"], summary["params"]), {})

    return Rule("fedavg", Measure(apply, likelihood, None), lift, solve, "add")


def weighted(factor: Any, tree: Any) -> Any:
    """Factor · tree in the tree's own types."""
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, tree)
