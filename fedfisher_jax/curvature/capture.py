"""Find the layers of any model in its jaxpr: which parameter multiplies which activations.

For Kronecker factors (arXiv 1503.05671 for dense layers, 1602.01407 for convolutions) and structured diagonals one
needs each layer's activations a and the gradient g at its output. A captured layer is a `dot_general` or
`conv_general_dilated` one operand of which is exactly a parameter leaf (through transpositions, reshapes and casts);
a zero added to its output has g as its gradient. Whatever is not plainly that falls back, with the reason.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..convolution import kernel_matrix_steps, matrix_product, output_rows, patches
from ..jaxpr import Program, depends_on, evaluate, trace, uses
from .layers import Layer, Steps, product_steps, run, unrun

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a layer stands in the program."""

    layer: Layer
    product: int  # equation
    output: int  # variable: the product, bias added
    operand: int  # which operand of the product holds the activations
    after: Steps  # from the product's shape to the output's


@dataclasses.dataclass(frozen=True, eq=False)
class Capture:
    """A model's captured layers; `fallback` tells for every other leaf's path why it was not captured."""

    sites: tuple[Site, ...]
    fallback: dict[str, str]
    fallback_leaves: tuple[int, ...]
    program: Program

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The captured layers in the order of the program."""
        return tuple(site.layer for site in self.sites)


class Pulled(NamedTuple):
    """One example's K output cotangents pulled back; T positions, K cotangents."""

    activations: list[jax.Array]  # per layer [(groups,) T, inputs]
    gradients: list[jax.Array]  # per layer [K, (groups,) T, outputs]
    leaves: list[jax.Array]  # per fallback leaf [K, *leaf]


def capture(apply: Callable, params: PyTree, x: Any, *, structured: bool = True) -> Capture:
    """Read `apply`'s jaxpr at one example of x [n, ...].

    Only shapes and types of `params` and `x` are used. Each layer is checked once on random parameters and a random
    output cotangent: the gradient rebuilt from a and g must equal that of `jax.vjp`.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        params: any pytree of arrays.
        x: examples.
        structured: False captures nothing: every leaf falls back (the reference that tests compare with).

    Raises:
        TypeError: a leaf of `params` is not floating-point.
        ValueError: `apply` does not return one array.
    """
    one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    for path, leaf in zip(paths, jax.tree.leaves(params), strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"params{path}: expected floating-point numbers, got {leaf.dtype}")
    program = trace(apply, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), params), one)
    if len(program.outputs) != 1:
        raise ValueError(f"apply: expected one array of outputs, got {len(program.outputs)}")
    found = [_follow(program, leaf, len(paths)) if structured else "not asked for" for leaf in range(len(paths))]
    sites = [site for site in found if isinstance(site, Site)]
    sites = _without_bad(program, sites, paths, found)
    sites.sort(key=lambda site: site.product)
    covered = {leaf for site in sites for leaf in site.layer.leaves}
    missing = tuple(leaf for leaf in range(len(paths)) if leaf not in covered)
    return Capture(tuple(sites), {paths[leaf]: str(found[leaf]) for leaf in missing}, missing, program)


def pull_back(captured: Capture, leaves: Sequence[Any], x: Any, cotangents: Callable[[Any], Any]) -> Pulled:
    """Pull output cotangents of one example x [...] back to the layers.

    Args:
        captured: of the model.
        leaves: the parameters' leaves.
        x: one example, without batch axis.
        cotangents: outputs → [K, *outputs].
    """
    program, sites = captured.program, captured.sites

    def forward(fallback: list[Any], zeros: list[Any]) -> tuple[Any, list[Any]]:
        arguments = [*leaves, x[None]]
        for leaf, value in zip(captured.fallback_leaves, fallback, strict=True):
            arguments[leaf] = value
        outputs, activations = _forward(captured, arguments, zeros)
        return outputs[0], activations

    fallback = [leaves[i] for i in captured.fallback_leaves]
    outputs, vjp, activations = jax.vjp(forward, fallback, _zeros(captured), has_aux=True)
    by_leaf, by_output = jax.vmap(vjp)(cotangents(outputs).astype(outputs.dtype))
    rows = [
        jax.vmap(lambda g, s=site: _output_rows(program, s, g))(g) for site, g in zip(sites, by_output, strict=True)
    ]
    return Pulled(activations, rows, by_leaf)


def activations(captured: Capture, leaves: Sequence[Any], x: Any) -> list[jax.Array]:
    """The `activations` that `pull_back` would give for one example x [...], without its gradients."""
    return _forward(captured, [*leaves, x[None]], _zeros(captured))[1]


def _zeros(captured: Capture) -> list[jax.Array]:
    avals = [captured.program.avals[site.output] for site in captured.sites]
    return [jnp.zeros(aval.shape, aval.dtype) for aval in avals]


def _forward(captured: Capture, arguments: Sequence[Any], zeros: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Outputs and each layer's activations of a batch of one, with `zeros` added to the layers' outputs."""
    program, sites = captured.program, captured.sites
    operands: dict[int, Any] = {}
    (outputs,) = evaluate(program, arguments, _replacements(program, sites, zeros, operands))
    return outputs, [_activation_rows(program, site, operands[site.product]) for site in sites]


def _follow(program: Program, leaf: int, num_leaves: int) -> Site | str:
    """The layer in which parameter `leaf` is the weight, or why there is none."""
    readers = uses(program)
    position, variable, steps = _chain(program, readers, program.inputs[leaf])
    if isinstance(position, str):
        return position
    equation, shape = program.equations[position], program.avals[program.inputs[leaf]].shape
    if equation.name not in ("dot_general", "conv_general_dilated"):
        return f"read by {equation.name}"
    if not jnp.issubdtype(program.avals[equation.outputs[0]].dtype, jnp.floating):
        return f"read by an integer {equation.name}"
    operand = 1 - equation.inputs.index(variable)
    if equation.inputs[operand] not in depends_on(program, program.inputs[num_leaves:]):
        return f"multiplied by something that does not depend on the example ({equation.name})"
    seen, groups = program.avals[variable].shape, 1
    if equation.name == "dot_general":
        contracting, batch = equation.params["dimension_numbers"]
        if batch[0]:
            return "a product with batch dimensions"
        steps += product_steps(seen, contracting[1 - operand])
    else:
        if operand == 1 or equation.params["batch_group_count"] != 1:
            return "not the kernel of a plain convolution"
        groups = equation.params["feature_group_count"]
        steps += kernel_matrix_steps(seen, equation.params)
    layer = Layer(leaf, None, shape, (), steps, groups)
    return _with_bias(program, readers, Site(layer, position, equation.outputs[0], operand, ()), num_leaves)


def _chain(program: Program, readers: dict, variable: int) -> tuple[int | str, int, Steps]:
    """Follow a variable while its one reader only rearranges it: that reader's position, its operand, the steps."""
    steps: Steps = ()
    while True:
        if len(readers[variable]) != 1:
            return f"read {len(readers[variable])} times", variable, steps
        position = readers[variable][0]
        if position == -1:
            return "returned", variable, steps
        step = _rearrangement(program, position)
        if step is None:
            return position, variable, steps
        steps, variable = steps + step, program.equations[position].outputs[0]


def _rearrangement(program: Program, position: int) -> Steps | None:
    equation = program.equations[position]
    shape = program.avals[equation.outputs[0]].shape
    if equation.name == "transpose":
        return (("transpose", tuple(equation.params["permutation"])),)
    if equation.name in ("convert_element_type", "copy"):
        return ()
    same_size = math.prod(program.avals[equation.inputs[0]].shape) == math.prod(shape)
    if equation.name in ("reshape", "squeeze", "expand_dims") or (equation.name == "broadcast_in_dim" and same_size):
        return (("reshape", tuple(shape)),)
    return None


def _with_bias(program: Program, readers: dict, site: Site, num_leaves: int) -> Site:
    """The site with the bias that is added to its product, if exactly that happens."""
    position, variable, after = _chain(program, readers, site.output)
    if isinstance(position, str) or program.equations[position].name not in ("add", "add_any"):
        return site
    addition = program.equations[position]
    other = addition.inputs[1 - addition.inputs.index(variable)]
    for leaf in range(num_leaves):
        placed = _broadcast_indices(program, readers, program.inputs[leaf], other, position)
        if placed is None:
            continue
        moved = dataclasses.replace(site, output=addition.outputs[0], after=after)
        rows = np.asarray(_output_rows(program, moved, np.broadcast_to(placed, program.avals[variable].shape)))
        outputs = np.moveaxis(rows, -2, 0).reshape(rows.shape[-2], -1)  # [T, all outputs]
        size = math.prod(program.avals[program.inputs[leaf]].shape)
        if outputs.shape[1] != size or not (outputs == np.arange(size)).all():
            return site  # not the same number for every position: no bias
        shape = program.avals[program.inputs[leaf]].shape
        return dataclasses.replace(moved, layer=dataclasses.replace(site.layer, bias=leaf, bias_shape=shape))
    return site


def _broadcast_indices(program: Program, readers: dict, variable: int, target: int, reader: int) -> np.ndarray | None:
    """Where each entry of a leaf lands when it is rearranged and broadcast into `target`; None if it does not."""
    shape = program.avals[variable].shape
    value = np.arange(math.prod(shape)).reshape(shape)
    while readers[variable] != [reader] or variable != target:
        if len(readers[variable]) != 1 or readers[variable][0] == -1:
            return None
        equation = program.equations[readers[variable][0]]
        if equation.name in ("convert_element_type", "copy"):
            pass
        elif equation.name == "broadcast_in_dim" and len(equation.inputs) == 1:
            kept = [1] * len(equation.params["shape"])
            for axis, place in enumerate(equation.params["broadcast_dimensions"]):
                kept[place] = value.shape[axis]
            value = np.broadcast_to(value.reshape(kept), equation.params["shape"])
        else:
            step = _rearrangement(program, readers[variable][0])
            if step is None:
                return None
            value = run(step, value)
        variable = equation.outputs[0]
    return value


def _replacements(program: Program, sites: Sequence[Site], zeros: Sequence[Any], operands: dict[int, Any]) -> dict:
    """Convolutions as matrix products, activations noted in `operands`, zeros added to the layers' outputs."""
    added = {site.output: zero for site, zero in zip(sites, zeros, strict=True)}
    noted = {site.product: site.operand for site in sites}

    def replace(position: int) -> Callable:
        equation = program.equations[position]
        plain = equation.name == "conv_general_dilated" and equation.params["batch_group_count"] == 1
        compute = matrix_product(equation.params, program.avals[equation.outputs[0]].shape) if plain else None

        def replacement(values: list[Any]) -> list[Any]:
            if position in noted:
                operands[position] = values[noted[position]]
            result = compute(values)[0] if compute else equation.primitive.bind(*values, **equation.params)
            return [result + added[equation.outputs[0]] if equation.outputs[0] in added else result]

        return replacement

    return {
        position: replace(position)
        for position, equation in enumerate(program.equations)
        if position in noted
        or equation.outputs[:1]
        and equation.outputs[0] in added
        or equation.name == "conv_general_dilated"
    }


def _activation_rows(program: Program, site: Site, operand: jax.Array) -> jax.Array:
    """The product's activations as [(groups,) T, inputs (+1 for the bias)]."""
    equation = program.equations[site.product]
    if equation.name == "dot_general":
        contracting = equation.params["dimension_numbers"][0][site.operand]
        rows = run(product_steps(operand.shape, contracting), operand).T
    else:
        kernel = program.avals[equation.inputs[1]].shape
        spatial = [kernel[axis] for axis in equation.params["dimension_numbers"].rhs_spec[2:]]
        windows = patches(operand, spatial, equation.params)
        rows = jnp.moveaxis(windows.reshape(-1, *windows.shape[-2:]), 1, 0)
        rows = rows[0] if site.layer.groups == 1 else rows
    if site.layer.bias is None:
        return rows
    return jnp.concatenate([rows, jnp.ones((*rows.shape[:-1], 1), rows.dtype)], axis=-1)


def _output_rows(program: Program, site: Site, output: Any) -> Any:
    """A value of the output's shape as [(groups,) T, outputs]."""
    equation = program.equations[site.product]
    product = unrun(site.after, program.avals[equation.outputs[0]].shape, output)
    if equation.name == "dot_general":
        free = len(program.avals[equation.inputs[1 - site.operand]].shape) - len(
            equation.params["dimension_numbers"][0][0]
        )
        order = list(range(product.ndim))
        if site.operand == 1:  # the weight comes first: so do its axes
            order = order[free:] + order[:free]
        rows = product.transpose(order)
        rows = rows.reshape(-1, math.prod(rows.shape[rows.ndim - free :]))
    else:
        rows = output_rows(product, equation.params)
    if site.layer.groups == 1:
        return rows
    return rows.reshape(rows.shape[0], site.layer.groups, -1).transpose(1, 0, 2)


def _without_bad(program: Program, sites: list[Site], paths: list[str], found: list) -> list[Site]:
    """Drop every layer whose gradient, rebuilt from a and g on random numbers, is not `jax.vjp`'s.

    Errors are relative to Σ_t |a_t||g_t|ᵀ, as rounding errors are: a bias of attention's keys has no gradient at all.
    """
    random = np.random.default_rng(0)

    def draw(aval: Any) -> np.ndarray:
        if not jnp.issubdtype(aval.dtype, jnp.inexact):
            return np.zeros(aval.shape, aval.dtype)
        fan_in = math.prod(aval.shape[:-1]) if len(aval.shape) > 1 else 1
        return np.asarray(random.normal(size=aval.shape) / math.sqrt(max(fan_in, 1)), aval.dtype)

    *leaves, x = [draw(program.avals[v]) for v in program.inputs]
    cotangent = draw(program.avals[program.outputs[0]])[0]
    constants = program.constants.items()  # `apply` may close over values of a function that is being traced
    known = {v: draw(program.avals[v]) if isinstance(value, Tracer) else value for v, value in constants}
    program = program._replace(constants=known)
    missing = tuple(set(range(len(paths))) - {leaf for site in sites for leaf in site.layer.leaves})
    trial = Capture(tuple(sites), {}, missing, program)

    def errors(leaves: list[Any], x: Any, cotangent: Any) -> dict[int, jax.Array]:
        _, vjp = jax.vjp(lambda *p: evaluate(program, [*p, x])[0], *leaves)
        expected = vjp(cotangent[None])
        pulled = pull_back(trial, leaves, x[0], lambda _: cotangent[None])
        result = {}
        for site, a, g in zip(sites, pulled.activations, pulled.gradients, strict=True):
            rebuilt = site.layer.from_matrix(jnp.swapaxes(a, -1, -2) @ g[0])
            sizes = site.layer.from_matrix(jnp.swapaxes(abs(a), -1, -2) @ abs(g[0]))
            for leaf, value in rebuilt.items():
                gap = jnp.linalg.norm((value - expected[leaf]).astype(jnp.float32))
                result[leaf] = gap / (jnp.linalg.norm(sizes[leaf].astype(jnp.float32)) + 1e-30)
        return result

    with jax.ensure_compile_time_eval():
        error = {leaf: float(value) for leaf, value in jax.jit(errors)(leaves, x, cotangent).items()}
    kept = []
    for site in sites:
        seen = program.avals[site.output].dtype  # bfloat16 products carry bfloat16 errors
        bad = {leaf: e for leaf in site.layer.leaves if not (e := error[leaf]) < 10 * float(jnp.finfo(seen).eps) ** 0.5}
        if not bad:
            kept.append(site)
        for leaf in site.layer.leaves if bad else ():
            found[leaf] = f"its rebuilt gradient differs from jax.vjp's by {max(bad.values()):.1g} (relative)"
    for site in kept:
        for leaf in site.layer.leaves:
            found[leaf] = site
    return kept
