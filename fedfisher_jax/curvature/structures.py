"""Fisher information matrices as positive semi-definite operators on parameter trees.

All have one small algebra: `matvec`, `quadratic`, `diagonal`, `trace`, `scale`, `to_dense`, `num_bytes` and `blocks`
(the leaves that it couples). They are frozen pytrees: a leading client axis is `vmap`. None is normalised beyond "mean
over examples"; their number is the client's weight, kept beside them.
"""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from .layers import Layer

PyTree = Any
Blocks = tuple[tuple[int, ...], ...]


@runtime_checkable
class Fisher(Protocol):
    """What every structure offers; v and the result of `matvec` are trees like the parameters."""

    def matvec(self, v: PyTree) -> PyTree:
        """F v."""
        ...

    def diagonal(self) -> PyTree:
        """The diagonal of F as a tree like the parameters."""
        ...

    def scale(self, factor: Any) -> "Fisher":
        """Factor · F."""
        ...

    def blocks(self) -> Blocks:
        """Numbers of the parameter leaves that F couples with each other; F is block-diagonal between them."""
        ...


def quadratic(fisher: Fisher, v: PyTree) -> jax.Array:
    """vᵀ F v."""
    return jnp.asarray(optax.tree.vdot(v, fisher.matvec(v)))


def trace(fisher: Fisher) -> jax.Array:
    """Tr F."""
    return jnp.asarray(optax.tree.sum(fisher.diagonal()))


def num_bytes(fisher: Fisher) -> int:
    """Bytes of the arrays that represent F."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(fisher))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagonal:
    """diag(values)."""

    values: PyTree

    def matvec(self, v: PyTree) -> PyTree:
        """Entry by entry."""
        return jax.tree.map(jnp.multiply, self.values, v)

    def diagonal(self) -> PyTree:
        """The values."""
        return self.values

    def scale(self, factor: Any) -> "Diagonal":
        """Factor · F."""
        return Diagonal(jax.tree.map(lambda value: factor * value, self.values))

    def blocks(self) -> Blocks:
        """Each leaf alone."""
        return tuple((leaf,) for leaf in range(len(jax.tree.leaves(self.values))))

    def to_dense(self) -> jax.Array:
        """[d, d] in the order of `ravel_pytree`."""
        return jnp.diag(ravel_pytree(self.values)[0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Full:
    """A dense matrix [d, d] in the order of `ravel_pytree(params)`."""

    matrix: Any
    shapes: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})  # of the parameters' leaves
    treedef: Any = dataclasses.field(metadata={"static": True})

    def matvec(self, v: PyTree) -> PyTree:
        """One product."""
        flat, unravel = ravel_pytree(v)
        return unravel(self.matrix @ flat)

    def diagonal(self) -> PyTree:
        """The matrix's diagonal."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        pieces = jnp.split(jnp.diagonal(self.matrix), ends[:-1])
        leaves = [piece.reshape(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]
        return jax.tree.unflatten(self.treedef, leaves)

    def scale(self, factor: Any) -> "Full":
        """Factor · F."""
        return dataclasses.replace(self, matrix=factor * self.matrix)

    def blocks(self) -> Blocks:
        """One block of everything."""
        return (tuple(range(len(self.shapes))),)

    def to_dense(self) -> jax.Array:
        """The matrix."""
        return self.matrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kronecker:
    """A ⊗ G per captured layer, a diagonal elsewhere (arXiv 2403.12329, section 4).

    `inputs[l]` is A [(groups,) inputs, inputs], the second moment of the layer's activations summed over positions;
    `outputs[l]` is G [(groups,) outputs, outputs], of the gradients at its output, averaged over positions. On the
    layer's matrix V [inputs, outputs] the block acts as A V G; papers, whose weights are [out, in], write G ⊗ A.
    """

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    rest: dict[int, Any]  # leaf number → diagonal
    layers: tuple[Layer, ...] = dataclasses.field(metadata={"static": True})
    treedef: Any = dataclasses.field(metadata={"static": True})

    def matvec(self, v: PyTree) -> PyTree:
        """A V G per layer."""
        leaves, treedef = jax.tree.flatten(v)
        result = {leaf: value * leaves[leaf] for leaf, value in self.rest.items()}
        for layer, a, g in zip(self.layers, self.inputs, self.outputs, strict=True):
            result |= layer.from_matrix(a @ layer.to_matrix(leaves) @ g)
        return jax.tree.unflatten(treedef, [result[leaf] for leaf in range(len(leaves))])

    def diagonal(self) -> PyTree:
        """diag(A) diag(G)ᵀ per layer."""
        result = dict(self.rest)
        for layer, a, g in zip(self.layers, self.inputs, self.outputs, strict=True):
            diagonals = jnp.diagonal(a, axis1=-2, axis2=-1), jnp.diagonal(g, axis1=-2, axis2=-1)
            result |= layer.from_matrix(diagonals[0][..., :, None] * diagonals[1][..., None, :])
        return jax.tree.unflatten(self.treedef, [result[leaf] for leaf in range(len(result))])

    def scale(self, factor: Any) -> "Kronecker":
        """Factor · F (on G and the diagonal)."""
        outputs = tuple(factor * g for g in self.outputs)
        rest = {leaf: factor * value for leaf, value in self.rest.items()}
        return dataclasses.replace(self, outputs=outputs, rest=rest)

    def blocks(self) -> Blocks:
        """A layer's weight and bias together; every other leaf alone."""
        return tuple(layer.leaves for layer in self.layers) + tuple((leaf,) for leaf in sorted(self.rest))

    def to_dense(self) -> jax.Array:
        """[d, d] in the order of `ravel_pytree`, from explicit Kronecker products."""
        leaves = jax.tree.leaves(self.diagonal())
        ends = np.cumsum([leaf.size for leaf in leaves])
        numbers = [jnp.arange(e - leaf.size, e).reshape(leaf.shape) for e, leaf in zip(ends, leaves, strict=True)]
        dense = jnp.zeros((ends[-1], ends[-1]), jnp.result_type(*leaves))
        for leaf, value in self.rest.items():
            where = numbers[leaf].ravel()
            dense = dense.at[where, where].set(value.ravel())
        for layer, a, g in zip(self.layers, self.inputs, self.outputs, strict=True):
            where = layer.to_matrix(numbers)
            groups = [(where, a, g)] if where.ndim == 2 else zip(where, a, g, strict=True)
            for rows, left, right in groups:
                dense = dense.at[rows.ravel()[:, None], rows.ravel()].set(jnp.kron(left, right))
        return dense


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mixture:
    """Σ_i w_i F_i over Fishers stacked on a leading client axis: the curvature of the aggregated objective."""

    fishers: Any
    weights: Any  # [M]

    def matvec(self, v: PyTree) -> PyTree:
        """All clients' factors in one batched product."""
        return self._mean(jax.vmap(lambda fisher: fisher.matvec(v))(self.fishers))

    def diagonal(self) -> PyTree:
        """The mixture of the diagonals."""
        return self._mean(jax.vmap(lambda fisher: fisher.diagonal())(self.fishers))

    def scale(self, factor: Any) -> "Mixture":
        """Factor · F."""
        return Mixture(self.fishers, factor * self.weights)

    def blocks(self) -> Blocks:
        """Those of the clients."""
        return self.fishers.blocks()

    def to_dense(self) -> jax.Array:
        """The mixture of the dense matrices."""
        count = self.weights.shape[0]
        each = [jax.tree.map(lambda leaf, i=i: leaf[i], self.fishers).to_dense() for i in range(count)]
        return jnp.tensordot(self.weights, jnp.stack(each), axes=1)

    def _mean(self, stacked: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.tensordot(self.weights.astype(leaf.dtype), leaf, axes=1), stacked)
