"""Find the layers of any model in its jaxpr: which parameter multiplies which activations.

For Kronecker factors (arXiv 1503.05671 for dense layers, 1602.01407 for convolutions) and structured diagonals one
needs each layer's activations a and the gradient g at its output. A captured layer is a `dot_general` or
`conv_general_dilated` one operand of which is exactly a parameter leaf (through transpositions, reshapes and casts), or
a table whose rows are looked up. Whatever is not plainly that falls back, with the reason.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._doors import applying, require_params
from .._trees import outline
from ..tracing._apart import require_apart
from ..tracing._convolution import kernel_matrix_steps
from ..tracing._jaxpr import Program, depends_on, trace, uses
from ._check import without_bad
from ._ends import RETURNED, End, Readers, ends_of, is_one, rearrangement
from ._layers import Layer, product_steps, run
from ._lookup import is_one_hot, table_axis
from ._pull_back import Capture, Site, position_rows
from ._reuse import is_crossed

PyTree = Any


def capture(apply: Callable, params: PyTree, x: Any, *, structured: bool = True) -> Capture:
    """Find the layers of `apply` in its jaxpr at one example of x [n, ...], an array or a tree of such.

    Only shapes and types of `params` and `x` are used. Each layer is checked once on random parameters and a random
    output cotangent: the gradient rebuilt from a and g must equal that of `jax.vjp`.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        params: any pytree of arrays.
        x: [n, ...] examples.
        structured: False captures nothing: every leaf falls back (the reference that tests compare with).

    Raises:
        TypeError: a leaf of `params` is no array of floating-point numbers.
        ValueError: `apply` fails on such examples, or does not return one array of at least two axes, or its examples
            mix (batch norm in training mode, say), or it draws random numbers (dropout); where, and what to do instead.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> params = {"bias": jnp.zeros(2), "scale": jnp.ones(2), "weight": jnp.zeros((3, 2))}
        >>> apply = lambda p, x: (x @ p["weight"] + p["bias"]) * p["scale"]
        >>> found = ff.capture(apply, params, jnp.zeros((1, 3)))
        >>> [layer.matrix_shape for layer in found.layers], list(found.fallback)  # the bias is one more input
        ([(4, 2)], ["['scale']"])
    """
    require_params(params)
    one = outline(x, 1)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    with applying(x):
        program = trace(apply, shapes, one)
    if len(program.outputs) != 1:
        raise ValueError(f"apply: got {len(program.outputs)} arrays of outputs, expected one")
    if len(shape := program.avals[program.outputs[0]].shape) < 2:
        raise ValueError(f"apply: got outputs of shape {shape} for one example, expected [n, C] or [n, T, C]")
    require_apart(apply, params, one)
    readers = uses(program)
    found = [
        _follow(program, readers, leaf, len(paths)) if structured else "not asked for" for leaf in range(len(paths))
    ]
    sites = [site for site in found if isinstance(site, Site)]
    sites, pools = without_bad(program, sites, paths, found)
    sites.sort(key=lambda site: site.product)
    covered = {leaf for site in sites for leaf in site.layer.leaves}
    missing = tuple(leaf for leaf in range(len(paths)) if leaf not in covered)
    return Capture(tuple(sites), {paths[leaf]: str(found[leaf]) for leaf in missing}, missing, program, pools)


def _follow(program: Program, readers: Readers, leaf: int, num_leaves: int) -> Site | str:
    """Find the layer in which parameter `leaf` is the weight, or say why there is none."""
    ends = ends_of(program, readers, program.inputs[leaf])
    found = [_read(program, readers, leaf, end, num_leaves) for end in ends]
    sites = [site for site in found if isinstance(site, Site)]
    if not found or len(sites) < len(found):
        reason = next((f": {one}" for one in found if isinstance(one, str)), "")
        return reason.removeprefix(": ") if len(found) == 1 else f"read {len(found)} times{reason}"
    if len(sites) > 1:
        return _together(program, readers, sites, num_leaves)
    plain = not sites[0].layer.lookup and sites[0].chosen is None
    return _with_bias(program, readers, sites[0], num_leaves) if plain else sites[0]


def _together(program: Program, readers: Readers, sites: Sequence[Site], num_leaves: int) -> Site | str:
    """Make one site of all reads of a weight, with a bias if that is added to each of them.

    A read of a table comes first, since it has a diagonal side.
    """
    first, *others = sorted(sites, key=lambda site: not site.layer.lookup)
    more = []
    if any(site.chosen is not None for site in sites):
        return f"read {len(sites)} times: experts that are chosen"
    for site in others:
        crossed = is_crossed(first.layer, site.layer)
        if crossed is None:
            return f"read {len(sites)} times, as matrices of different entries"
        if site.layer.lookup != (first.layer.lookup and not crossed):
            return f"read {len(sites)} times: a table whose rows are added up with weights, too"
        more.append(dataclasses.replace(site, crossed=crossed))
    if not first.layer.lookup and not any(site.crossed for site in more):
        first, *more = biased = [_with_bias(program, readers, site, num_leaves, len(sites)) for site in (first, *more)]
        if len({site.layer.bias for site in biased}) > 1:
            first, *more = sites
    return dataclasses.replace(first, more=tuple(more))


def _read(program: Program, readers: Readers, leaf: int, end: End, num_leaves: int) -> Site | str:
    """Make the site of one read of parameter `leaf`, without a bias, or say why it is none."""
    position, variable, steps = end
    shape = program.avals[program.inputs[leaf]].shape
    if position == RETURNED:
        return "returned"
    equation = program.equations[position]
    if equation.name == "gather":
        return _table(program, readers, Layer(leaf, None, shape, (), steps, lookup=True), position, variable)
    if equation.name not in ("dot_general", "conv_general_dilated"):
        return f"read by {equation.name}"
    if not jnp.issubdtype(program.avals[equation.outputs[0]].dtype, jnp.floating):
        return f"read by an integer {equation.name}"
    operand = 1 - equation.inputs.index(variable)
    if equation.inputs[operand] not in depends_on(program, program.inputs[num_leaves:]):
        return f"multiplied by something that does not depend on the example ({equation.name})"
    seen, groups, lookup = program.avals[variable].shape, 1, False
    if equation.name == "dot_general":
        contracting, batch = equation.params["dimension_numbers"]
        groups = math.prod(seen[axis] for axis in batch[1 - operand])  # experts, say
        if batch[0] and groups == math.prod(seen):
            return "a product of numbers one by one"  # factors would know less of it than a diagonal
        steps += product_steps(seen, contracting[1 - operand], batch[1 - operand])
        along = contracting[operand]
        lookup = len(along) == 1 and groups == 1 and is_one_hot(program, equation.inputs[operand], along[0])
    else:
        if operand == 1 or equation.params["batch_group_count"] != 1:
            return "not the kernel of a plain convolution"
        groups = equation.params["feature_group_count"]
        steps += kernel_matrix_steps(seen, equation.params)
    return Site(Layer(leaf, None, shape, (), steps, groups, lookup), position, equation.outputs[0], operand, ())


def _table(program: Program, readers: Readers, layer: Layer, position: int, variable: int) -> Site | str:
    """Make the site of a table whose rows the equation at `position` reads, or say why it is none."""
    equation, shape = program.equations[position], program.avals[variable].shape
    axis = table_axis(equation, shape) if equation.name == "gather" and equation.inputs[0] == variable else None
    if axis is None:
        return "read by a gather of other things than whole rows"
    if sum(n > 1 for n in (*shape[:axis], *shape[axis + 1 :])) > 1:
        return _experts(program, readers, layer, position, axis)  # a factor of all their numbers would be their square
    steps = layer.steps + product_steps(shape, (axis,))
    return Site(dataclasses.replace(layer, steps=steps), position, equation.outputs[0], 1, ())


def _experts(program: Program, readers: Readers, layer: Layer, position: int, axis: int) -> Site | str:
    """Make the site of the product of positions with the matrices that they take out of a stack along `axis`."""
    equation, reason = program.equations[position], "read by a gather of matrices that no product takes one by one"
    ends = ends_of(program, readers, equation.outputs[0])
    if len(ends) != 1 or ends[0].position == RETURNED or ends[0].steps:
        return reason
    product = program.equations[ends[0].position]
    if product.name != "dot_general":
        return reason
    operand = 1 - product.inputs.index(ends[0].variable)
    contracting, batch = (axes[1 - operand] for axes in product.params["dimension_numbers"])
    slices = equation.params["dimension_numbers"].offset_dims
    shape, seen = (program.avals[v].shape for v in (equation.inputs[0], equation.outputs[0]))
    if tuple(batch) != tuple(n for n in range(len(seen)) if n not in slices) or shape[axis] == 1:
        return reason
    others = [n for n in range(len(shape)) if n != axis]
    steps = layer.steps + product_steps(shape, [others[slices.index(n)] for n in contracting], (axis,))
    stack = Layer(layer.weight, None, layer.shape, (), steps, shape[axis])
    return Site(stack, ends[0].position, product.outputs[0], operand, (), chosen=position)


def _with_bias(program: Program, readers: Readers, site: Site, num_leaves: int, times: int = 1) -> Site:
    """Add to the site the bias that is added to its product, if exactly that happens, and `times` to that leaf."""
    ends = ends_of(program, readers, site.output)
    if len(ends) != 1 or ends[0].position == RETURNED:
        return site
    position, variable, after = ends[0]
    addition = program.equations[position]
    if addition.name not in ("add", "add_any"):
        return site
    origin = _origin(program, readers, addition.inputs[1 - addition.inputs.index(variable)])
    if origin is None or len(readers[program.inputs[origin[0]]]) != times or not origin[0] < num_leaves:
        return site
    leaf, path = origin
    shape = program.avals[program.inputs[leaf]].shape
    if math.prod(shape) != site.layer.groups * site.layer.matrix_shape[-1]:
        return site
    moved = dataclasses.replace(site, output=addition.outputs[0], after=after)
    placed = np.broadcast_to(_places(program, path, shape), program.avals[variable].shape)
    rows = np.asarray(position_rows(program, moved, placed))
    outputs = np.moveaxis(rows, -2, 0).reshape(rows.shape[-2], -1)  # [T, all outputs]
    if not (outputs == np.arange(outputs.shape[1])).all():
        return site  # not the same number for every position: no bias
    return dataclasses.replace(moved, layer=dataclasses.replace(site.layer, bias=leaf, bias_shape=shape))


def _origin(program: Program, readers: Readers, variable: int) -> tuple[int, list[int]] | None:
    """Find the input that a variable is, but for rearrangements and broadcasts that nobody else reads, and these."""
    path: list[int] = []
    while variable not in program.inputs:
        made = [n for n, equation in enumerate(program.equations) if variable in equation.outputs]
        if not made or len(readers[variable]) != 1:
            return None
        equation = program.equations[made[0]]
        if equation.name != "broadcast_in_dim" and rearrangement(program, made[0]) is None:
            return None
        path.insert(0, made[0])
        variable = next((v for v in equation.inputs if not is_one(program, v)), -1)
        if variable == -1:
            return None
    return program.inputs.index(variable), path


def _places(program: Program, path: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Tell where each entry of a leaf of this shape lands on its path."""
    value = np.arange(math.prod(shape)).reshape(shape)
    for position in path:
        equation, step = program.equations[position], rearrangement(program, position)
        if equation.name == "broadcast_in_dim":
            kept = [1] * len(equation.params["shape"])
            for axis, place in enumerate(equation.params["broadcast_dimensions"]):
                kept[place] = value.shape[axis]
            value = np.broadcast_to(value.reshape(kept), equation.params["shape"])
        else:
            value = run(step or (), value)
    return value
