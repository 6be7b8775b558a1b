"""A diagonal Fisher information matrix."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ._protocol import Blocks

PyTree = Any


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
