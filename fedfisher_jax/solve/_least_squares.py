"""The exact minimiser for curvatures A ⊗ I."""

from ._closed_form import closed_form
from ._objective import Solver


def least_squares(*, cutoff: float | None = None) -> Solver:
    """Find the exact minimiser nearest the anchor for a `Gram`, V̄ + A⁺ R per layer: `closed_form` without damping.

    Args:
        cutoff: eigenvalues of A at most this multiple of the largest count as zero: there the average stays (the
            paper's inverse, and the pseudo-inverse of released code, put zero there). Default d · the smallest relative
            difference of its numbers, below which eigenvalues of a [d, d] matrix are rounding errors.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> apply, models = lambda w, x: x @ w, jnp.asarray([[[0.0]], [[5.0]]])
        >>> gram = lambda w, x: ff.fisher(apply, ff.gaussian(), w, ff.examples(x), structure="gram")
        >>> grams = jax.vmap(gram)(models, jnp.asarray([[[1.0]], [[2.0]]]))  # the clients' A are 1 and 4
        >>> solution = ff.solve.least_squares()(ff.solve.objective(grams, models, jnp.ones(2)))
        >>> print(f"{solution.params.item():.4f}")  # (1 · 0 + 4 · 5) / (1 + 4)
        4.0000
    """
    return closed_form(cutoff=cutoff)
