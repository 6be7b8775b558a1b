"""Where a variable is read in the end: followed through transpositions, reshapes and casts, along every branch."""

import math
from typing import Any, NamedTuple

import numpy as np

from .._compat import Tracer
from ..tracing._jaxpr import Program
from ._layers import Steps

Readers = dict[int, list[int]]  # see `uses`
RETURNED = -1  # in the place of an equation that reads


class End(NamedTuple):
    """An equation that reads a variable, which has become another on the way."""

    position: int
    variable: int
    steps: Steps


def ends_of(program: Program, readers: Readers, variable: int, steps: Steps = ()) -> list[End]:
    """List who reads a variable in the end, once per reading, in the order of the program."""
    found: list[End] = []
    for position in readers[variable]:
        step = None if position == RETURNED else rearrangement(program, position)
        if step is None:
            found.append(End(position, variable, steps))
        else:
            found += ends_of(program, readers, program.equations[position].outputs[0], steps + step)
    return sorted(found, key=lambda end: end.position)


def rearrangement(program: Program, position: int) -> Steps | None:
    """The steps of an equation that does nothing but rearrange its operand, or None."""
    equation = program.equations[position]
    shape = program.avals[equation.outputs[0]].shape
    if equation.name == "transpose":
        return (("transpose", tuple(equation.params["permutation"])),)
    if equation.name in ("convert_element_type", "copy"):
        return ()
    if equation.name == "mul" and any(is_one(program, v) for v in equation.inputs) and _same_shape(program, equation):
        return ()  # `addmm` of PyTorch writes beta · bias + alpha · x w
    same_size = math.prod(program.avals[equation.inputs[0]].shape) == math.prod(shape)
    if equation.name in ("reshape", "squeeze", "expand_dims") or (equation.name == "broadcast_in_dim" and same_size):
        return (("reshape", tuple(shape)),)
    return None


def _same_shape(program: Program, equation: Any) -> bool:
    return len({program.avals[v].shape for v in (*equation.inputs, *equation.outputs) if program.avals[v].shape}) <= 1


def is_one(program: Program, variable: int) -> bool:
    """Tell whether a variable is known to hold nothing but ones."""
    value = program.constants.get(variable)
    if value is not None:
        return not isinstance(value, Tracer) and bool((np.asarray(value) == 1).all())
    made = [equation for equation in program.equations if variable in equation.outputs]
    spread = bool(made) and made[0].name in ("convert_element_type", "broadcast_in_dim")
    return spread and is_one(program, made[0].inputs[0])
