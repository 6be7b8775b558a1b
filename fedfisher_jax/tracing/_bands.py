"""A plain convolution as a product with a banded matrix: a row of the product computes neighbouring output columns.

A layer of six outputs wastes most of a matrix product's speed, and its patches repeat every input 25 times. A tile of
several columns reads little more than one column does, and the product is as many times wider. An input that is no
number makes its whole tile none, since zeros of the band multiply it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._compat import vary, varying

LANES = 16  # numbers of a vector register: a product's width is rounded up to it
OVERHEAD = 32  # columns for which a product's row could be computed while its inputs are loaded
WIDEST = 256


class Bands(NamedTuple):
    """How the outputs of a convolution are cut into tiles, alone or with a maximum over windows after it.

    Attributes:
        kernel: its sizes (rows, columns, inputs, outputs).
        strides: (down, right).
        pool: the size of the windows after it: 1 for none, or 2.
        height: rows of outputs, after the pool, an incomplete last window dropped.
        width: columns of outputs.
        tile: columns of outputs that a row of the product computes, `pool` · `pool` numbers each.
    """

    kernel: tuple[int, int, int, int]
    strides: tuple[int, int]
    pool: int
    height: int
    width: int
    tile: int

    @property
    def tiles(self) -> int:
        """Tiles of a row of outputs; the last one may be incomplete."""
        return -(-self.width // self.tile)

    @property
    def step(self) -> int:
        """Columns of inputs from a tile's first to the next one's."""
        return self.tile * self.pool * self.strides[1]

    @property
    def span(self) -> int:
        """Columns of inputs that a tile reads."""
        return self.step - self.strides[1] + self.kernel[1]

    @property
    def blocks(self) -> int:
        """Blocks of `step` columns of inputs that a tile reads, the last one in part."""
        return -(-self.span // self.step)

    @property
    def numbers(self) -> int:
        """Numbers of an image's rows of the product."""
        return self.height * self.pool * self.tiles * self.kernel[0] * self.span * self.kernel[2]


def plan(
    image: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, int], pool: int = 1, wide: int | None = None
) -> Bands:
    """Choose the tile that costs least by a count of multiplications, its padding and its loading counted too.

    Args:
        image: sizes (images, rows, columns, inputs), padding included.
        kernel: sizes (rows, columns, inputs, outputs).
        strides: (down, right).
        pool: size of the windows after the convolution.
        wide: the product's width, at most, where it is not to be chosen.
    """
    height, width = (((image[1 + n] - kernel[n]) // strides[n] + 1) // pool for n in (0, 1))
    whole = Bands(tuple(kernel), tuple(strides), pool, height, width, 1)  # pyright: ignore[reportArgumentType]
    if wide is not None:
        return whole._replace(tile=max(min(wide // _wide(whole), width), 1))
    offered = [whole._replace(tile=tile) for tile in range(1, max(width, 1) + 1)]
    return min((one for one in offered if one.tile == 1 or _wide(one) <= WIDEST), key=_cost)


def _wide(bands: Bands) -> int:
    return bands.tile * bands.pool * bands.kernel[3]


def _cost(bands: Bands) -> int:
    return bands.tiles * bands.span * (-(-_wide(bands) // LANES) * LANES + OVERHEAD)


def gather(bands: Bands, images: jax.Array) -> jax.Array:
    """Arrange images [n, h, w, inputs] as the product's rows [n · height · pool · tiles, rows · span · inputs]."""
    down, pool = bands.strides[0], bands.pool
    images = _cut(images, (bands.tiles + bands.blocks - 1) * bands.step)
    n, h, _, channels = images.shape
    blocks = images.reshape(n, h, -1, bands.step * channels)
    parts = [blocks[:, :, j : j + bands.tiles, : (bands.span - j * bands.step) * channels] for j in range(bands.blocks)]
    spans = jax.lax.optimization_barrier(jnp.concatenate(parts, axis=-1))  # [n, h, tiles, span · inputs]
    slabs = [
        jnp.stack([spans[:, _lines(bands, first * down + row)] for row in range(bands.kernel[0])], axis=3)
        for first in range(pool)
    ]
    return jnp.stack(slabs, axis=2).reshape(n * bands.height * pool * bands.tiles, -1)


def spread(bands: Bands, rows: jax.Array, image: tuple[int, ...]) -> jax.Array:
    """Add the product's rows up where `gather` read them: its transpose, in place, for images of sizes `image`."""
    (n, h, w, channels), (tiles, step, pool) = image, (bands.tiles, bands.step, bands.pool)
    axes = varying(rows)
    windows = rows.reshape(n, bands.height, pool, tiles, bands.kernel[0], bands.span * channels)
    shape = (n, bands.height, pool, bands.kernel[0], tiles + bands.blocks - 1, step * channels)
    lines = vary(jnp.zeros(shape, rows.dtype), axes)
    for j in range(bands.blocks):
        part = jnp.moveaxis(windows[..., j * step * channels : (j + 1) * step * channels], 4, 3)
        lines = lines.at[:, :, :, :, j : j + tiles, : part.shape[-1]].add(part)
    lines = lines.reshape(n, bands.height, pool, bands.kernel[0], -1, channels)
    images = vary(jnp.zeros((n, h, lines.shape[-2], channels), rows.dtype), axes)
    for first in range(pool):
        for row in range(bands.kernel[0]):
            images = images.at[:, _lines(bands, first * bands.strides[0] + row)].add(lines[:, :, first, row])
    return _cut(images, w)


def matrix(bands: Bands, kernel: jax.Array) -> jax.Array:
    """Arrange a kernel [rows, columns, inputs, outputs] as [rows · span · inputs, pool · tile · outputs]."""
    banded = jnp.einsum("hwio,waqb->haiqbo", kernel, _band(bands).astype(kernel.dtype))
    return banded.reshape(-1, _wide(bands))


def kernel_sums(bands: Bands, sums: jax.Array) -> jax.Array:
    """Add the entries of a transposed matrix, [pool · tile · outputs, rows · span · inputs], up to a kernel's."""
    rows, _, inputs, outputs = bands.kernel
    apart = sums.reshape(bands.pool, bands.tile, outputs, rows, bands.span, inputs)
    return jnp.einsum("qbohai,waqb->hwio", apart, _band(bands).astype(sums.dtype))


def _band(bands: Bands) -> np.ndarray:
    """Mark which of a tile's inputs a kernel's column meets at which output: [columns, span, pool, tile]."""
    found = np.zeros((bands.kernel[1], bands.span, bands.pool, bands.tile))
    for column, first, place in np.ndindex(bands.kernel[1], bands.pool, bands.tile):
        found[column, (bands.pool * place + first) * bands.strides[1] + column, first, place] = 1
    return found


def _lines(bands: Bands, first: int) -> slice:
    """Pick the row of inputs that each row of outputs reads, beginning with `first`."""
    step = bands.pool * bands.strides[0]
    return slice(first, first + (bands.height - 1) * step + 1, step)


def _cut(images: jax.Array, width: int) -> jax.Array:
    """Give images [n, h, w, c] this width, by zeros or by dropping columns."""
    missing = width - images.shape[2]
    return jnp.pad(images, ((0, 0), (0, 0), (0, missing), (0, 0))) if missing > 0 else images[:, :, :width]
