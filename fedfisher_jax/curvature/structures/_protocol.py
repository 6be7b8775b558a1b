"""What every Fisher structure offers."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

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
