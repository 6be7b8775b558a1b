"""Many clients' objective in the size of a few: one quadratic, with a few Kronecker products a layer as its curvature.

The curvature is cut, and says by how much; value and gradient are exact at the minimiser of the clients' own objective,
so that alone they give nearly their own merge. Where the diagonal of what was dropped is positive it is kept, or a pull
would meet no resistance in dropped directions. A sum that is cut may have negative eigenvalues, which no sum of Fishers
has: a layer's block is shifted by its most negative one.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy  # its parts load where they are used

from .._trees import from_numbered, pick, stack, weighted_sum
from ..curvature import Mixture
from ..curvature.structures._kronecker import Kronecker
from ..curvature.structures._nearest_products import joined, nearest_products
from ._conjugate_gradients import conjugate_gradients
from ._objective import Objective
from ._passes import Passes, Streamed

PyTree = Any
SPARE, LEAST = 4, 32  # times the rank, and at least so many products, are kept while clients come


class Products(NamedTuple):
    """The objective of many clients, its curvature a sum of a few Kronecker products a layer."""

    weight: float  # of all clients together
    anchor: PyTree
    pull: PyTree
    value: Any  # at the anchor
    terms: Kronecker  # stacked [rank]
    spare: PyTree  # the diagonal of what was dropped, where it is positive
    shifts: np.ndarray  # [layers], what is added to the diagonal of each layer's block
    dropped: np.ndarray  # [layers], at least the Frobenius norm of the clients' block less the products
    kept: np.ndarray  # [layers], the Frobenius norm of the products


def objective_of(products: Products) -> Objective:
    """Make the objective that is kept."""
    extra = jax.tree.map(jnp.add, products.spare, _by_leaf(products))
    around = Mixture(products.terms, jnp.ones(len(jax.tree.leaves(products.terms)[0])))
    diagonal = jax.tree.map(jnp.add, around.diagonal(), extra)
    near = pick(products.terms, slice(0, 1)).nearest_sum(jnp.ones(1))  # the first product alone is semi-definite
    product = lambda v: _product(products.terms, extra, v)  # noqa: E731
    curvature = Streamed(product, diagonal, near, products.terms.blocks())
    return Objective(curvature, products.pull, products.anchor, products.value)


def together(objectives: Sequence[Objective], weights: Sequence[float]) -> Objective:
    """Add up objectives of different clients: Σ_j w_j Q_j / Σ_j w_j, around the mean of their anchors.

    Args:
        objectives: at least one, all with curvatures that are `Streamed`.
        weights: the clients' weights together, of each.
    """
    if len(objectives) == 1:
        return objectives[0]
    shares = jnp.asarray(np.asarray(weights, np.float64) / np.sum(np.asarray(weights, np.float64)))
    curvatures = [one.curvature for one in objectives]
    anchor = weighted_sum(shares, stack([one.anchor for one in objectives]))
    gaps = [jax.tree.map(jnp.subtract, anchor, one.anchor) for one in objectives]
    pulls = [jax.tree.map(jnp.subtract, q.pull, q.curvature.matvec(d)) for q, d in zip(objectives, gaps, strict=True)]
    values = jnp.stack([jnp.asarray(one.value(anchor)) for one in objectives])
    near = [one.nearest() for one in curvatures]  # pyright: ignore[reportAttributeAccessIssue]
    nearest = None if None in near else stack(near).nearest_sum(shares, floor=0.0)
    product = lambda v: weighted_sum(shares, stack([one.matvec(v) for one in curvatures]))  # noqa: E731
    diagonal = weighted_sum(shares, stack([one.diagonal() for one in curvatures]))
    curvature = Streamed(product, diagonal, nearest, curvatures[0].blocks())
    at_anchor = jnp.tensordot(shares.astype(values.dtype), values, axes=1)
    return Objective(curvature, weighted_sum(shares, stack(pulls)), anchor, at_anchor)


def recompressed(regions: Sequence[Products], clients: tuple[float, Objective, Passes] | None, rank: int) -> Products:
    """Keep `rank` products a layer of the objective of all regions and clients together.

    Products of a few clients are cut together with what was kept of those before. Where there are at most
    max(`SPARE` · rank, `LEAST`) clients and earlier products, the result is the nearest sum, and `dropped` its error;
    where there are more, it is near that, and `dropped` is an upper end of the error.

    Args:
        regions: what was kept of other clients before.
        clients: the weight of further clients, their objective and passes over them; None where there are none.
        rank: how many products are kept.
    """
    objectives = [objective_of(one) for one in regions] + ([clients[1]] if clients else [])
    weights = [one.weight for one in regions] + ([clients[0]] if clients else [])
    total, whole = float(np.sum(weights)), together(objectives, weights)
    terms, dropped, held_rank = None, np.zeros(()), max(SPARE * rank, LEAST)
    for more, shares, lost in _parts(regions, clients[2] if clients else None, total):
        held = more if terms is None else joined(terms, more)
        old = 0 if terms is None else held_rank
        terms, cut, kept = nearest_products(held, np.concatenate([np.ones(old), shares]), held_rank)
        dropped = dropped + lost + cut
    assert terms is not None
    terms, cut, kept = nearest_products(terms, np.ones(held_rank), rank)
    dropped = dropped + cut
    cut_diagonal = Mixture(terms, jnp.ones(rank)).diagonal()
    spare = jax.tree.map(lambda all, cut: jnp.maximum(all - cut, 0), whole.curvature.diagonal(), cut_diagonal)
    quadratic = total, whole.anchor, whole.pull, whole.value_at_anchor
    made = Products(*quadratic, terms, spare, 0 * kept, dropped, kept)
    made = made._replace(shifts=np.asarray([_shift(made, number) for number in range(len(kept))]))
    return _touching(made, whole)


def _touching(made: Products, whole: Objective) -> Products:
    """Change pull and value so that the objective has, where the whole one is least, its value and its gradient."""
    least = jax.tree.map(jnp.subtract, conjugate_gradients()(whole).params, whole.anchor)
    products = whole.curvature.matvec(least), objective_of(made).curvature.matvec(least)
    missing = jax.tree.map(jnp.subtract, *products)
    pull = jax.tree.map(jnp.subtract, made.pull, missing)
    return made._replace(pull=pull, value=made.value - optax.tree.vdot(least, missing))


def _parts(
    regions: Sequence[Products], passes: Passes | None, total: float
) -> Iterable[tuple[Kronecker, np.ndarray, Any]]:
    """Fishers that are stacked, their shares, and what was dropped of them before."""
    for one in regions:
        rank = len(jax.tree.leaves(one.terms)[0])
        yield one.terms, np.full(rank, one.weight / total), one.dropped * one.weight / total
    for clients in passes.chunks() if passes else ():
        weights = np.asarray(clients.weights, np.float64)
        real = np.flatnonzero(weights)  # the last ones may be filled up
        yield pick(clients.fishers, real), weights[real] / total, 0.0


def _shift(products: Products, number: int) -> float:
    """The size of the most negative eigenvalue of a layer's block, with its rounding; what was dropped bounds it."""
    terms = products.terms
    if len(terms.outputs[number]) == 1:
        return 0.0
    layer, size = terms.layers[number], int(np.prod(terms.layers[number].matrix_shape))
    leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.zeros_like, products.anchor))

    def times(v: np.ndarray) -> np.ndarray:
        matrix = jnp.asarray(v, leaves[layer.weight].dtype).reshape(layer.matrix_shape)
        held = dict(enumerate(leaves)) | layer.from_matrix(matrix)
        result = jax.tree.leaves(_product(terms, products.spare, from_numbered(treedef, held)))
        return np.asarray(layer.to_matrix(result), np.float64).ravel()

    operator = scipy.sparse.linalg.LinearOperator((size, size), times, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    bound = float(products.dropped[number])
    if size < 3:
        return bound
    start = np.random.default_rng(0).normal(size=size)
    try:
        options: Any = {"which": "SA", "v0": start, "tol": 1e-2, "maxiter": 300}
        (value,), vector = scipy.sparse.linalg.eigsh(operator, 1, **options)
    except scipy.sparse.linalg.ArpackNoConvergence:
        return bound
    wrong = np.linalg.norm(times(vector[:, 0]) - value * vector[:, 0])
    return float(min(max(0.0, wrong - value), bound))


def _by_leaf(products: Products) -> PyTree:
    """The shift of each leaf."""
    by_leaf = dict.fromkeys(range(len(jax.tree.leaves(products.anchor))), 0.0)
    for layer, shift in zip(products.terms.layers, products.shifts, strict=True):
        by_leaf |= dict.fromkeys(layer.leaves, float(shift))
    held = [jnp.asarray(by_leaf[n], leaf.dtype) for n, leaf in enumerate(jax.tree.leaves(products.anchor))]
    return jax.tree.structure(products.anchor).unflatten(held)


@jax.jit
def _product(terms: Kronecker, extra: PyTree, v: PyTree) -> PyTree:
    applied = Mixture(terms, jnp.ones(len(jax.tree.leaves(terms)[0]))).matvec(v)
    return jax.tree.map(lambda hv, more, x: hv + more * x, applied, extra, v)
