"""What the kinds of Fisher information differ in: which cotangents of a model's outputs are pulled back."""

import dataclasses
from collections.abc import Callable, Sequence
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


def counted_activations(
    likelihood: Likelihood, target: Any, rows: list[Any], uses: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """One example's activations [(groups,) T, inputs] of every layer, zero at positions that its target leaves out.

    A layer whose positions are not the targets' (a convolution's, say) keeps all of them, or none where nothing of the
    example counts.

    Args:
        likelihood: what the outputs mean.
        target: the example's.
        rows: the activations; those of a weight that is read several times are behind each other.
        uses: how often each layer's weight is read, see `Capture.uses`.

    Returns:
        The activations, and how many positions count in each layer (in each way, where its weight is read both ways).
    """
    if likelihood.counts is None:
        return rows, [each(lambda a: jnp.asarray(_positions(a)), a) for a in rows]
    counts = jnp.ravel(likelihood.counts(known(target)))

    def kept(a: Any, times: int) -> jax.Array:
        positions = _positions(a)
        return jnp.tile(counts, times) if positions == times * counts.size else jnp.full(positions, counts.any())

    def rows_kept(a: Any, times: int) -> Any:
        here = kept(a, times)
        if isinstance(a, Lookup):
            return dataclasses.replace(a, numbers=jnp.where(here, a.numbers, 0))
        if isinstance(a, Chosen):
            return Chosen(jnp.where(here[:, None], a.rows, 0), jnp.where(here, a.chose, 0))
        return jnp.where(here[:, None], a, 0)

    pairs = list(zip(rows, uses, strict=True))
    return [each(rows_kept, *pair) for pair in pairs], [each(lambda a, n: kept(a, n).sum(), *pair) for pair in pairs]


def _positions(a: Any) -> int:
    if isinstance(a, Lookup):
        return a.numbers.shape[-1]
    return a.chose.shape[-1] if isinstance(a, Chosen) else a.shape[-2]
