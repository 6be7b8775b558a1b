"""Rows of Jacobians, example by example: a layer's part as activations and output gradients, or written out.

The part of j_k = Jᵀ s_k that belongs to a layer is Σ_t a_t g_tkᵀ over positions t (arXiv 1503.05671 has these sums).
Where positions are few, a and g are smaller and multiply faster.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._examples import Batch
from .._trees import widened
from ._pull_back import Capture, pull_back
from ._reuse import gradient


class Factors(NamedTuple):
    """A layer's rows as activations [n, T, inputs] and output gradients [n, K, T, outputs]."""

    inputs: jax.Array
    outputs: jax.Array

    def times(self, v: jax.Array) -> jax.Array:
        """Multiply with matrices [inputs, outputs, m]: [n, K, m]."""
        return jnp.einsum("nkto,ntom->nkm", self.outputs, jnp.einsum("nti,iom->ntom", self.inputs, v))

    def back(self, along: jax.Array) -> jax.Array:
        """Add the rows up with weights [n, K, m]: [inputs, outputs, m]."""
        return jnp.einsum("nti,ntom->iom", self.inputs, jnp.einsum("nkto,nkm->ntom", self.outputs, along))

    def squares(self) -> jax.Array:
        """Squared norms of the rows [n, K], by inner products of positions."""
        inputs = jnp.einsum("nti,nsi->nts", self.inputs, self.inputs)
        return jnp.einsum("nts,nkto,nkso->nk", inputs, self.outputs, self.outputs)


class Written(NamedTuple):
    """Rows written out, [n, K, *shape]."""

    rows: jax.Array

    def times(self, v: jax.Array) -> jax.Array:
        """Multiply with [*shape, m]: [n, K, m]."""
        return jnp.tensordot(self.rows, v, axes=v.ndim - 1)

    def back(self, along: jax.Array) -> jax.Array:
        """Add the rows up with weights [n, K, m]: [*shape, m]."""
        return jnp.tensordot(self.rows, along, axes=((0, 1), (0, 1)))

    def squares(self) -> jax.Array:
        """Squared norms of the rows [n, K]."""
        return jnp.sum(self.rows**2, axis=tuple(range(2, self.rows.ndim)))


def rows_of_batch(
    captured: Capture, leaves: Sequence[Any], batch: Batch, cotangents: Callable, factored: Callable[[Any, Any], bool]
) -> tuple[Any, list[Factors | Written]]:
    """Pull back the cotangents of every example of a batch, to its layers and then to the leaves that fall back.

    Args:
        captured: the model's layers.
        leaves: the parameters' leaves.
        batch: the examples; rows of padding are zero.
        cotangents: (outputs, target, position) of an example → [K, *outputs].
        factored: whether a layer's activations [T, inputs] and output gradients [K, T, outputs] stay apart, where they
            can: not in groups or at several reads of a table.

    Returns:
        The model's outputs [n, ...], and the rows of each layer and leaf.
    """

    def example(x: Any, y: Any, mask: Any, position: Any) -> tuple[Any, list[Any]]:
        pulled = pull_back(captured, leaves, x, lambda outputs: jnp.where(mask, cotangents(outputs, y, position), 0))
        pulled, found = widened(pulled), []
        for site, a, g in zip(captured.sites, pulled.activations, pulled.gradients, strict=True):
            apart = site.layer.groups == 1 and isinstance(a, jax.Array) and factored(a, g)
            found.append(Factors(a, g) if apart else Written(jax.vmap(lambda one, a=a: gradient(a, one))(g)))
        return pulled.outputs, found + [Written(leaf) for leaf in pulled.leaves]

    return jax.vmap(example)(batch.sound(batch.x), batch.y, batch.mask, batch.position)


def as_leaves(captured: Capture, parts: Sequence[jax.Array]) -> dict[int, jax.Array]:
    """Arrange vectors by layers and other leaves as leaves [m, *leaf], by their numbers."""
    found = dict(zip(captured.fallback_leaves, parts[len(captured.sites) :], strict=True))
    for site, part in zip(captured.sites, parts, strict=False):
        found |= jax.vmap(site.layer.from_matrix)(part)
    return found
