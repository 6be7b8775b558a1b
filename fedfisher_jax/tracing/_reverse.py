"""A convolution, and the 2×2 maximum after it, with a reverse rule of its own, for training in loops on CPU.

XLA's own rules leave the cache: patches of a whole batch are written, read, kept for the backward pass, and padded and
added up entry by entry. Here as many images as fit in the cache go through at once; the backward pass gathers their
patches again, and adds what belongs to the inputs in place. The maximum keeps one byte an output. The rule is for
reverse mode alone: forward derivatives of it are refused by JAX.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._compat import vary, varying
from . import _bands as bands
from ._pool import larger

CACHE = 2**21  # bytes of gathered patches: more images at once would leave a core's cache


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve(images: jax.Array, kernel: jax.Array, strides: tuple[int, int], pool: int, precision: Any) -> jax.Array:
    """Convolve without padding, and take the maximum over windows.

    Args:
        images: [n, h, w, inputs].
        kernel: [rows, columns, inputs, outputs].
        strides: (down, right).
        pool: 2, or 1 for no maximum.
        precision: how exact the matrix products are, as `jax.numpy.matmul` takes it.

    Returns:
        [n, height, width, outputs], as `max_pool2(lax.conv_general_dilated(…))`.
    """
    return _forward(images, kernel, strides, pool, precision)[0]


def _forward(images: jax.Array, kernel: jax.Array, strides: Any, pool: int, precision: Any) -> tuple[jax.Array, Any]:
    plan = bands.plan(images.shape, kernel.shape, strides, pool)
    matrix = bands.matrix(plan, kernel)

    def some(images: jax.Array) -> tuple[jax.Array, Any]:
        product = jnp.matmul(bands.gather(plan, images), matrix, precision=precision)
        apart = product.reshape(-1, plan.height, pool, plan.tiles, pool, plan.tile * kernel.shape[3])
        best, code = apart[:, :, 0, :, 0], None
        if pool > 1:
            code = jnp.zeros(best.shape, jnp.int8)
            for place in range(1, pool * pool):
                slab = apart[:, :, place // pool, :, place % pool]
                taken = larger(best, slab)
                best, code = jnp.where(taken, slab, best), jnp.where(taken, jnp.int8(place), code)
        return best.reshape(*best.shape[:2], -1, kernel.shape[3])[:, :, : plan.width], code

    return _in_parts(lambda _, part: (None, some(part)), None, images, plan)[1]


def _keep(images: jax.Array, kernel: jax.Array, strides: Any, pool: int, precision: Any) -> tuple[jax.Array, Any]:
    outputs, code = _forward(images, kernel, strides, pool, precision)
    return outputs, (images, kernel, code)


def _backward(strides: Any, pool: int, precision: Any, kept: Any, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    images, kernel, code = kept
    plan = bands.plan(images.shape, kernel.shape, strides, pool)
    matrix = bands.matrix(plan, kernel)
    missing = plan.tiles * plan.tile - plan.width
    slope = jnp.pad(slope, ((0, 0), (0, 0), (0, missing), (0, 0)))

    def some(sums: jax.Array, part: Any) -> tuple[jax.Array, jax.Array]:
        images, slope, code = part
        tiled = slope.reshape(-1, plan.height, plan.tiles, plan.tile * slope.shape[-1])
        if pool > 1:  # [n, height, pool, tiles, pool, tile · outputs]: the gradient stands at the maximum alone
            at = [[jnp.where(code == pool * down + right, tiled, 0) for right in range(pool)] for down in range(pool)]
            tiled = jnp.stack([jnp.stack(row, axis=3) for row in at], axis=2)
        # The barriers keep XLA from building patches anew inside of each product.
        gathered, rows = lax.optimization_barrier((bands.gather(plan, images), tiled.reshape(-1, matrix.shape[1])))
        kernels = lax.optimization_barrier(jnp.matmul(rows.T, gathered, precision=precision))
        inputs = lax.optimization_barrier(jnp.matmul(rows, matrix.T, precision=precision))
        return sums + kernels, bands.spread(plan, inputs, images.shape)

    none = vary(jnp.zeros(matrix.shape[::-1], slope.dtype), varying(kept))
    sums, inputs = _in_parts(some, none, (images, slope, code), plan)
    return inputs, bands.kernel_sums(plan, sums)


convolve.defvjp(_keep, _backward)


def _in_parts(function: Callable, carry: Any, arrays: Any, plan: bands.Bands) -> tuple[Any, Any]:
    """Scan over parts of a batch that fit in the cache, the last one filled up with zeros."""
    n, size = (len(leaf := jax.tree.leaves(arrays)[0]), leaf.dtype.itemsize)
    count = -(-n * plan.numbers * size // CACHE)
    each = -(-n // min(count, n))
    count = -(-n // each)
    if count == 1:
        return function(carry, arrays)

    def cut(array: jax.Array) -> jax.Array:
        filled = jnp.pad(array, [(0, count * each - n), *[(0, 0)] * (array.ndim - 1)])
        return filled.reshape(count, each, *array.shape[1:])

    carry, found = lax.scan(function, carry, jax.tree.map(cut, arrays))
    return carry, jax.tree.map(lambda array: array.reshape(count * each, *array.shape[2:])[:n], found)
