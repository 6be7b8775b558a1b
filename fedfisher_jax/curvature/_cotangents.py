"""What the kinds of Fisher information differ in: which cotangents of a model's outputs are pulled back."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._examples import known
from .._likelihood import Likelihood
from ._chosen import Chosen
from ._lookup import Lookup
from ._reuse import each

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
        return counted(likelihood, target, everywhere(outputs, target, position))

    def everywhere(outputs: Any, target: Any, position: Any) -> jax.Array:
        if kind == "exact":
            return likelihood.fisher_factor(outputs)
        gradient = jax.grad(likelihood.nll)
        if kind == "empirical":
            return gradient(outputs, known(target))[None]
        keys = jax.random.split(jax.random.fold_in(key, position), samples)  # pyright: ignore[reportArgumentType]
        drawn = jax.vmap(lambda k: gradient(outputs, likelihood.sample(k, outputs)))(keys)
        return drawn / jnp.sqrt(jnp.asarray(samples, drawn.dtype))

    return rows


def counting(likelihood: Likelihood, classes: Any) -> Any:
    """Tell which of these classes [...], the targets of positions, count: booleans [...]."""
    return jnp.ones(jnp.shape(classes), bool) if likelihood.counts is None else likelihood.counts(classes)


def counted(likelihood: Likelihood, target: Any, rows: jax.Array) -> jax.Array:
    """Rows [..., *positions, d] of one example, such as cotangents, zero at positions that its target leaves out."""
    return rows if likelihood.counts is None else jnp.where(likelihood.counts(known(target))[..., None], rows, 0)


def counted_activations(likelihood: Likelihood, target: Any, rows: list[Any]) -> tuple[list[Any], list[Any]]:
    """One example's activations [(groups,) T, inputs] of every layer, zero at positions that its target leaves out.

    A layer whose positions are not the targets' (a convolution's, say) keeps all of them.

    Returns:
        The activations, and how many positions count in each layer (in each way, where its weight is read both ways).
    """
    if likelihood.counts is None or not jnp.ndim(known(target)):
        return rows, [each(lambda a: jnp.asarray(_positions(a)), a) for a in rows]
    kept = likelihood.counts(target)

    def rows_kept(a: Any) -> Any:
        if _positions(a) != len(kept):
            return a
        if isinstance(a, Lookup):
            return dataclasses.replace(a, numbers=jnp.where(kept, a.numbers, 0))
        if isinstance(a, Chosen):
            return Chosen(jnp.where(kept[:, None], a.rows, 0), jnp.where(kept, a.chose, 0))
        return jnp.where(kept[:, None], a, 0)

    def count(a: Any) -> jax.Array:
        return jnp.asarray(_positions(a)) if _positions(a) != len(kept) else kept.sum()

    return [each(rows_kept, a) for a in rows], [each(count, a) for a in rows]


def _positions(a: Any) -> int:
    if isinstance(a, Lookup):
        return a.numbers.shape[-1]
    return a.chose.shape[-1] if isinstance(a, Chosen) else a.shape[-2]
