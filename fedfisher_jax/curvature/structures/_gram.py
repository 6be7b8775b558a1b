"""Second moments of layers' inputs as a curvature: a Kronecker product with the identity."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from .._layers import Layer
from ._protocol import Blocks

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gram:
    """A ⊗ I per layer, zero for every other leaf (where the anchor, the average, stays)."""

    inputs: tuple[Any, ...]  # per layer [inputs, inputs]
    layers: tuple[Layer, ...] = dataclasses.field(metadata={"static": True})
    shapes: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})  # of the parameters' leaves
    treedef: Any = dataclasses.field(metadata={"static": True})

    def matvec(self, v: PyTree) -> PyTree:
        """A V per layer."""
        leaves, treedef = jax.tree.flatten(v)
        result = dict(enumerate(jax.tree.map(jnp.zeros_like, leaves)))
        for layer, a in zip(self.layers, self.inputs, strict=True):
            result |= layer.from_matrix(a @ layer.to_matrix(leaves))
        return jax.tree.unflatten(treedef, [result[leaf] for leaf in range(len(leaves))])

    def diagonal(self) -> PyTree:
        """diag(A) for each of a layer's outputs."""
        leaves = [jnp.zeros(shape, self.inputs[0].dtype) for shape in self.shapes]
        result = dict(enumerate(leaves))
        for layer, a in zip(self.layers, self.inputs, strict=True):
            outputs = jax.eval_shape(layer.to_matrix, leaves).shape[-1]
            diagonal = jnp.diagonal(a, axis1=-2, axis2=-1)[..., None]
            result |= layer.from_matrix(jnp.broadcast_to(diagonal, (*diagonal.shape[:-1], outputs)))
        return jax.tree.unflatten(self.treedef, [result[leaf] for leaf in range(len(leaves))])

    def scale(self, factor: Any) -> "Gram":
        """Factor · F."""
        return dataclasses.replace(self, inputs=tuple(factor * a for a in self.inputs))

    def blocks(self) -> Blocks:
        """A layer's leaves together; every other leaf alone."""
        covered = {leaf for layer in self.layers for leaf in layer.leaves}
        alone = tuple((leaf,) for leaf in range(len(self.shapes)) if leaf not in covered)
        return tuple(layer.leaves for layer in self.layers) + alone
