"""Kronecker-factored Fisher information: K-FAC (arXiv 1503.05671; 2403.12329, section 4)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._layers import Layer
from ._protocol import Blocks

PyTree = Any


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
