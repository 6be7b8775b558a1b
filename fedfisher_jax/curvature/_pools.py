"""Pools after a layer: their derivative is one number for each entry, whatever is pulled back.

Where every entry y_t of a layer's output feeds one entry z_w(t) of what follows, as through an activation function and
a pool over windows that do not overlap, the gradient in y is m_t g_w(t) with m_t = ∂z_w(t) / ∂y_t. So m is found once
for each example, in place of a walk back through comparisons and slices for each of its K output cotangents.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from .. import _compat
from ..tracing._jaxpr import Equation, Program, uses

MASKS = 4  # random halves of a pool's entries by which it is looked at


@dataclasses.dataclass(frozen=True)
class Pool:
    """A stretch of a program, from a variable y to a variable z with as many axes."""

    start: int  # variable y
    end: int  # variable z
    windows: tuple[int, ...]  # entries of y for one of z, along each axis; what is left over at the end feeds nothing
    equations: tuple[Equation, ...]  # that lead from y to z

    @property
    def reads(self) -> set[int]:
        """The variables, y among them, whose values the equations need."""
        return {v for e in self.equations for v in e.inputs} - {v for e in self.equations for v in e.outputs}


def find(program: Program, starts: Sequence[int]) -> list[Pool]:
    """Find what looks like a pool after each of these variables; only `error` tells whether it is one."""
    readers = uses(program)
    found = [_after(program, readers, start) for start in starts]
    return [pool for pool in found if pool is not None]


def _after(program: Program, readers: dict[int, list[int]], start: int) -> Pool | None:
    """Follow a variable up to the next product; z is the last value of a pool's shape through which all of it goes."""
    reached, equations, pool = {start}, [], None
    for position, equation in enumerate(program.equations):
        if not reached.intersection(equation.inputs):
            continue
        if equation.name in ("dot_general", "conv_general_dilated"):
            break
        reached.update(equation.outputs)
        equations.append(equation)
        held = [v for v in reached if any(reader == -1 or reader > position for reader in readers[v])]
        windows = _windows(program.avals[start].shape, program.avals[held[0]].shape) if len(held) == 1 else None
        if windows is not None:
            pool = Pool(start, held[0], windows, tuple(equations))
    return pool


def _windows(shape: Sequence[int], pooled: Sequence[int]) -> tuple[int, ...] | None:
    if len(shape) != len(pooled) or not all(pooled) or tuple(shape) == tuple(pooled):
        return None
    sizes = tuple(whole // part for whole, part in zip(shape, pooled, strict=True))
    fits = all(size and whole // size == part for size, whole, part in zip(sizes, shape, pooled, strict=True))
    return sizes if fits else None


def slopes(pool: Pool, values: Mapping[int, Any]) -> jax.Array:
    """The m, for the values of what the pool reads."""
    z, vjp = jax.vjp(lambda y: _run(pool, {**values, pool.start: y}), values[pool.start])
    return vjp(_compat.vary(jnp.ones_like(z), _compat.varying(z)))[0]


def gradients(pool: Pool, m: jax.Array, g: jax.Array) -> jax.Array:
    """The gradients in y [K, *y] for gradients in z [K, *z]; of many examples, under `vmap`, in a loop over them.

    The loop keeps XLA from finding m and g again for each entry of y, in the middle of whatever reads the result.
    """

    def of_example(m: jax.Array, g: jax.Array) -> jax.Array:
        return m * jax.vmap(lambda one: _spread(pool, one, m.shape))(g)

    return sequential_vmap(of_example)(m, g)


def error(pool: Pool, values: Mapping[int, Any]) -> jax.Array:
    """Tell by how much a gradient in y is missed, relatively, for a gradient that differs everywhere in z.

    Infinite where an entry of y feeds one of z outside of its window, however little: at other numbers, as after a norm
    of larger activations, that may be much.
    """
    start = values[pool.start]
    z, vjp = jax.vjp(lambda y: _run(pool, {**values, pool.start: y}), start)
    g = jnp.cos(jnp.arange(z.size)).astype(z.dtype).reshape(z.shape)
    found, (expected,) = gradients(pool, slopes(pool, values), g[None])[0], vjp(g)
    gap = jnp.linalg.norm(jnp.ravel(found - expected)) / jnp.linalg.norm(jnp.ravel(expected))

    def strays(some: jax.Array) -> jax.Array:
        """Whether a gradient of some entries of z reaches others' windows, where it would be exactly zero."""
        outside = _spread(pool, some.astype(z.dtype), start.shape) == 0
        return jnp.any(outside & (vjp(jnp.where(some, g, 0))[0] != 0))

    halves = jax.random.bernoulli(jax.random.key(0), 0.5, (MASKS, *z.shape))
    return jnp.where(jnp.any(jax.vmap(strays)(jnp.concatenate([halves, ~halves]))), jnp.inf, gap)


def _run(pool: Pool, values: Mapping[int, Any]) -> Any:
    known = dict(values)
    for equation in pool.equations:
        results = _compat.bind(equation.primitive, [known[v] for v in equation.inputs], equation.params)
        known |= dict(zip(equation.outputs, results, strict=True))
    return known[pool.end]


def _spread(pool: Pool, z: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Repeat every entry over its window; what no window holds gets zero."""
    pairs = [size for pair in zip(z.shape, pool.windows, strict=True) for size in pair]
    repeated = jnp.broadcast_to(z.reshape([n for size in z.shape for n in (size, 1)]), pairs)
    whole = repeated.reshape([count * size for count, size in zip(z.shape, pool.windows, strict=True)])
    return jnp.pad(whole, [(0, size - held) for size, held in zip(shape, whole.shape, strict=True)])
