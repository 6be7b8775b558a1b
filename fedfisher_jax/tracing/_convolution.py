"""Convolutions as patches times a matrix: what a Kronecker factor needs, and what XLA runs fast inside loops on CPU.

XLA:CPU runs the backward pass of a convolution inside `scan` and `while` 10–20 times slower than outside of them. The
same sum written as strided slices and one matrix product does not suffer; `as_matrix_products` rewrites a function so.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _bands as bands
from ._jaxpr import Equation, Program, Replacement, evaluate, trace

# Columns of a product. Where LeNet's images are constant, its first layer's outputs are equal to the bit at this width,
# as PyTorch's are: a pool's gradient then goes to the first of a window's, and a Kronecker factor depends on which.
WIDTH = 64


def patches(lhs: jax.Array, kernel_shape: Sequence[int], params: dict[str, Any]) -> jax.Array:
    """Gather the inputs that each output position of a convolution sees.

    Args:
        lhs: images in the layout of `params["dimension_numbers"].lhs_spec`.
        kernel_shape: spatial sizes of the kernel.
        params: the parameters of `lax.conv_general_dilated_p`: strides, padding, dilations, feature groups.

    Returns:
        [batch, *output spatial, groups, offsets · channels per group], offsets before channels.
    """
    groups = params["feature_group_count"]
    images = jnp.transpose(lhs, _last_channel(params["dimension_numbers"].lhs_spec))
    batch, *_, channels = images.shape
    interior = [d - 1 for d in params["lhs_dilation"]]
    edges = [(low, high, gap) for (low, high), gap in zip(params["padding"], interior, strict=True)]
    images = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    spatial = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, s, d in zip(images.shape[1:-1], kernel_shape, strides, dilation, strict=True)
    ]
    slices = []
    for offset in np.ndindex(*kernel_shape):
        start = [o * d for o, d in zip(offset, dilation, strict=True)]
        limit = [a + (n - 1) * s + 1 for a, n, s in zip(start, spatial, strides, strict=True)]
        slices.append(lax.slice(images, [0, *start, 0], [batch, *limit, channels], [1, *strides, 1]))
    stacked = jnp.stack(slices, axis=-2)  # batch, *spatial, offsets, channels
    split = stacked.reshape(batch, *spatial, len(slices), groups, channels // groups)
    return jnp.moveaxis(split, -2, -3).reshape(batch, *spatial, groups, -1)


def kernel_matrix_steps(shape: Sequence[int], params: dict[str, Any]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """List the steps from a kernel to its matrix [groups, inputs, outputs per group]; one group has no first axis."""
    spec, groups = params["dimension_numbers"].rhs_spec, params["feature_group_count"]
    outputs, inputs = shape[spec[0]], math.prod(shape) // shape[spec[0]]
    steps = [("transpose", (*spec[2:], spec[1], spec[0]))]
    if groups == 1:
        return (*steps, ("reshape", (inputs, outputs)))
    return (*steps, ("reshape", (inputs, groups, outputs // groups)), ("transpose", (1, 0, 2)))


def output_image(rows: jax.Array, shape: Sequence[int], params: dict[str, Any]) -> jax.Array:
    """Arrange rows [batch · positions, outputs] as the convolution's output of the given shape."""
    order = _last_channel(params["dimension_numbers"].out_spec)
    image = rows.reshape([shape[axis] for axis in order])
    return jnp.transpose(image, [order.index(axis) for axis in range(len(order))])


def output_rows(image: Any, params: dict[str, Any]) -> Any:
    """Undo `output_image`: an image of numpy's or jax's becomes rows [batch · positions, outputs]."""
    channels_last = image.transpose(_last_channel(params["dimension_numbers"].out_spec))
    return channels_last.reshape(-1, channels_last.shape[-1])


def as_matrix_products(apply: Callable) -> Callable:
    """Rewrite a function so that every convolution is a product of patches with a matrix.

    The result equals `apply` to rounding, derivatives included. Convolutions inside loops, branches and custom
    derivatives of `apply` stay as they are. The function is traced at each call, so wrap the caller in `jax.jit`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> apply = lambda kernel, x: jax.lax.conv(x, kernel, (1, 1), "SAME")
        >>> kernel, x = jnp.ones((2, 1, 3, 3)), jnp.ones((1, 1, 4, 4))
        >>> rewritten = ff.as_matrix_products(apply)
        >>> bool(jnp.allclose(rewritten(kernel, x), apply(kernel, x)))
        True
        >>> "conv_general_dilated" in str(jax.make_jaxpr(rewritten)(kernel, x))
        False
    """
    return rewrite(apply, _as_products)


def rewrite(apply: Callable, change: Callable[[Program], tuple[Program, dict[int, Replacement]]]) -> Callable:
    """Give the function that traces `apply` at each call, changes its program and evaluates it with replacements."""

    def rewritten(*args: Any) -> Any:
        shapes: list[Any] = []

        def flat(*arguments: Any) -> list[jax.Array]:
            leaves, tree = jax.tree.flatten(apply(*arguments))
            shapes.append(tree)
            return leaves

        program, replacements = change(trace(flat, *args))
        return jax.tree.unflatten(shapes[-1], evaluate(program, jax.tree.leaves(args), replacements))

    return rewritten


def _as_products(program: Program) -> tuple[Program, dict[int, Replacement]]:
    return program, {
        position: matrix_product(equation.params, program.avals[equation.outputs[0]].shape)
        for position, equation in enumerate(program.equations)
        if equation.name == "conv_general_dilated" and has_product(program, equation)
    }


def has_product(program: Program, equation: Equation) -> bool:
    """Tell whether a convolution is a product of patches with a matrix: one with entries, of no groups of examples."""
    shape = program.avals[equation.outputs[0]].shape
    return equation.params["batch_group_count"] == 1 and 0 not in shape


def for_loops(apply: Callable, convolutions: str = "auto") -> Callable:
    """Give `apply` the form that trains fast inside a loop on this platform.

    Args:
        apply: any function.
        convolutions: "matrix" rewrites them by `as_matrix_products`, "plain" leaves them, "auto" rewrites on CPU only.

    Raises:
        ValueError: `convolutions` has another value.
    """
    return as_matrix_products(apply) if fast_in_loops(convolutions) else apply


def fast_in_loops(convolutions: str) -> bool:
    """Tell whether convolutions are to be rewritten: where "auto" leaves it to the platform, on CPU only."""
    if convolutions not in ("auto", "matrix", "plain"):
        raise ValueError(f"convolutions: got {convolutions!r}, expected auto, matrix or plain")
    return convolutions == "matrix" or (convolutions == "auto" and jax.default_backend() == "cpu")


def matrix_product(params: dict[str, Any], out_shape: Sequence[int]) -> Callable:
    """The replacement of a convolution equation with these parameters and output shape: [images, kernel] → [output]."""
    numerics = {name: params[name] for name in ("precision", "preferred_element_type")}

    def convolve(operands: list[jax.Array]) -> list[jax.Array]:
        lhs, kernel = operands
        groups = params["feature_group_count"]
        if plain(params, out_shape):
            images, weights = in_standard_layout(params, lhs, kernel)
            plan = bands.plan(images.shape, weights.shape, params["window_strides"], wide=WIDTH)
            product = jnp.matmul(bands.gather(plan, images), bands.matrix(plan, weights), **numerics)
            rows = product.reshape(-1, plan.tiles * plan.tile, weights.shape[3])[:, : plan.width]
        else:
            spec = params["dimension_numbers"].rhs_spec
            windows = patches(lhs, [kernel.shape[axis] for axis in spec[2:]], params)
            windows = windows.reshape(-1, groups, windows.shape[-1])
            matrix = kernel
            for step, argument in kernel_matrix_steps(kernel.shape, params):
                matrix = jnp.transpose(matrix, argument) if step == "transpose" else matrix.reshape(argument)
            if groups == 1:
                rows = jnp.matmul(windows[:, 0], matrix, **numerics)
            else:
                rows = jnp.einsum("tgi,gio->tgo", windows, matrix, **numerics)
        return [output_image(rows, out_shape, params)]

    return convolve


def plain(params: dict[str, Any], out_shape: Sequence[int]) -> bool:
    """Tell whether a convolution has two dimensions, and neither groups nor holes."""
    holes = {*params["lhs_dilation"], *params["rhs_dilation"]}
    return len(out_shape) == 4 and params["feature_group_count"] == params["batch_group_count"] == 1 and holes == {1}


def in_standard_layout(params: dict[str, Any], lhs: Any, kernel: Any) -> tuple[jax.Array, jax.Array]:
    """Give a plain convolution's images, padded, as [n, h, w, inputs], its kernel as [h, w, inputs, outputs]."""
    numbers = params["dimension_numbers"]
    images = jnp.transpose(lhs, _last_channel(numbers.lhs_spec))
    edges = [(low, high, 0) for low, high in params["padding"]]
    images = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    return images, jnp.transpose(kernel, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))


def _last_channel(spec: Sequence[int]) -> list[int]:
    batch, feature, *spatial = spec
    return [batch, *spatial, feature]
