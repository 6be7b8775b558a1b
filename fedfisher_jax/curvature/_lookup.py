"""Tables whose rows are looked up, as layers: an embedding's inputs are one-hot vectors, which nobody writes out.

With a_t the unit vector of the row that position t reads, Σ_t a_t a_tᵀ is the diagonal matrix of how often each row is
read, and the gradient Σ_t a_t g_tᵀ has the g_t of a row added up. So a table's Kronecker block has one diagonal side,
and its squared gradients cost as much as its positions: no array is as large as the table for each example.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..tracing._jaxpr import Equation, Program


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lookup:
    """Which rows of a table positions read, in the place of one-hot activations [..., T, size]."""

    numbers: Any  # integers [..., T], from 1; 0 reads no row, as padding does
    size: int = dataclasses.field(metadata={"static": True})  # rows of the table
    dtype: Any = dataclasses.field(metadata={"static": True})  # in which is counted


def table_axis(equation: Equation, shape: tuple[int, ...]) -> int | None:
    """Find the axis of the first operand, of this shape, whose whole slices a `gather` picks one by one, if it does."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    if numbers.operand_batching_dims or len(numbers.start_index_map) != 1:
        return None
    (axis,) = numbers.start_index_map
    whole = (*shape[:axis], 1, *shape[axis + 1 :])
    return axis if tuple(numbers.collapsed_slice_dims) == (axis,) and tuple(sizes) == whole else None


def gathered(equation: Equation, indices: jax.Array, size: int, dtype: Any) -> Lookup:
    """Read from a `gather`'s indices [..., 1] which rows it takes; those out of range read none, or the nearest."""
    rows = indices.reshape(-1)
    inside = (rows >= 0) & (rows < size)
    if equation.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP:
        return Lookup(jnp.where(inside, rows + 1, 0), size, dtype)
    return Lookup(jnp.clip(rows, 0, size - 1) + 1, size, dtype)


def is_one_hot(program: Program, variable: int, axis: int) -> bool:
    """Tell whether a variable is (numbers == 0, 1, 2 …) along an axis, as `jax.nn.one_hot` makes it."""
    makers = {v: equation for equation in program.equations for v in equation.outputs}

    def maker(v: int) -> Equation | None:
        equation = makers.get(v)
        while equation is not None and equation.name == "convert_element_type":
            equation = makers.get(equation.inputs[0])
        return equation

    def varies(v: int, axis: int) -> bool | None:
        """True: counts up along the axis alone; False: is the same all along it; None: unknown."""
        if program.avals[v].shape[axis] == 1:
            return False
        equation = makers.get(v)
        if equation is None:
            return None
        if equation.name == "iota":
            return equation.params["dimension"] == axis
        if equation.name == "convert_element_type":
            return varies(equation.inputs[0], axis)
        if equation.name == "broadcast_in_dim":
            places = tuple(equation.params["broadcast_dimensions"])
            return varies(equation.inputs[0], places.index(axis)) if axis in places else False
        return None

    equation = maker(variable)
    if equation is None or equation.name != "eq":
        return False
    return {varies(v, axis) for v in equation.inputs} == {True, False}


def hot(rows: jax.Array, dtype: Any) -> Lookup:
    """Read the numbers of one-hot rows [T, size]; a row of zeros reads none."""
    return Lookup(jnp.where(rows.any(-1), jnp.argmax(rows, -1) + 1, 0), rows.shape[-1], dtype)


def gradient(a: Any, g: jax.Array) -> jax.Array:
    """Add up a_t g_tᵀ over positions: a [(groups,) T, inputs], g [(groups,) T, outputs]; `_reuse` has any layer's."""
    if isinstance(a, Lookup):
        return jnp.zeros((a.size + 1, g.shape[-1]), g.dtype).at[a.numbers].add(g)[1:]
    return jnp.swapaxes(a, -1, -2) @ g


def second_moment(a: Any) -> jax.Array:
    """Add up a aᵀ over examples and positions: [(groups,) inputs, inputs] from a [n, (groups,) T, inputs].

    A table has the diagonal [size] alone: how often each row is read.
    """
    if isinstance(a, Lookup):
        return jnp.zeros(a.size + 1, a.dtype).at[a.numbers.ravel()].add(1)[1:]
    groups = a.shape[1:-2]
    rows = jnp.moveaxis(a, 0, -3).reshape(*groups, -1, a.shape[-1])  # one long product: XLA's of several axes is slow
    return jnp.swapaxes(rows, -1, -2) @ rows


def squares(a: Lookup, g: jax.Array) -> jax.Array:
    """Add up a table's squared gradients over examples and cotangents: [size, outputs] from g [n, k, T, outputs].

    A position's g is first added to that of the first position which reads the same row.
    """
    positions = g.shape[-2]

    def of_example(numbers: jax.Array, g: jax.Array) -> jax.Array:
        first = jnp.full(a.size + 1, positions).at[numbers].min(jnp.arange(positions))[numbers]
        return jnp.sum(jnp.zeros_like(g).at[:, first].add(g) ** 2, axis=0)

    added = jax.vmap(of_example)(a.numbers, g)
    return jnp.zeros((a.size + 1, g.shape[-1]), g.dtype).at[a.numbers].add(added)[1:]
