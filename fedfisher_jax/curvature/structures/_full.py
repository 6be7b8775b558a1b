"""A dense Fisher information matrix."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ._protocol import Blocks

PyTree = Any


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
