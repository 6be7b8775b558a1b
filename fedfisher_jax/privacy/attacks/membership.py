"""Was this example among the client's? Scores that are higher for those that were; `measures.auc` judges them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..._likelihood import Likelihood
from ...curvature import Capture, Diagonal, Full, Kronecker, LowRank, activations
from ...curvature.structures._gram import Gram
from ...tracing._convolution import for_loops

PyTree = Any
Scores = Float[Array, " n"]
DAMPING = 1e-3  # relative to the mean diagonal entry
BATCH = 64


@partial(jax.jit, static_argnames=("apply", "likelihood", "batch_size"))
def loss_scores(
    apply: Callable, likelihood: Likelihood, params: PyTree, x: jax.Array, y: jax.Array, *, batch_size: int = BATCH
) -> Scores:
    """Minus the loss (Yeom et al. 2018): models fit what they were trained on.

    Args:
        apply: the model.
        likelihood: what was fitted.
        params: as the server sees them.
        x: [n, ...].
        y: [n], known to the attacker.
        batch_size: examples at once.
    """
    one = lambda pair: -likelihood.nll(apply(params, pair[0][None])[0], pair[1])  # noqa: E731
    return jax.lax.map(one, (x, y), batch_size=batch_size)


@partial(jax.jit, static_argnames=("apply", "likelihood", "damping", "batch_size"))
def fisher_scores(
    apply: Callable,
    likelihood: Likelihood,
    params: PyTree,
    fisher: Any,
    x: jax.Array,
    y: jax.Array,
    *,
    damping: float = DAMPING,
    batch_size: int = BATCH,
) -> Scores:
    """Minus gᵀ (F + ε)⁻¹ g for the gradient g of each example's loss: how strange it is to the client's curvature.

    Args:
        apply: the model.
        likelihood: what was fitted.
        params: as the server sees them.
        fisher: Diagonal, Kronecker, LowRank, Full or Gram.
        x: [n, ...].
        y: [n].
        damping: ε relative to the mean diagonal entry of F, or of each factor.
        batch_size: examples at once.

    Raises:
        ValueError: another structure.
    """
    plain = for_loops(apply)
    quadratic = inverse_quadratic(fisher, damping)

    def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, y = pair
        return -quadratic(jax.grad(lambda p: likelihood.nll(plain(p, x[None])[0], y))(params))

    return jax.lax.map(one, (x, y), batch_size=batch_size)


@partial(jax.jit, static_argnames=("captured", "layers", "damping", "batch_size"))
def leverage_scores(
    captured: Capture,
    layers: tuple[int, ...],
    params: PyTree,
    moments: Sequence[jax.Array],
    x: jax.Array,
    *,
    damping: float = DAMPING,
    batch_size: int = BATCH,
) -> Scores:
    """Minus the leverage aᵀ (A + ε)⁻¹ a of each example's layer inputs, summed over layers. Needs no label.

    An example's leverage in a second moment that it is part of is smaller: of n examples in d dimensions by a factor of
    1 − leverage / n, on average 1 − d / n. With fewer examples than dimensions, members alone lie in the span of A.

    Args:
        captured: the model's layers.
        layers: numbers of those that are read.
        params: as the server sees them; a first layer's inputs do not depend on them.
        moments: A of each of those layers, `fisher_inversion.input_moment`.
        x: [n, ...].
        damping: ε relative to the mean diagonal entry of A.
        batch_size: examples at once.
    """
    leaves = jax.tree.leaves(params)
    inverses = [_inverse(a, damping) for a in moments]

    def one(example: jax.Array) -> jax.Array:
        rows = activations(captured, leaves, example)
        chosen = [rows[number] for number in layers]
        found = [jnp.mean(jnp.sum((a @ inverse) * a, -1)) for a, inverse in zip(chosen, inverses, strict=True)]
        return -jnp.sum(jnp.stack(found))

    return jax.lax.map(one, x, batch_size=batch_size)


def inverse_quadratic(fisher: Any, damping: float) -> Callable[[PyTree], jax.Array]:
    """The function v → vᵀ (F + ε)⁻¹ v. A Kronecker block has each factor damped on its own."""
    match fisher:
        case Diagonal():
            floor = damping * _mean(fisher.values)
            return lambda v: jnp.asarray(
                optax.tree.sum(jax.tree.map(lambda f, g: g**2 / (f + floor), fisher.values, v))
            )
        case LowRank():
            floor = damping * jnp.sum(fisher.values) / sum(leaf.size // len(leaf) for leaf in fisher.vectors.values())
            floor = jnp.maximum(floor, jnp.finfo(fisher.values.dtype).tiny)

            def low_rank(v: PyTree) -> jax.Array:
                leaves = jax.tree.leaves(v)
                covered = {n: leaves[n] for n in fisher.vectors}
                along = sum(jnp.tensordot(u, covered[n], axes=covered[n].ndim) for n, u in fisher.vectors.items())
                kept = fisher.values / (fisher.values + floor)
                return (optax.tree.norm(covered, squared=True) - jnp.sum(kept * along**2)) / floor

            return low_rank
        case Full():
            inverse = _inverse(fisher.matrix, damping)

            def full(v: PyTree) -> jax.Array:
                flat = ravel_pytree(v)[0]
                return flat @ inverse @ flat

            return full
        case Kronecker() | Gram():
            factors = fisher.outputs if isinstance(fisher, Kronecker) else [None] * len(fisher.layers)
            pairs = [
                (_inverse(a, damping), None if g is None else _inverse(g, damping))
                for a, g in zip(fisher.inputs, factors, strict=True)
            ]

            def kronecker(v: PyTree) -> jax.Array:
                leaves, total = jax.tree.leaves(v), jnp.zeros((), pairs[0][0].dtype)
                for layer, (a, g) in zip(fisher.layers, pairs, strict=True):
                    matrix = layer.to_matrix(leaves)
                    total += jnp.sum((a @ matrix) * (matrix if g is None else matrix @ g))
                return total

            return kronecker
    raise ValueError(f"fisher: got {type(fisher).__name__}, expected Diagonal, Kronecker, LowRank, Full or Gram")


def _inverse(matrix: jax.Array, damping: float) -> jax.Array:
    """(M + ε)⁻¹ of a semi-definite [(groups,) n, n], ε relative to the mean diagonal entry."""
    values, vectors = jnp.linalg.eigh(matrix)
    floor = jnp.maximum(damping * jnp.mean(values, axis=-1, keepdims=True), jnp.finfo(values.dtype).tiny)
    scaled = vectors / (jnp.maximum(values, 0) + floor)[..., None, :]
    return scaled @ jnp.swapaxes(vectors, -1, -2)


def _mean(tree: PyTree) -> jax.Array:
    leaves = jax.tree.leaves(tree)
    mean = sum(jnp.sum(leaf) for leaf in leaves) / sum(leaf.size for leaf in leaves)
    return jnp.maximum(mean, jnp.finfo(leaves[0].dtype).tiny)
