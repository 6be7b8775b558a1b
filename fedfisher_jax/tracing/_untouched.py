"""Whether the axis of examples goes through a jaxpr untouched, told from other axes by its odd length.

An equation leaves it alone if it works number by number, or along other axes, and gives the axis back whole. What is
not plainly so is in doubt: it may still leave examples alone.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import _compat

MARK = 997  # examples: no layer is that wide, and if one is, there is doubt

ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp clz conj convert_element_type "
    "copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow "
    "is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or population_count pow real "
    "reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin "
    "sinh sqrt square stop_gradient sub tan tanh xor".split()
)
ALONG = {  # primitives that mix along an axis and may keep it, with the parameter that says along which
    "cumsum": "axis", "cumprod": "axis", "cummax": "axis", "cummin": "axis", "cumlogsumexp": "axis", "split": "axis",
    "sort": "dimension", "concatenate": "dimension", "rev": "dimensions", "iota": "dimension", "top_k": "axis",
    "argmax": "axes", "argmin": "axes",
}  # fmt: skip
KEEPING = (  # where these mix along an axis, their results have not got it
    "transpose", "dot_general", "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or",
)  # fmt: skip
HOLDING = (*_compat.INLINED, "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "scan", "while", "cond")


def untouched(jaxpr: Any) -> bool:
    """Tell whether every equation plainly leaves the axis of examples alone; False is doubt."""
    return not any(MARK in v.aval.shape for v in jaxpr.constvars) and all(map(_left_alone, jaxpr.eqns))


def scalars(closed: Any) -> list[Any]:
    """List the single numbers that are written in a jaxpr, in order."""
    known = [value for value in closed.consts if not isinstance(value, _compat.Tracer)]
    return [np.asarray(value).item() for value in known if np.size(value) == 1] + _written(closed.jaxpr)


def _written(jaxpr: Any) -> list[Any]:
    found: list[Any] = []
    for equation in jaxpr.eqns:
        found += [atom.val for atom in equation.invars if _compat.is_literal(atom)]
        for body in _compat.bodies(equation):
            found += _written(body)
    return found


def _left_alone(equation: Any) -> bool:
    given, made = ([tuple(v.aval.shape) for v in side] for side in (equation.invars, equation.outvars))
    if not any(MARK in shape for shape in given + made):
        return True
    if any(shape.count(MARK) > 1 for shape in given + made):
        return False
    name, params = equation.primitive.name, equation.params
    if name in HOLDING:
        return not (name == "scan" and params["length"] == MARK) and all(map(untouched, _compat.bodies(equation)))
    if not all(MARK in shape for shape in made):
        return False
    axis = next((shape.index(MARK) for shape in given if MARK in shape), None)
    rule = RULES.get(name)
    if rule is not None:
        return rule(params, given, made[0], axis)
    if name in ALONG:
        along = params[ALONG[name]]
        axis = made[0].index(MARK) if axis is None else axis
        return axis not in (along if isinstance(along, tuple) else (along,))
    return axis is not None and (name in ELEMENTWISE or name in KEEPING)


def _same_place(params: Any, given: Any, made: Any, axis: int | None) -> bool:
    """Reshapes: as many numbers before the axis as before."""
    del params
    return axis is not None and math.prod(given[0][:axis]) == math.prod(made[: made.index(MARK)])


def _broadcast(params: Any, given: Any, made: Any, axis: int | None) -> bool:
    """What is new is the same for all examples; what was there stays theirs."""
    del given
    return axis is None or params["broadcast_dimensions"][axis] == made.index(MARK)


def _batched_images(params: Any, given: Any, made: Any, axis: int | None) -> bool:
    """Convolutions: examples are the images."""
    del made
    return MARK not in given[1] and axis == params["dimension_numbers"].lhs_spec[0]


def _rows(params: Any, given: Any, made: Any, axis: int | None) -> bool:
    """Gathers: by each example's indices from what is common, or the same part of each example."""
    del made
    if MARK not in given[0]:
        return True
    return MARK not in given[1] and params["slice_sizes"][axis] == MARK


RULES: Mapping[str, Callable[[Any, Any, Any, Any], bool]] = {
    "reshape": _same_place,
    "squeeze": _same_place,
    "expand_dims": _same_place,
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _batched_images,
    "gather": _rows,
    "slice": lambda params, given, made, axis: True,  # a part of the axis would be shorter
    "pad": lambda params, given, made, axis: axis is not None and tuple(params["padding_config"][axis]) == (0, 0, 0),
} | dict.fromkeys(
    ("reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_window", "select_and_gather_add"),
    lambda params, given, made, axis: axis is not None and params["window_dimensions"][axis] == 1,
)
