"""The nearest sum of a few Kronecker products to one of many.

After Van Loan and Pitsianis, "Approximation with Kronecker products" (1993): Σ_i w_i A_i ⊗ G_i, its entries
rearranged, is the matrix Σ_i w_i vec(A_i) vec(G_i)ᵀ; the rearrangement changes no entry, so the nearest sum of r
products in Frobenius norm is that matrix' singular value decomposition, cut to r. The first product is positive semi-
definite where all A_i and G_i are; the others need not be.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._kronecker import Kronecker


class Cut(NamedTuple):
    """A sum of Kronecker products that was cut to a few."""

    terms: Kronecker  # stacked [rank]; the sum is that of all, the diagonals' sum is the first one's `rest`
    dropped: np.ndarray  # [layers], the Frobenius norm of what was left out of each layer's block
    kept: np.ndarray  # [layers], that of what was kept


def nearest_products(fishers: Kronecker, weights: Any, rank: int) -> Cut:
    """Find the nearest sum of `rank` Kronecker products a layer to Σ_i w_i F_i.

    Args:
        fishers: the Fishers F_i, stacked on a leading axis [M]; factors need not be semi-definite.
        weights: [M], the w_i.
        rank: how many products are kept; where there are fewer, some are zero.
    """
    weights = np.asarray(weights, np.float64)
    pairs = zip(fishers.layers, fishers.inputs, fishers.outputs, strict=True)
    cuts = [_cut(np.asarray(a), np.asarray(g), weights, rank, layer.lookup) for layer, a, g in pairs]
    rest = {}
    for leaf, values in fishers.rest.items():
        total = np.tensordot(weights, np.asarray(values, np.float64), axes=1)
        rest[leaf] = jnp.asarray(np.stack([total, *[np.zeros_like(total)] * (rank - 1)]).astype(values.dtype))
    inputs, outputs = (tuple(jnp.asarray(cut[side]) for cut in cuts) for side in (0, 1))
    terms = dataclasses.replace(fishers, inputs=inputs, outputs=outputs, rest=rest)
    return Cut(terms, np.asarray([cut[2] for cut in cuts]), np.asarray([cut[3] for cut in cuts]))


def joined(first: Kronecker, second: Kronecker) -> Kronecker:
    """Stack the products of two sums."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def _cut(a: np.ndarray, g: np.ndarray, weights: np.ndarray, rank: int, lookup: bool) -> tuple[Any, Any, float, float]:
    """One layer's factors [rank, (groups,) n, n], what was dropped and what was kept; a table's A is [rank, n]."""
    if g.ndim == 3:
        inputs, outputs, values = _decomposed(a, g, weights, rank, lookup)
        return inputs, outputs, float(np.linalg.norm(values[rank:])), float(np.linalg.norm(values[:rank]))
    groups = [_decomposed(a[:, n], g[:, n], weights, rank, lookup) for n in range(g.shape[1])]
    dropped, kept = (np.linalg.norm([np.linalg.norm(one[2][part]) for one in groups]) for part in _parts(rank))
    return np.stack([one[0] for one in groups], 1), np.stack([one[1] for one in groups], 1), float(dropped), float(kept)


def _parts(rank: int) -> tuple[slice, slice]:
    return slice(rank, None), slice(rank)


def _decomposed(a: np.ndarray, g: np.ndarray, weights: np.ndarray, rank: int, lookup: bool) -> tuple[Any, Any, Any]:
    """Factors [rank, …] and all singular values, by the decomposition of a matrix of the number of products."""
    count = len(weights)
    left, small_left = np.linalg.qr((weights[:, None] * a.reshape(count, -1).astype(np.float64)).T)
    right, small_right = np.linalg.qr(g.reshape(count, -1).astype(np.float64).T)
    u, values, vt = np.linalg.svd(small_left @ small_right.T)
    kept = min(rank, len(values))
    roots = np.sqrt(values[:kept])
    inputs = ((left @ u[:, :kept]) * roots).T.reshape(kept, *a.shape[1:])
    outputs = ((right @ vt[:kept].T) * roots).T.reshape(kept, *g.shape[1:])
    sign = np.where(np.trace(outputs, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    outputs = _symmetric(sign[:, None, None] * outputs)
    inputs = sign[:, None] * inputs if lookup else _symmetric(sign[:, None, None] * inputs)
    empty = ((0, rank - kept),)
    padded = [np.pad(one, empty + ((0, 0),) * (one.ndim - 1)) for one in (inputs, outputs)]
    return padded[0].astype(a.dtype), padded[1].astype(g.dtype), values


def _symmetric(matrices: np.ndarray) -> np.ndarray:
    return (matrices + np.swapaxes(matrices, -1, -2)) / 2
