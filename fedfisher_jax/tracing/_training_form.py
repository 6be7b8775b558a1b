"""The form of a function that trains fast in loops on CPU: convolutions and pools with reverse rules of their own."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import _compat
from ._convolution import fast_in_loops, has_product, in_standard_layout, matrix_product, output_image, plain, rewrite
from ._jaxpr import Equation, Program, Replacement, leading_to, trace, uses
from ._pool import max_pool2
from ._reverse import convolve

EFFECTS = ("debug_print", "debug_callback", "io_callback")  # what a person wants to see, though no output depends on it


def for_training(apply: Callable, convolutions: str = "auto") -> Callable:
    """Give `apply` the form whose gradients by reverse mode are fastest in a loop on this platform.

    It equals `apply` to rounding, as `for_loops` does, but forward derivatives of it (`jax.jvp`) are refused by JAX.
    A maximum over 2×2 windows that follows a convolution, a bias and a relu or not between them, is computed with it.

    Args:
        apply: any function.
        convolutions: "matrix", "plain" or "auto", as for `for_loops`.

    Raises:
        ValueError: `convolutions` has another value.
    """
    return rewrite(apply, _rewritten) if fast_in_loops(convolutions) else apply


class Before(NamedTuple):
    """What stands before a pool: variables, and the convolution's parameters."""

    operands: tuple[int, ...]  # images, kernel, and a bias if there is one
    params: dict[str, Any]
    relu: bool


def _rewritten(program: Program) -> tuple[Program, dict[int, Replacement]]:
    equations, replacements = list(program.equations), {}
    for position, equation in enumerate(program.equations):
        if equation.name == "conv_general_dilated" and _fits(program, equation):
            replacements[position] = _alone(equation.params, program.avals[equation.outputs[0]].shape)
        elif equation.name == "conv_general_dilated" and has_product(program, equation):
            replacements[position] = matrix_product(equation.params, program.avals[equation.outputs[0]].shape)
        elif _is_pool(program, equation):
            before = _before(program, equation.inputs[0])
            replacements[position] = (lambda operands: [max_pool2(operands[0])]) if before is None else _pooled(before)
            if before is not None:
                equations[position] = equation._replace(inputs=before.operands)
    whole = program._replace(equations=tuple(equations))
    shown = [n for n, one in enumerate(whole.equations) if one.name in EFFECTS]
    needed = leading_to(whole, program.outputs).union(shown, *(leading_to(whole, equations[n].inputs) for n in shown))
    needed = sorted(needed)
    kept = {number: replacements[position] for number, position in enumerate(needed) if position in replacements}
    return whole._replace(equations=tuple(equations[position] for position in needed)), kept


def _alone(params: dict[str, Any], shape: Sequence[int]) -> Replacement:
    def replacement(operands: list[Any]) -> list[jax.Array]:
        images, kernel = in_standard_layout(params, *operands)
        found: Any = convolve(images, kernel, params["window_strides"], 1, params["precision"])
        return [output_image(found.reshape(-1, found.shape[-1]), shape, params)]

    return replacement


def _pooled(before: Before) -> Replacement:
    """Take the maximum first: bias and relu, which keep the order of numbers, then have a quarter of the work."""
    params = before.params

    def replacement(operands: list[Any]) -> list[jax.Array]:
        images, kernel = in_standard_layout(params, *operands[:2])
        found: Any = convolve(images, kernel, params["window_strides"], 2, params["precision"])
        for bias in operands[2:]:
            found = found + bias.reshape(-1)
        return [jax.nn.relu(found) if before.relu else found]

    return replacement


def _fits(program: Program, equation: Equation) -> bool:
    """Tell whether `convolve` computes this convolution: two dimensions, no groups or holes, one type of 32 or 64 bits.

    Its sums over parts of a batch have the type of its operands, which for 16 bits would lose digits.
    """
    avals = [program.avals[v] for v in (*equation.inputs, *equation.outputs)]
    types = {jnp.dtype(aval.dtype).name for aval in avals}
    return plain(equation.params, avals[-1].shape) and 0 not in avals[-1].shape and types in ({"float32"}, {"float64"})


def _is_pool(program: Program, equation: Equation) -> bool:
    """Tell whether an equation is a maximum over 2×2 windows of images with their channels last."""
    if equation.name == "reduce_window_max":
        ones = (1, 1, 1, 1)
        expected = {
            "window_dimensions": (1, 2, 2, 1),
            "window_strides": (1, 2, 2, 1),
            "padding": ((0, 0),) * 4,
            "base_dilation": ones,
            "window_dilation": ones,
        }
        return all(tuple(equation.params[name]) == value for name, value in expected.items())
    return _is_call_of(program, equation, max_pool2)


def _is_call_of(program: Program, equation: Equation, function: Callable) -> bool:
    """Tell whether an equation is the one that tracing `function`, which has a derivative rule, gives."""
    if not equation.name.startswith("custom_jvp") or len(equation.inputs) != 1:
        return False
    aval = program.avals[equation.inputs[0]]
    if function is max_pool2 and (len(aval.shape) != 4 or min(aval.shape[1:3]) < 2):
        return False
    own = trace(function, jax.ShapeDtypeStruct(aval.shape, aval.dtype)).equations
    texts = [[str(body) for body in _compat.bodies(each)] for each in (*own, equation)]
    return len(own) == 1 and texts[0] == texts[1]


def _before(program: Program, variable: int) -> Before | None:
    """Find the convolution before a pool, through a relu and a bias that nothing else reads; None if there is none."""
    makers = {v: equation for equation in program.equations for v in equation.outputs}
    readers, relu, bias = uses(program), False, ()
    while len(readers[variable]) == 1 and variable in makers:
        equation = makers[variable]
        if equation.name == "conv_general_dilated":
            spec = equation.params["dimension_numbers"].out_spec
            fits = _fits(program, equation) and tuple(spec) == (0, 3, 1, 2)
            return Before((*equation.inputs, *bias), equation.params, relu) if fits else None
        if not (relu or bias) and _is_call_of(program, equation, jax.nn.relu):
            relu, variable = True, equation.inputs[0]
        elif not bias and equation.name == "add":
            split = _image_and_bias(program, makers, equation)
            if split is None:
                return None
            variable, bias = split[0], (split[1],)
        else:
            return None
    return None


def _image_and_bias(program: Program, makers: dict[int, Equation], add: Equation) -> tuple[int, int] | None:
    """Tell a sum's operands apart: an image, and numbers that are the same at every place of a channel."""
    shape = program.avals[add.outputs[0]].shape
    for image, bias in (add.inputs, add.inputs[::-1]):
        spread = makers.get(bias)
        if spread is not None and spread.name == "broadcast_in_dim":
            if spread.params["broadcast_dimensions"][-1:] != (len(shape) - 1,):
                continue
            bias = spread.inputs[0]
        own = program.avals[bias].shape
        if own[-1:] == shape[-1:] and all(size == 1 for size in own[:-1]):
            return image, bias
    return None
