"""The factors A and G of one layer: from sums over examples, of one norm, the nearest of several; eigenpairs of A."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._chosen import Chosen
from .._layers import Layer
from .._leaves import Leaf
from .._lookup import Lookup, second_moment
from .._reuse import Crossed
from ._protocol import Blocks, eigenpairs


def gradient_moments(a: Any, g: Any, count: Any) -> Any:
    """Add up second moments of a layer's output gradients [n, K, (groups,) T, outputs], averaged over positions."""
    if isinstance(a, Chosen):
        return second_moment(g.reshape(-1, *g.shape[2:]))  # divided by all positions that chose, in the end
    if not isinstance(a, Crossed):
        return _averaged(second_moment, g, count)
    across = _square if isinstance(a.along, Lookup) else second_moment
    along, other = (None, None) if count is None else (count.along, count.across)
    return Crossed(_averaged(second_moment, g.along, along), _averaged(across, g.across, other))


def _averaged(moment: Callable, g: jax.Array, count: Any) -> jax.Array:
    """A moment of g [n, K, …, T, outputs] divided by T, or by how many positions of each example count [n]."""
    rows = g.reshape(-1, *g.shape[2:])  # each cotangent as an example
    if count is None:
        return moment(rows) / rows.shape[-2]
    each = jnp.repeat(jnp.maximum(count, 1).astype(rows.dtype), len(rows) // len(count))
    return moment(rows / jnp.sqrt(each).reshape(-1, *[1] * (rows.ndim - 1)))


def _square(g: jax.Array) -> jax.Array:
    """The diagonal of `second_moment` of [n, T, outputs]."""
    return jnp.sum(g**2, axis=(0, 1))


def from_means(layer: Layer, a: Any, g: Any) -> tuple[Any, Any]:
    """A and G for means of moments; of uses both ways those of one product, the diagonal of D where A is a diagonal."""
    if isinstance(a, Chosen):
        return a.rows, g / jnp.where(a.chose > 0, a.chose, 1)[:, None, None]
    if not isinstance(a, Crossed):
        return a, g
    sides = jnp.stack([a.along, g.across]), jnp.stack([g.along, a.across])
    return nearest(layer, *sides, jnp.ones(2), 0.0)


def nearest(layer: Layer, a: Any, g: Any, weights: Any, floor: float) -> tuple[Any, Any]:
    """A and G of one layer for factors [M, (groups,) n, n], a table's A [M, n]; the trace of the sum goes into G."""
    traces = [jnp.sum(a, axis=-1) if layer.lookup else _traces(a), _traces(g)]
    shares = weights.reshape(-1, *[1] * (g.ndim - 3)).astype(a.dtype) * traces[0] * traces[1]
    total = jnp.sum(shares, axis=0)
    shares = jnp.where(total > 0, shares / jnp.where(total > 0, total, 1), 0)

    def mean(factor: Any, trace: Any, unit: Any) -> Any:
        known = jnp.where(trace > 0, shares / jnp.where(trace > 0, trace, 1), 0)
        rows = known.reshape(len(known), -1), factor.reshape(len(known), known[0].size, -1)
        total = jnp.einsum("mg,mgk->gk", *rows)  # as a sum of products XLA takes n³ steps for it on a CPU
        return total.reshape(factor.shape[1:]) + floor / factor.shape[-1] * unit.astype(factor.dtype)

    unit = jnp.ones(a.shape[-1]) if layer.lookup else jnp.eye(a.shape[-1])
    return mean(a, traces[0], unit), total[..., None, None] * mean(g, traces[1], jnp.eye(g.shape[-1]))


def _traces(factor: Any) -> jax.Array:
    return jnp.trace(factor, axis1=-2, axis2=-1)


def balanced(a: Any, g: Any) -> tuple[Any, Any]:
    norms = []
    for factor in (a, g):
        largest = jnp.max(jnp.abs(factor))  # the squares of large numbers overflow
        norms.append(largest * jnp.linalg.norm(factor / jnp.where(largest > 0, largest, 1)))
    known = (norms[0] > 0) & (norms[1] > 0)
    ratio = jnp.where(known, jnp.sqrt(norms[1]) / jnp.sqrt(jnp.where(known, norms[0], 1)), 1)
    return ratio * a, g / ratio


def times(layer: Layer, a: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiply A with a layer's matrix."""
    return a[..., :, None] * matrix if layer.lookup else a @ matrix


def input_eigenpairs(layer: Layer, a: jax.Array, cutoff: float | None) -> tuple[jax.Array, Any, jax.Array]:
    """Eigenvalues, eigenvectors and rounding errors of A, as `eigenpairs`; a diagonal has None and no errors."""
    return (a, None, jnp.zeros_like(a[..., :1])) if layer.lookup else eigenpairs(a, cutoff)


def reciprocal(values: jax.Array, damping: float, axis: int | None = -1) -> jax.Array:
    """1 / (values + ε), ε relative to their mean over an axis; zero where all are."""
    mean = jnp.mean(values, axis=axis, keepdims=True)
    floor = jnp.maximum(damping * mean, jnp.finfo(values.dtype).tiny)
    return jnp.where(mean > 0, 1 / (values + floor), 0)


def factor_of(layers: Sequence[Layer], factors: Sequence[Any], layer: Layer) -> jax.Array:
    """Find the factor that belongs to a layer.

    Raises:
        ValueError: the layer has none.
    """
    by_weight = {one.weight: factor for one, factor in zip(layers, factors, strict=True)}
    if layer.weight not in by_weight:
        raise ValueError(f"fisher: got no factors of the layer of leaf {layer.weight}, expected those of every layer")
    return by_weight[layer.weight]


def layer_blocks(layers: Sequence[Layer], others: Sequence[int]) -> Blocks:
    """A layer's leaves are one block; every other leaf is one alone."""
    return tuple(layer.leaves for layer in layers) + tuple((leaf,) for leaf in others)


def input_names(layers: Sequence[Layer], leaves: Sequence[Leaf]) -> tuple[str, ...]:
    """Name each layer's A by its weight: "inputs", or "counts" where it is the diagonal of a table."""
    return tuple(f"{'counts' if layer.lookup else 'inputs'}/{leaves[layer.weight].path}" for layer in layers)
