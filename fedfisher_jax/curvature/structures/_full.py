"""A dense Fisher information matrix."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .._layers import Layer, numbered
from .._leaves import Leaf
from .._pull_back import Capture, Pulled
from ._protocol import Blocks, Spectral, Structure, eigenpairs, require_static, shaped
from ._signs import Sign

PyTree = Any
MAX_FULL = 20_000  # parameters: 1.6 GB in float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Full(Structure):
    """A dense matrix [d, d] in the order of `ravel_pytree(params)`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> params = {"w": jnp.asarray([1.0, -1.0])}
        >>> f = ff.Full(jnp.asarray([[2.0, 1.0], [1.0, 2.0]]), ((2,),), jax.tree.structure(params))
        >>> f.matvec(params)["w"].tolist()
        [1.0, -1.0]
    """

    name: ClassVar[str] = "full"
    signs: ClassVar[Mapping[str, Sign]] = {"matrix": "semidefinite"}
    additive: ClassVar[bool] = True
    reads: ClassVar[Literal["layers", "gradients"]] = "gradients"

    matrix: Any
    shapes: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})  # of the parameters' leaves
    treedef: Any = dataclasses.field(metadata={"static": True})

    def matvec(self, v: PyTree) -> PyTree:
        """F v, by one product."""
        flat, unravel = ravel_pytree(v)
        return unravel(self.matrix @ flat)

    def diagonal(self) -> PyTree:
        """The matrix's diagonal as a tree like the parameters."""
        diagonal = jnp.diagonal(self.matrix)
        return jax.tree.unflatten(self.treedef, [diagonal[where] for where in numbered(self.shapes)])

    def scale(self, factor: Any) -> "Full":
        """F times a factor."""
        return dataclasses.replace(self, matrix=factor * self.matrix)

    def blocks(self) -> Blocks:
        """All leaves together are one block."""
        return (tuple(range(len(self.shapes))),)

    def to_dense(self) -> jax.Array:
        """The matrix itself, [d, d]."""
        return self.matrix

    def spectral(self, function: Spectral, cutoff: float | None = None) -> Callable[[PyTree], PyTree]:
        """Apply the function to the eigenvalues of the matrix."""
        values, vectors, noise = eigenpairs(self.matrix, cutoff)
        factors = function(values, noise, 0)

        def apply(v: PyTree) -> PyTree:
            flat, unravel = ravel_pytree(v)
            return unravel(vectors @ (factors * (vectors.T @ flat)))

        return apply

    def names(self, leaves: Sequence[Leaf]) -> tuple[str, ...]:
        """The name of the one array."""
        del leaves
        return ("matrix",)

    @classmethod
    def outline(cls, static: Any, leaves: Sequence[Leaf], treedef: Any) -> "Full":
        """The outline of a matrix over all parameters."""
        require_static(static, set(), cls.name)
        size = sum(leaf.size for leaf in leaves)
        return cls(shaped(size, size), tuple(leaf.shape for leaf in leaves), treedef)

    @classmethod
    def require(cls, params: PyTree) -> None:
        """Refuse more than `MAX_FULL` parameters."""
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        if size > MAX_FULL:
            raise ValueError(
                f"structure: got a full Fisher of {size} parameters, {size}² numbers, expected at most {MAX_FULL}"
            )

    @classmethod
    def sums(cls, pulled: Pulled) -> PyTree:
        """Add up the outer products of the whole gradients."""
        rows = [g.reshape(g.shape[0] * g.shape[1], -1) for g in pulled.leaves]
        jacobian = jnp.concatenate(rows, axis=-1)
        return jacobian.T @ jacobian

    @classmethod
    def from_sums(cls, mean: PyTree, inputs: PyTree, captured: Capture, params: PyTree) -> "Full":
        """Take the mean of the products as the matrix."""
        del inputs, captured
        leaves, treedef = jax.tree.flatten(params)
        return cls(mean, tuple(jnp.shape(leaf) for leaf in leaves), treedef)

    def moment(self, layer: Layer, side: int) -> jax.Array:
        """The partial trace of the layer's block."""
        where = layer.to_matrix(numbered(self.shapes))
        block = self.matrix[where.reshape(-1, 1), where.reshape(1, -1)].reshape(*where.shape, *where.shape)
        return jnp.einsum("iojo->ij" if side == 0 else "ioip->op", block)
