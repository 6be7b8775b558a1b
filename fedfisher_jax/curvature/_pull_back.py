"""One example's activations and output gradients at every captured layer.

A captured layer is evaluated with a zero added to its output, which then has the layer's g as its gradient; its
activations are noted on the way. Convolutions are replaced by products of patches with a matrix.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import _compat
from .._trees import wide
from ..tracing._convolution import matrix_product, output_rows, patches
from ..tracing._jaxpr import Program, environment
from ._chosen import masked, routed
from ._layers import Layer, Steps, product_steps, run, unrun
from ._lookup import gathered, hot
from ._pools import Pool, gradients, slopes
from ._reuse import Crossed, joined


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a layer stands in the program."""

    layer: Layer
    product: int  # equation
    output: int  # variable: the product, bias added
    operand: int  # which operand of the product holds the activations
    after: Steps  # from the product's shape to the output's
    more: tuple["Site", ...] = ()  # where else the weight is read, each as a layer of its own
    crossed: bool = False  # of one of `more`: whether it reads the layer's matrix the other way round
    chosen: int | None = None  # the equation, if any, in which positions choose their matrix out of the layer's

    @property
    def reads(self) -> tuple["Site", ...]:
        """Every place where the layer's weight is read, in the order of the program."""
        return (self, *self.more)


@dataclasses.dataclass(frozen=True, eq=False)
class Capture:
    """A model's captured layers; `fallback` tells for every other leaf's path why it was not captured."""

    sites: tuple[Site, ...]
    fallback: dict[str, str]
    fallback_leaves: tuple[int, ...]
    program: Program
    pools: tuple[Pool, ...] = ()  # after first layers, whose output gradients nothing else needs

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The captured layers in the order of the program."""
        return tuple(site.layer for site in self.sites)

    @property
    def uses(self) -> tuple[Any, ...]:
        """How often each layer's weight is read: a number, or a `Crossed` of two where it is read both ways."""
        across = [sum(use.crossed for use in site.more) for site in self.sites]
        along = [len(site.reads) - count for site, count in zip(self.sites, across, strict=True)]
        return tuple(Crossed(n, m) if m else n for n, m in zip(along, across, strict=True))


class Pulled(NamedTuple):
    """One example's K output cotangents pulled back; T positions, K cotangents."""

    activations: list[Any]  # per layer [(groups,) T, inputs], or a `Lookup`, a `Chosen`, or a `Crossed` of both ways
    gradients: list[Any]  # per layer [K, (groups,) T, outputs], or a `Crossed` of such
    leaves: list[jax.Array]  # per fallback leaf [K, *leaf]
    outputs: Any  # of the model
    positions: list[Any] | None = None  # per layer (and way), how many of the T count; None where all do


def pull_back(captured: Capture, leaves: Sequence[Any], x: Any, cotangents: Callable[[Any], Any]) -> Pulled:
    """Pull output cotangents of one example x [...] back to the layers.

    Args:
        captured: the model's layers.
        leaves: the parameters' leaves.
        x: one example, an array or a tree of such, without batch axis.
        cotangents: outputs → [K, *outputs].
    """
    program, sites = captured.program, captured.sites

    def forward(fallback: list[Any], zeros: dict[int, Any]) -> tuple[Any, tuple[list[Any], dict]]:
        arguments = [*leaves, *_batch_of(x)]
        for leaf, value in zip(captured.fallback_leaves, fallback, strict=True):
            arguments[leaf] = value
        outputs, activations, read = _forward(captured, arguments, zeros)
        return outputs[0], (activations, read)

    fallback = [leaves[i] for i in captured.fallback_leaves]
    zeros = _compat.vary(_zeros(captured), _compat.varying((leaves, x)))
    outputs, vjp, (activations, read) = jax.vjp(forward, fallback, zeros, has_aux=True)
    by_leaf, by_output = jax.vmap(vjp)(cotangents(outputs).astype(outputs.dtype))
    for pool in captured.pools:
        by_output[pool.start] = gradients(pool, slopes(pool, read), by_output[pool.end])

    def of_read(read: Site) -> jax.Array:
        return jax.vmap(lambda g: position_rows(program, read, g))(by_output[read.output])

    rows = [masked(a, _joined(site, of_read)) for site, a in zip(sites, activations, strict=True)]
    return Pulled(activations, rows, by_leaf, outputs)


def activations(captured: Capture, leaves: Sequence[Any], x: Any) -> list[Any]:
    """Give the `activations` that `pull_back` would give for one example x [...], without its gradients."""
    return _forward(captured, [*leaves, *_batch_of(x)], _zeros(captured))[1]


def _batch_of(x: Any) -> list[Any]:
    """The arrays of one example, an array or a tree of such, with a batch axis of one."""
    return [leaf[None] for leaf in jax.tree.leaves(x)]


def _zeros(captured: Capture) -> dict[int, jax.Array]:
    """Zeros to add to the outputs of layers, or where these went into a pool, to what came out of it."""
    ends = {pool.start: pool.end for pool in captured.pools}
    outputs = [ends.get(read.output, read.output) for site in captured.sites for read in site.reads]
    avals = {output: captured.program.avals[output] for output in outputs}
    return {output: jnp.zeros(aval.shape, aval.dtype) for output, aval in avals.items()}


def _forward(captured: Capture, arguments: Sequence[Any], zeros: dict[int, Any]) -> tuple[Any, list[Any], dict]:
    """Compute outputs, layers' activations and what pools read, with `zeros` added to the layers' outputs."""
    program, sites = captured.program, captured.sites
    operands: dict[int, Any] = {}
    values = environment(program, arguments, _replacements(program, sites, zeros, operands))

    def of_read(read: Site) -> Any:
        found = activation_rows(program, read, operands[read.product])
        if read.chosen is None:
            return found
        equation, size, dtype = program.equations[read.chosen], read.layer.groups, wide(found.dtype)
        return routed(found.reshape(-1, found.shape[-1]), gathered(equation, operands[read.chosen], size, dtype))

    rows = [_joined(site, of_read) for site in sites]
    return values[program.outputs[0]], rows, {v: values[v] for pool in captured.pools for v in pool.reads}


def _joined(site: Site, of_read: Callable) -> Any:
    """Put together what each of a site's reads has at its positions."""
    return joined([of_read(read) for read in site.reads], [read.crossed for read in site.reads])


def _replacements(program: Program, sites: Sequence[Site], added: dict[int, Any], operands: dict[int, Any]) -> dict:
    """Replace convolutions by matrix products, note activations in `operands`, add zeros to the layers' outputs."""
    reads = [read for site in sites for read in site.reads]
    noted = {read.product: read.operand for read in reads} | {r.chosen: 1 for r in reads if r.chosen is not None}

    def replace(position: int) -> Callable:
        equation = program.equations[position]
        plain = equation.name == "conv_general_dilated" and equation.params["batch_group_count"] == 1
        compute = matrix_product(equation.params, program.avals[equation.outputs[0]].shape) if plain else None

        def replacement(values: list[Any]) -> list[Any]:
            if position in noted:
                operands[position] = values[noted[position]]
            (result,) = compute(values) if compute else _compat.bind(equation.primitive, values, equation.params)
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


def activation_rows(program: Program, site: Site, operand: Any) -> Any:
    """Arrange the product's activations as [(groups,) T, inputs (+1 for the bias)], or as the rows of a table."""
    equation = program.equations[site.product]
    dtype = wide(program.avals[site.output].dtype)
    if equation.name == "gather":
        return gathered(equation, operand, site.layer.matrix_shape[0], dtype)
    if equation.name == "dot_general":
        contracting, batch = (axes[site.operand] for axes in equation.params["dimension_numbers"])
        rows = jnp.swapaxes(run(product_steps(operand.shape, contracting, batch), operand), -1, -2)
        if site.layer.lookup:
            return hot(rows, dtype)
    else:
        kernel = program.avals[equation.inputs[1]].shape
        spatial = [kernel[axis] for axis in equation.params["dimension_numbers"].rhs_spec[2:]]
        windows = patches(operand, spatial, equation.params)
        rows = jnp.moveaxis(windows.reshape(-1, *windows.shape[-2:]), 1, 0)
        rows = rows[0] if site.layer.groups == 1 else rows
    if site.layer.bias is None:
        return rows
    return jnp.concatenate([rows, jnp.ones((*rows.shape[:-1], 1), rows.dtype)], axis=-1)


def position_rows(program: Program, site: Site, output: Any) -> Any:
    """Arrange a value of the output's shape as [(groups,) T, outputs], or [T, outputs] of experts that are chosen."""
    equation = program.equations[site.product]
    product = unrun(site.after, program.avals[equation.outputs[0]].shape, output)
    if equation.name == "gather":
        slices = equation.params["dimension_numbers"].offset_dims
        rows = product.transpose((*(n for n in range(product.ndim) if n not in slices), *slices))
        return rows.reshape(-1, site.layer.matrix_shape[1])
    if equation.name == "dot_general":
        contracting, batch = (len(axes[0]) for axes in equation.params["dimension_numbers"])
        free = len(program.avals[equation.inputs[1 - site.operand]].shape) - contracting - batch
        order = list(range(product.ndim))
        if site.operand == 1:  # the weight comes first: so do its axes
            order = order[:batch] + order[batch + free :] + order[batch : batch + free]
        groups = site.layer.matrix_shape[:-2] if site.chosen is None else ()
        return product.transpose(order).reshape(*groups, -1, site.layer.matrix_shape[-1])
    rows = output_rows(product, equation.params)
    if site.layer.groups == 1:
        return rows
    return rows.reshape(rows.shape[0], site.layer.groups, -1).transpose(1, 0, 2)
