"""A diagonal Fisher information matrix."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ..._trees import from_numbered
from .._chosen import Chosen
from .._leaves import Leaf
from .._lookup import Lookup, squares
from .._pull_back import Capture, Pulled
from .._reuse import Crossed, gradient
from ._protocol import Blocks, Spectral, Structure, require_static, shaped
from ._signs import Sign

PyTree = Any
ROOM = 2**26  # bytes that gradients of a layer with many positions may take at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagonal(Structure):
    """A diagonal matrix, whose entries `values` form a tree like the parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> f = ff.Diagonal({"w": jnp.asarray([1.0, 2.0])})
        >>> f.matvec({"w": jnp.asarray([3.0, 4.0])})["w"].tolist()
        [3.0, 8.0]
    """

    name: ClassVar[str] = "diagonal"
    signs: ClassVar[Mapping[str, Sign]] = {"diagonal": "nonnegative"}
    additive: ClassVar[bool] = True

    values: PyTree

    def matvec(self, v: PyTree) -> PyTree:
        """F v, entry by entry."""
        return jax.tree.map(jnp.multiply, self.values, v)

    def diagonal(self) -> PyTree:
        """The values themselves."""
        return self.values

    def scale(self, factor: Any) -> "Diagonal":
        """F times a factor."""
        return Diagonal(jax.tree.map(lambda value: factor * value, self.values))

    def blocks(self) -> Blocks:
        """Each leaf is a block of its own."""
        return tuple((leaf,) for leaf in range(len(jax.tree.leaves(self.values))))

    def to_dense(self) -> jax.Array:
        """F as a matrix [d, d] in the order of `ravel_pytree`."""
        return jnp.diag(ravel_pytree(self.values)[0])

    def spectral(self, function: Spectral, cutoff: float | None = None) -> Callable[[PyTree], PyTree]:
        """Apply the function entry by entry; the entries are exact, whatever the cutoff."""
        del cutoff
        leaves, treedef = jax.tree.flatten(self.values)
        return Diagonal(treedef.unflatten([function(leaf, 0, number) for number, leaf in enumerate(leaves)])).matvec

    def names(self, leaves: Sequence[Leaf]) -> tuple[str, ...]:
        """One name for each leaf's array."""
        return tuple(f"diagonal/{leaf.path}" for leaf in leaves)

    @classmethod
    def outline(cls, static: Any, leaves: Sequence[Leaf], treedef: Any) -> "Diagonal":
        """The values' outline, which has the shapes of the parameters."""
        require_static(static, set(), cls.name)
        return cls(treedef.unflatten([shaped(*leaf.shape) for leaf in leaves]))

    @classmethod
    def sums(cls, pulled: Pulled) -> PyTree:
        """Add up squared gradients."""
        return {
            "rest": [jnp.sum(g**2, axis=(0, 1)) for g in pulled.leaves],
            "squares": [_squares(a, g) for a, g in zip(pulled.activations, pulled.gradients, strict=True)],
        }

    @classmethod
    def from_sums(cls, mean: PyTree, inputs: PyTree, captured: Capture, params: PyTree) -> "Diagonal":
        """Put the means of squared gradients in the places of the leaves."""
        del inputs
        by_leaf = dict(zip(captured.fallback_leaves, mean["rest"], strict=True))
        for layer, found in zip(captured.layers, mean["squares"], strict=True):
            by_leaf |= layer.from_matrix(found)
        return cls(from_numbered(jax.tree.structure(params), by_leaf))

    def moment(self, layer: Any, side: int) -> jax.Array:
        """The layer's moment, which is a diagonal matrix.

        Raises:
            ValueError: a layer with groups, each of which has a moment of its own.
        """
        if layer.groups != 1:
            raise ValueError(f"layer: got {layer.groups} groups, expected one without groups")
        return jnp.diag(jnp.sum(layer.to_matrix(jax.tree.leaves(self.values)), axis=1 - side))


def _squares(a: Any, g: Any) -> jax.Array:
    """Σ_n Σ_k (Σ_t a_ti g_kto)² as [(groups,) inputs, outputs]: a [n, …, t, i], g [n, k, …, t, o]."""
    if isinstance(a, Lookup):
        return squares(a, g)
    if isinstance(a, Crossed):
        return _squares_one_by_one(a, g)
    if isinstance(a, Chosen):
        a = a.rows
    if a.shape[-2] == 1:  # one position: the square of the product is the product of the squares
        return jnp.einsum("n...i,n...o->...io", a[..., 0, :] ** 2, jnp.sum(g[..., 0, :] ** 2, axis=1))
    shape, (n, k) = (*a.shape[1:-2], a.shape[-1], g.shape[-1]), g.shape[:2]
    if n * k * math.prod(shape) * g.dtype.itemsize <= ROOM:
        return jnp.sum(jnp.einsum("n...ti,nk...to->nk...io", a, g) ** 2, axis=(0, 1))

    return _squares_one_by_one(a, g)


def _squares_one_by_one(a: Any, g: Any) -> jax.Array:
    """The same for any layer, with the room of one gradient."""
    n, k = jax.tree.leaves(g)[0].shape[:2]

    def of_pair(pair: Any) -> jax.Array:
        rows = jax.tree.map(lambda leaf: leaf[pair // k], a)
        return gradient(rows, jax.tree.map(lambda leaf: leaf[pair // k, pair % k], g)) ** 2

    zero = jax.eval_shape(of_pair, 0)
    return jax.lax.fori_loop(0, n * k, lambda pair, total: total + of_pair(pair), jnp.zeros(zero.shape, zero.dtype))
