"""The aggregated objective of clients that are not held in memory: every sum over them is a pass over all of them.

One pass finds the anchor, one what else is fixed, and each product with a vector is one more: conjugate gradients take
one a step. Memory is that of a few clients and of the solver's vectors, however many clients there are.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._compat import Tracer
from .._trees import scaled, stack, weighted_sum
from ..curvature import Mixture
from ..curvature.structures._protocol import Blocks, Spectral
from ._objective import Objective

PyTree = Any


class Clients(NamedTuple):
    """A few clients, stacked on a leading axis [K]."""

    weights: Any  # zero of copies that fill up the last stack
    params: PyTree
    fishers: Any


class Passes(NamedTuple):
    """Clients that are read again for every sum over them.

    Attributes:
        chunks: begins a pass: the same `Clients` in the same order each time.
    """

    chunks: Callable[[], Iterable[Clients]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Streamed:
    """Σ_i w_i F_i over Fishers that are read again for every product with a vector; its diagonal is kept."""

    product: Callable[[PyTree], PyTree] = dataclasses.field(metadata={"static": True})
    entries: PyTree  # the diagonal
    near: Any  # see `Structure.nearest_sum`
    groups: Blocks = dataclasses.field(metadata={"static": True})  # that the Fishers couple

    def matvec(self, v: PyTree) -> PyTree:
        """H v, by one pass.

        Raises:
            TypeError: the solver is traced, and so cannot read anything.
        """
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(v)):
            raise TypeError("solver: got a compiled one, expected conjugate_gradients, which can read clients again")
        return self.product(v)

    def diagonal(self) -> PyTree:
        """The diagonal of H."""
        return self.entries

    def nearest(self) -> Any:
        """One Fisher near H whose spectrum is cheap, or None."""
        return self.near

    def blocks(self) -> Blocks:
        """The blocks of the clients' Fishers."""
        return self.groups

    def scale(self, factor: Any) -> "Streamed":
        """H times a factor."""
        near = None if self.near is None else self.near.scale(factor)
        product = lambda v: scaled(factor, self.product(v))  # noqa: E731
        return dataclasses.replace(self, product=product, entries=scaled(factor, self.entries), near=near)

    def to_dense(self) -> jax.Array:
        """Refuse: H is known by its products.

        Raises:
            TypeError: always.
        """
        raise TypeError("curvature: got a sum that is known by its products alone, expected one in memory")

    def spectral(self, function: Spectral, cutoff: float | None = None) -> Callable[[PyTree], PyTree]:
        """Refuse, as `to_dense`."""
        del function, cutoff
        raise TypeError("curvature: got a sum that is known by its products alone, expected one in memory")


def objective_by_passes(passes: Passes) -> Objective:
    """Make the objective that `objective` makes of the same clients in memory, by two passes over them.

    Sums over a chunk are in the clients' own types, sums over chunks in float64.

    Raises:
        ValueError: there is no client.
    """
    weight, products = _total(_weighed(clients) for clients in passes.chunks())
    anchor = scaled(1 / weight, products)
    near, blocks = None, ()

    def around() -> Iterator[PyTree]:
        nonlocal near, blocks
        for clients in passes.chunks():
            part, blocks = _nearest(clients.fishers, clients.weights / weight), clients.fishers.blocks()
            near = part if near is None or part is None else _nearest(stack([near, part]), jnp.ones(2))
            yield _around(anchor, weight, clients)

    pull, value, diagonal = _total(around())
    nearest = None if near is None else stack([near]).nearest_sum(jnp.ones(1))
    product = lambda v: _total(_product(v, weight, clients) for clients in passes.chunks())  # noqa: E731
    return Objective(Streamed(product, diagonal, nearest, blocks), pull, anchor, value)


def _total(parts: Iterable[PyTree]) -> PyTree:
    """Add up trees in float64, and round the sum to their own types."""
    total, part = None, None
    for part in parts:
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), part)
        total = wide if total is None else jax.tree.map(np.add, total, wide)
    if total is None:
        raise ValueError("payloads: expected at least one, got none")
    return jax.tree.map(lambda sums, leaf: jnp.asarray(np.asarray(sums, leaf.dtype)), total, part)


@jax.jit
def _weighed(clients: Clients) -> PyTree:
    """Σ w_i and Σ w_i θ_i."""
    return jnp.sum(clients.weights), weighted_sum(clients.weights, clients.params)


@jax.jit
def _around(anchor: PyTree, weight: Any, clients: Clients) -> PyTree:
    """The chunk's parts of the pull, of the value at the anchor, and of the diagonal."""
    shares = clients.weights / weight
    gaps = jax.tree.map(jnp.subtract, clients.params, anchor)
    pulls = jax.vmap(lambda fisher, gap: fisher.matvec(gap))(clients.fishers, gaps)
    values = jax.vmap(optax.tree.vdot)(gaps, pulls)
    value = jnp.tensordot(shares.astype(jnp.result_type(values)), values, axes=1)
    return weighted_sum(shares, pulls), value, Mixture(clients.fishers, shares).diagonal()


@jax.jit
def _product(v: PyTree, weight: Any, clients: Clients) -> PyTree:
    """The chunk's part of H v."""
    return Mixture(clients.fishers, clients.weights / weight).matvec(v)


@jax.jit
def _nearest(fishers: Any, weights: Any) -> Any:
    """The nearest Fisher of a chunk, or of two such."""
    return fishers.nearest_sum(weights, floor=0.0)
