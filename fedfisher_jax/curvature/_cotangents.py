"""What the kinds of Fisher information differ in: which cotangents of a model's outputs are pulled back."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._examples import require_targets
from .._likelihood import Likelihood

KINDS = ("exact", "monte_carlo", "empirical")


def cotangents(
    likelihood: Likelihood, kind: str, key: jax.Array | None, samples: int
) -> Callable[[Any, Any, Any], jax.Array]:
    """Make the function that gives the cotangents of one example.

    It maps (outputs of the example, its target, its place) to rows s [K, *outputs] whose Σ s sᵀ is the Fisher of its
    outputs, or a draw or a stand-in of it.

    Args:
        likelihood: what the outputs mean.
        kind: "exact": the columns of S; "monte_carlo": gradients at targets drawn from the model, divided by √samples;
            "empirical": the gradient at the given target.
        key: the random key of Monte-Carlo; an example's draws depend on its place.
        samples: Monte-Carlo draws per example.

    Raises:
        ValueError: unknown kind, Monte-Carlo without key, no samples.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    if kind == "monte_carlo" and key is None:
        raise ValueError("key: got None, expected a random key, since monte_carlo draws targets")
    if samples < 1:
        raise ValueError(f"samples: got {samples}, expected at least 1")

    def rows(outputs: Any, target: Any, position: Any) -> jax.Array:
        if kind == "exact":
            return likelihood.fisher_factor(outputs)
        gradient = jax.grad(likelihood.nll)
        if kind == "empirical":
            return gradient(outputs, require_targets(target))[None]
        keys = jax.random.split(jax.random.fold_in(key, position), samples)  # pyright: ignore[reportArgumentType]
        drawn = jax.vmap(lambda k: gradient(outputs, likelihood.sample(k, outputs)))(keys)
        return drawn / jnp.sqrt(jnp.asarray(samples, drawn.dtype))

    return rows
