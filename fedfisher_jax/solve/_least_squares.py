"""The exact minimiser for curvatures A ⊗ I."""

import jax
import jax.numpy as jnp
import optax

from ..curvature import Gram
from ._objective import Objective, Solution, Solver


def least_squares(*, cutoff: float | None = None) -> Solver:
    """The exact minimiser nearest the anchor for a `Gram`: V̄ + A⁺ R per layer.

    Args:
        cutoff: eigenvalues of A at most this multiple of the largest count as zero: there the average stays (the
            paper's inverse, and the pseudo-inverse of released code, put zero there). Default d · the smallest relative
            difference of its numbers, below which eigenvalues of a [d, d] matrix are rounding errors.
    """

    def solve(problem: Objective) -> Solution:
        gram, pulls = problem.curvature, jax.tree.leaves(problem.pull)
        assert isinstance(gram, Gram)
        delta = dict(enumerate(jax.tree.map(jnp.zeros_like, pulls)))
        for layer, a in zip(gram.layers, gram.inputs, strict=True):
            values, vectors = jnp.linalg.eigh(a)
            relative = a.shape[-1] * jnp.finfo(values.dtype).eps if cutoff is None else cutoff
            kept = values > relative * values[..., -1:]
            inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)[..., None]
            transposed = jnp.swapaxes(vectors, -1, -2)
            delta |= layer.from_matrix(vectors @ (inverse * (transposed @ layer.to_matrix(pulls))))
        change = jax.tree.unflatten(gram.treedef, [delta[leaf] for leaf in range(len(pulls))])
        params = jax.tree.map(jnp.add, problem.anchor, change)
        gap = optax.tree.norm(jax.tree.map(jnp.subtract, problem.pull, gram.matvec(change)))
        diagnostics = {
            "objective_start": problem.value_at_anchor,
            "objective_end": problem.value(params),
            "residual": gap / jnp.maximum(optax.tree.norm(problem.pull), jnp.finfo(gap.dtype).tiny),
            "iterations": jnp.asarray(1),
            "converged": jnp.asarray(True),
        }
        return Solution(params, diagnostics)

    return solve
