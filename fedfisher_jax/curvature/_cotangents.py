"""What the kinds of Fisher information differ in: which cotangents of a model's outputs are pulled back."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._likelihood import Likelihood

KINDS = ("exact", "monte_carlo", "empirical")


def cotangents(
    likelihood: Likelihood, kind: str, key: jax.Array | None, samples: int
) -> Callable[[Any, Any, Any], jax.Array]:
    """(outputs of one example, its target, its place) → rows [K, *outputs] whose Σ s sᵀ is its output Fisher.

    Args:
        likelihood: of one example.
        kind: "exact": the columns of S; "monte_carlo": gradients at targets drawn from the model, divided by √samples;
            "empirical": the gradient at the given target.
        key: for Monte-Carlo; an example's draws depend on its place.
        samples: Monte-Carlo draws per example.

    Raises:
        ValueError: unknown kind, Monte-Carlo without key, no samples.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    if kind == "monte_carlo" and key is None:
        raise ValueError("key: monte_carlo draws targets and needs a random key, got None")
    if samples < 1:
        raise ValueError(f"samples: got {samples}, expected at least 1")

    def rows(outputs: Any, target: Any, position: Any) -> jax.Array:
        if kind == "exact":
            return likelihood.fisher_factor(outputs)
        gradient = jax.grad(likelihood.nll)
        if kind == "empirical":
            return gradient(outputs, target)[None]
        keys = jax.random.split(jax.random.fold_in(key, position), samples)  # pyright: ignore[reportArgumentType]
        drawn = jax.vmap(lambda k: gradient(outputs, likelihood.sample(k, outputs)))(keys)
        return drawn / jnp.sqrt(jnp.asarray(samples, drawn.dtype))

    return rows
