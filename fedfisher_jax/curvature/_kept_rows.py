"""Products with a Fisher matrix by its rows, which are kept where there is room for them, else pulled back again.

H = (1/n) Σ_x Σ_k j_xk j_xkᵀ, j_xk = J_xᵀ s_xk.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .._compat import vary, varying
from .._examples import Batch, Examples, take
from .._trees import pick, wide
from ._capture import capture
from ._pull_back import Capture
from ._rows import Factors, as_leaves, rows_of_batch
from .structures._low_rank import split

PyTree = Any
ROOM = 2**27  # bytes of rows
BATCH = 16  # examples pulled back at once, whose gradients at a network's layers stay near a core


def by_rows(
    apply: Callable, params: PyTree, data: Examples, rows_of: Callable, covered: Sequence[int], width: int, most: int
) -> Callable[[jax.Array], jax.Array] | None:
    """Make the map that applies H to the columns of [d, m], over the leaves that are covered.

    None where the rows of one batch, of at most `most` examples, take more than `ROOM`, or an example has more
    cotangents than 2m, for m = `width` products and as many transposed ones with its Jacobian.
    """
    leaves = jax.tree.leaves(params)
    if jax.eval_shape(apply, params, pick(data.x, slice(0, 1))).ndim < 2:
        return None
    captured = _only(capture(apply, params, data.x), covered)

    def of_batch(batch: Batch) -> list[Any]:
        return rows_of_batch(captured, leaves, batch, rows_of, lambda a, g: g.shape[-2] <= g.shape[0])[1]

    size = min(BATCH, most, data.indices.shape[0])
    batches = -(-data.indices.shape[0] // size)
    shapes = jax.eval_shape(lambda: of_batch(take(data, 0, size)))
    cotangents = next(one.outputs if isinstance(one, Factors) else one.rows for one in shapes).shape[1]
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    if needed > ROOM or cotangents > 2 * width:
        return None
    used = -(-data.size // size)
    pulled = lambda number: of_batch(take(data, number * size, size))  # noqa: E731
    rows = pulled
    if needed * batches <= ROOM:
        empty = jax.tree.map(lambda leaf: jnp.zeros((batches, *leaf.shape), leaf.dtype), shapes)

        def keep(number: Any, kept: list[Any]) -> list[Any]:
            return jax.tree.map(lambda all_, leaf: all_.at[number].set(leaf), kept, pulled(number))

        rows = partial(pick, jax.lax.fori_loop(0, used, keep, vary(empty, varying((params, data)))))
    sizes = [jnp.shape(leaves[n]) for n in covered]

    def product(vectors: jax.Array) -> jax.Array:
        given = dict(zip(covered, split(vectors.T, sizes), strict=True))  # [m, *leaf]
        parts = [jnp.moveaxis(part, 0, -1) for part in _as_rows(captured, leaves, given)]

        def add(number: Any, total: list[jax.Array]) -> list[jax.Array]:
            here = rows(number)
            along = sum(one.times(part) for one, part in zip(here, parts, strict=True))
            return [old + one.back(along).astype(old.dtype) for old, one in zip(total, here, strict=True)]

        zeros = [vary(jnp.zeros(part.shape, wide(part.dtype)), varying((params, data))) for part in parts]
        total = jax.lax.fori_loop(0, used, add, zeros)
        found = as_leaves(captured, [jnp.moveaxis(part, -1, 0) for part in total])
        flat = [found[n].reshape(vectors.shape[1], math.prod(jnp.shape(leaves[n]))) for n in covered]
        return jnp.concatenate(flat, axis=1).T / jnp.asarray(data.size, vectors.dtype)

    return product


def _only(captured: Capture, covered: Sequence[int]) -> Capture:
    """Leave out what is not covered, so that nothing is pulled back to it."""
    sites = tuple(site for site in captured.sites if set(site.layer.leaves) & set(covered))
    starts = {site.output for site in sites}
    rest = tuple(leaf for leaf in captured.fallback_leaves if leaf in covered)
    pools = tuple(pool for pool in captured.pools if pool.start in starts)
    return dataclasses.replace(captured, sites=sites, fallback_leaves=rest, pools=pools)


def _as_rows(captured: Capture, leaves: Sequence[Any], given: dict[int, jax.Array]) -> list[jax.Array]:
    """Arrange vectors by leaves [m, *leaf] as layers' matrices [m, …] and other leaves; zero where none is given."""
    m = next(iter(given.values())).shape[0]
    all_ = [given.get(n, jnp.zeros((m, *jnp.shape(leaf)))) for n, leaf in enumerate(leaves)]
    matrices = [jax.vmap(site.layer.to_matrix)(all_) for site in captured.sites]
    return matrices + [all_[leaf] for leaf in captured.fallback_leaves]
