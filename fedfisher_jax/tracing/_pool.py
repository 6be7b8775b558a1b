"""The maximum over 2×2 windows, whose gradient goes to the first of equal entries."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.custom_jvp
def max_pool2(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Maximum over 2x2 windows; among equal entries the first alone gets the gradient, as in PyTorch.

    The gradient of `jnp.max` is split over equal entries instead. Entries are equal wherever patches are, as on the
    constant background of MNIST-like images. The gradient of a weight is the same either way, but a Kronecker factor,
    the sum over positions of squared output gradients, is not. An incomplete last window is dropped.
    """
    return _maximum(x, x)[0]


@max_pool2.defjvp
def _max_pool2_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    return _maximum(primals[0], tangents[0])


def larger(a: Array, b: Array) -> Bool[Array, "..."]:
    """Tell where b, the later entry, is the maximum: where it is larger, or no number."""
    return (b > a) | jnp.isnan(b)


def _maximum(x: jax.Array, along: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find the maximum of each window, and what stands at its place in `along`."""
    for axis in (2, 1):
        (first, second), (one, other) = _pairs(x, axis), _pairs(along, axis)
        taken = larger(first, second)
        x, along = jnp.where(taken, second, first), jnp.where(taken, other, one)
    return x, along


def _pairs(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    size = x.shape[axis] // 2
    pairs = jax.lax.slice_in_dim(x, 0, 2 * size, axis=axis).reshape(*x.shape[:axis], size, 2, *x.shape[axis + 1 :])
    return jax.lax.index_in_dim(pairs, 0, axis + 1, False), jax.lax.index_in_dim(pairs, 1, axis + 1, False)
