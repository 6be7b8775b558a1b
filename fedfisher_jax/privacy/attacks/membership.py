"""Was this example among the client's? Scores that are higher for those that were; `measures.auc` judges them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num

from ..._likelihood import Likelihood
from ...curvature import Capture, activations
from ...curvature._reuse import dense
from ...curvature.structures._registry import require_known
from ...tracing._convolution import for_loops

PyTree = Any
Rows = Num[Array, "n ..."]
Scores = Float[Array, " n"]
DAMPING = 1e-3  # relative to the mean diagonal entry
BATCH = 64


@partial(jax.jit, static_argnames=("apply", "likelihood", "batch_size"))
def loss_scores(
    apply: Callable,
    likelihood: Likelihood,
    params: PyTree,
    x: Rows,
    y: Rows,
    *,
    batch_size: int = BATCH,
) -> Scores:
    """Score by minus the loss (Yeom et al. 2018): models fit what they were trained on.

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
    x: Rows,
    y: Rows,
    *,
    damping: float = DAMPING,
    batch_size: int = BATCH,
) -> Scores:
    """Score by −gᵀ (F + ε)⁻¹ g, g an example's gradient: how strange it is to the client's curvature.

    Args:
        apply: the model.
        likelihood: what was fitted.
        params: as the server sees them.
        fisher: Fisher information of any registered structure.
        x: [n, ...].
        y: [n].
        damping: ε relative to the mean diagonal entry of F, or of each factor.
        batch_size: examples at once.

    Raises:
        ValueError: a structure that is not registered.
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
    moments: Sequence[Float[Array, "_ _"]],
    x: Rows,
    *,
    damping: float = DAMPING,
    batch_size: int = BATCH,
) -> Scores:
    """Score by minus the leverage aᵀ (A + ε)⁻¹ a of an example's layer inputs, over layers. No label is needed.

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
        chosen = [dense(rows[number]) for number in layers]
        found = [jnp.mean(jnp.sum((a @ inverse) * a, -1)) for a, inverse in zip(chosen, inverses, strict=True)]
        return -jnp.sum(jnp.stack(found))

    return jax.lax.map(one, x, batch_size=batch_size)


def inverse_quadratic(fisher: Any, damping: float) -> Callable[[PyTree], jax.Array]:
    """Make the function v → vᵀ (F + ε)⁻¹ v, damped as the structure's `preconditioner` is.

    Raises:
        ValueError: no registered structure.
    """
    inverse = require_known(fisher).preconditioner(damping)
    return lambda v: jnp.asarray(optax.tree.vdot(v, inverse(v)))


def _inverse(matrix: jax.Array, damping: float) -> jax.Array:
    """(M + ε)⁻¹ of a semi-definite [(groups,) n, n], ε relative to the mean diagonal entry."""
    values, vectors = jnp.linalg.eigh(matrix)
    floor = jnp.maximum(damping * jnp.mean(values, axis=-1, keepdims=True), jnp.finfo(values.dtype).tiny)
    scaled = vectors / (jnp.maximum(values, 0) + floor)[..., None, :]
    return scaled @ jnp.swapaxes(vectors, -1, -2)
