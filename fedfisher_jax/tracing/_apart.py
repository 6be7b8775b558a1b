"""Whether a model keeps its examples apart, so that the size of a batch does not matter.

Batch norm in training mode, or noise drawn inside (dropout that was left on), make an example's outputs depend on what
else is in its batch. Most models show in their jaxpr that they do not: the axis of examples goes through every equation
untouched. It is told from others by its length, an odd one. Where an equation leaves doubt, numbers decide.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._trees import outline
from ._jaxpr import Program, depends_on, environment, leading_to, trace
from ._stand_ins import stand_ins
from ._untouched import MARK, scalars, untouched

PyTree = Any
FEW = 8  # examples that are compared with each alone
LIMIT = 1e-3  # relative: rounding errors of deep networks in float32 stay below
NARROW = 8  # of a narrower type, so many of its smallest relative differences: 0.06 in bfloat16
RANDOM = ("random_", "threefry", "rng_")  # how the names of primitives that draw random numbers begin


def require_apart(apply: Callable, params: PyTree, x: Any) -> None:
    """Refuse a model whose outputs for an example depend on the other ones of a batch, or on noise.

    Only shapes and types are used. It costs two tracings of `apply`, and where they leave doubt, one compilation.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...].
        params: any pytree of arrays, or of their shapes.
        x: [n, ...] examples, an array or a tree of such, or their shapes.

    Raises:
        ValueError: examples mix, or `apply` draws random numbers for each, where, and what to do instead; or it does
            not take every number of examples.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)

    try:
        marked, other = (jax.make_jaxpr(apply)(shapes, outline(x, count)) for count in (MARK, MARK + 2))
    except (TypeError, ValueError) as error:
        given = ", ".join(str(leaf.shape[1:]) for leaf in jax.tree.leaves(x))
        raise ValueError(f"apply: fails for {MARK} examples of shape {given}, expected any number") from error
    if untouched(marked.jaxpr) and scalars(marked) == scalars(other):  # an apply may divide by the number of examples
        return
    many, one = trace(apply, shapes, outline(x, FEW)), trace(apply, shapes, outline(x, 1))
    if (position := _first_difference(many, one, len(jax.tree.leaves(params)))) is not None:
        raise ValueError(_complaint(many, position))


def _complaint(program: Program, position: int) -> str:
    equation = program.equations[position]
    drawn = [v for one in program.equations if one.name.startswith(RANDOM) for v in one.outputs]
    place = f"{equation.name} in {equation.scope}" if equation.scope else equation.name
    if depends_on(program, drawn).intersection(equation.outputs):
        return f"apply: got random numbers drawn inside ({place}), expected none: switch dropout and other noise off"
    return (
        f"apply: got examples that mix ({place} depends on what else is in the batch), expected each example's outputs "
        "to depend on it alone: let batch norm use its running averages, or use another norm"
    )


def _first_difference(many: Program, one: Program, parameters: int) -> int | None:
    """Find the first equation whose values for a few examples are not those for each alone; None if outputs agree."""
    arguments, many = stand_ins(many)
    leaves, rows = arguments[:parameters], arguments[parameters:]
    one = stand_ins(one)[1]

    def gaps(positions: Sequence[int]) -> list[float]:
        watched = [(many.equations[n].outputs[0], one.equations[n].outputs[0]) for n in positions]
        watched = watched or [(many.outputs[0], one.outputs[0])]

        def all_of(leaves: list[Any], rows: Any) -> list[jax.Array]:
            together = environment(many, [*leaves, *rows])
            alone = jax.vmap(lambda row: environment(one, [*leaves, *(leaf[None] for leaf in row)]))(rows)
            return [_gap(together[v], alone[w]) for v, w in watched]

        with jax.debug_nans(False), jax.ensure_compile_time_eval():  # random numbers may well have logarithms of none
            return [float(gap) for gap in jax.jit(all_of)(leaves, rows)]

    (gap,) = gaps([])
    if math.isnan(gap):  # roots and logarithms need positive numbers
        leaves = [abs(leaf) for leaf in leaves]
        (gap,) = gaps([])
    kinds = {aval.dtype for aval in many.avals.values() if jnp.issubdtype(aval.dtype, jnp.floating)}
    limit = max([LIMIT, *(NARROW * float(jnp.finfo(kind).eps) for kind in kinds)])
    if not gap > limit:
        return None
    needed = sorted(leading_to(many, many.outputs))
    if [e.name for e in many.equations] != [e.name for e in one.equations]:
        return needed[-1]
    return next((n for n, gap in zip(needed, gaps(needed), strict=True) if gap > limit), needed[-1])


def _gap(together: Any, alone: Any) -> jax.Array:
    """Compare a value for `FEW` examples with the values [FEW, ...] for each alone: the largest relative difference.

    It is NaN where no number is finite, infinite where shapes do not say which part is whose, 0 for random keys.
    """
    if jnp.issubdtype(together.dtype, jax.dtypes.extended):
        return jnp.zeros(())
    shape, part = together.shape, alone.shape[1:]
    if shape != part:
        axes = [n for n, (many, one) in enumerate(zip(shape, part, strict=False)) if many != one]
        if len(shape) != len(part) or len(axes) != 1 or shape[axes[0]] != FEW * part[axes[0]]:
            return jnp.asarray(jnp.inf)
        split = together.reshape(*shape[: axes[0]], FEW, part[axes[0]], *shape[axes[0] + 1 :])
        together = jnp.moveaxis(split, axes[0], 0)
    a, b = (value.astype(jnp.float32) for value in (together, alone))
    finite = jnp.isfinite(a) & jnp.isfinite(b)
    largest = jnp.max(jnp.abs(b), where=finite, initial=0)
    gap = jnp.max(jnp.abs(a - b), where=finite, initial=0) / jnp.where(largest > 0, largest, 1)
    gap = jnp.where((jnp.isfinite(a) == jnp.isfinite(b)).all(), gap, jnp.inf)
    return jnp.where(jnp.isfinite(a).any() | jnp.isfinite(b).any(), gap, jnp.nan)
