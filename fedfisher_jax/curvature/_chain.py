"""Sequential networks as chains of matrices over units, so that neurons can be permuted, merged and added.

Between two captured layers of such a network each unit (neuron or channel) goes its own way, and every unit the same
one: activations, pools, flattening. That is found out from the model's jaxpr and by numbers, not from its source. A
layer's weight is then [units before, inputs per unit, units], and with more units the same network is evaluated in
groups of as many units as it was written for.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _compat
from .._trees import from_numbered
from ..tracing._jaxpr import Program
from ._pull_back import Capture, Site, activation_rows, position_rows

PyTree = Any


class Units(NamedTuple):
    """One layer: `weight` [units before, inputs per unit, units] and `bias` [units] or None."""

    weight: Any
    bias: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """The layers of a sequential network; see `find`."""

    captured: Capture
    inputs: tuple[np.ndarray, ...]  # per layer [units before, inputs per unit]: rows of its matrix
    between: tuple[tuple[int, ...], ...]  # equations before each layer, and those after the last
    treedef: Any

    @property
    def units(self) -> tuple[int, ...]:
        """The number of units of each layer as the network was written."""
        return tuple(_shape(self.captured.program, site)[1] for site in self.captured.sites)

    def split(self, params: PyTree) -> list[Units]:
        """Split a parameter tree into its layers."""
        leaves = jax.tree.leaves(params)
        result = []
        for layer, rows in zip(self.captured.layers, self.inputs, strict=True):
            matrix = layer.to_matrix(leaves)
            result.append(Units(matrix[rows], None if layer.bias is None else matrix[-1]))
        return result

    def join(self, layers: Sequence[Units]) -> PyTree:
        """Undo `split`, for layers of the network's own widths."""
        leaves: dict[int, Any] = {}
        for layer, rows, (weight, bias) in zip(self.captured.layers, self.inputs, layers, strict=True):
            matrix = jnp.zeros((rows.size, weight.shape[-1]), weight.dtype)
            matrix = matrix.at[rows.ravel()].set(weight.reshape(rows.size, -1))
            leaves |= layer.from_matrix(matrix if layer.bias is None else jnp.concatenate([matrix, bias[None]]))
        return from_numbered(self.treedef, leaves)

    def outputs(self, layers: Sequence[Units], x: Any) -> list[jax.Array]:
        """Compute each layer's outputs [n, positions, units], bias added, at x [n, ...], for layers of any width."""
        return jax.vmap(lambda one: self._run(layers, one)[0])(x)

    def apply(self, layers: Sequence[Units], x: Any) -> jax.Array:
        """Compute the network's outputs at x [n, ...] for layers of any widths but the last one's."""
        return jax.vmap(lambda one: self._run(layers, one)[1])(jnp.asarray(x))

    def _run(self, layers: Sequence[Units], one: Any) -> tuple[list[jax.Array], jax.Array]:
        program, sites, outputs = self.captured.program, self.captured.sites, []
        rows = self._activations(0, program.inputs[-1], one[None])[:, self.inputs[0]]  # [positions, units before, each]
        for number, (weight, bias) in enumerate(layers):
            product = jnp.einsum("tpm,pmu->tu", rows, weight)
            outputs.append(product if bias is None else product + bias)
            if number + 1 == len(sites):
                break
            own = self.units[number]
            groups = -(-weight.shape[-1] // own)
            padded = jnp.pad(outputs[-1], ((0, 0), (0, groups * own - weight.shape[-1])))
            grouped = jnp.moveaxis(padded.reshape(-1, groups, own), 1, 0)
            follow = jax.vmap(lambda z, n=number: self._activations(n + 1, sites[n].output, self._value(n, z)))
            after = follow(grouped)[:, :, self.inputs[number + 1]]  # [groups, positions, own, each]
            rows = jnp.moveaxis(after, 0, 1).reshape(after.shape[1], groups * own, -1)[:, : weight.shape[-1]]
        last = sites[-1].output
        values = {last: self._value(len(sites) - 1, outputs[-1]).astype(program.avals[last].dtype)}
        return outputs, _evaluate(program, self.between[-1], values)[program.outputs[0]][0]

    def _value(self, number: int, rows: jax.Array) -> jax.Array:
        """Arrange rows [positions, units] as the layer's output in the program's own shape."""
        program, site = self.captured.program, self.captured.sites[number]
        shape = program.avals[site.output].shape
        places = np.asarray(position_rows(program, site, np.arange(math.prod(shape)).reshape(shape))).ravel()
        flat = rows.ravel()
        return (flat if (places == np.arange(places.size)).all() else flat[np.argsort(places)]).reshape(shape)

    def _activations(self, number: int, variable: int, value: jax.Array) -> jax.Array:
        """Compute what the layer multiplies, [positions, inputs], from the value of the variable before it."""
        program, site = self.captured.program, self.captured.sites[number]
        operand = program.equations[site.product].inputs[site.operand]
        values = _evaluate(program, self.between[number], {variable: value.astype(program.avals[variable].dtype)})
        rows = activation_rows(program, site, values[operand])
        return rows if site.layer.bias is None else rows[..., :-1]


def find(captured: Capture, treedef: Any) -> Chain:
    """Find the chain of a captured network.

    Args:
        captured: the model's layers.
        treedef: the structure of its parameters.

    Raises:
        ValueError: the network is not sequential, saying why: parameters outside of layers, grouped convolutions, a
            layer that reads more than the layer before it (a residual connection), or units that mix or differ.
    """
    program, sites = captured.program, captured.sites
    paths = [
        jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(treedef.unflatten(range(treedef.num_leaves)))
    ]
    if captured.fallback:
        leaf, reason = next(iter(captured.fallback.items()))
        raise ValueError(f"apply: expected a chain of dense and convolutional layers, but {leaf} is in none: {reason}")
    for site in sites:
        if site.layer.lookup:
            raise ValueError(
                f"apply: expected a chain of dense and convolutional layers, but {paths[site.layer.weight]} is a table"
            )
        if site.layer.groups > 1:
            raise ValueError(f"apply: expected no grouped convolution, but {paths[site.layer.weight]} has groups")
        if site.more:
            raise ValueError(f"apply: expected a chain of layers, but {paths[site.layer.weight]} is read several times")
    targets = [program.equations[site.product].inputs[site.operand] for site in sites] + [program.outputs[0]]
    sources = [program.inputs[-1]] + [site.output for site in sites]
    names = [paths[site.layer.weight] for site in sites]
    between = tuple(
        _between(program, source, target, f"what {after} reads depends on more than {before}'s outputs")
        for source, target, before, after in zip(
            sources, targets, ["the input"] + names, names + ["the output"], strict=True
        )
    )
    first = np.arange(_shape(program, sites[0])[0])[None]
    chain = Chain(captured, (first,), between, treedef)
    for number in range(1, len(sites)):
        reading = f"{names[number]} of {names[number - 1]}'s units"
        chain = dataclasses.replace(chain, inputs=(*chain.inputs, _unit_inputs(chain, number, reading)))
    return chain


def _shape(program: Program, site: Site) -> tuple[int, int]:
    """Count the inputs (bias excluded) and the units of a layer."""
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in (program.avals[v] for v in program.inputs)]
    inputs, units = jax.eval_shape(lambda leaves: site.layer.to_matrix(leaves), shapes).shape
    return inputs - (site.layer.bias is not None), units


def _between(program: Program, source: int, target: int, complaint: str) -> tuple[int, ...]:
    """Find the equations that lead from `source` to `target` and need nothing else."""
    makers = {v: position for position, equation in enumerate(program.equations) for v in equation.outputs}
    needed: set[int] = set()
    open_ = [target]
    while open_:
        variable = open_.pop()
        if variable == source or variable in program.constants:
            continue
        if variable in program.inputs:
            raise ValueError(f"apply: expected a sequential network, but {complaint}")
        if makers[variable] not in needed:
            needed.add(makers[variable])
            open_ += program.equations[makers[variable]].inputs
    return tuple(sorted(needed))


def _evaluate(program: Program, positions: Sequence[int], values: dict[int, Any]) -> dict[int, Any]:
    values = {**program.constants, **values}
    for position in positions:
        equation = program.equations[position]
        results = _compat.bind(equation.primitive, [values[v] for v in equation.inputs], equation.params)
        values |= zip(equation.outputs, results, strict=True)
    return values


def _unit_inputs(chain: Chain, number: int, reading: str) -> np.ndarray:
    """Find which inputs of layer `number` each unit of the layer before it becomes: [units, inputs per unit].

    Numbers decide: changing one unit must change its own inputs alone, and exchanged units must come out exchanged.
    """
    program, site = chain.captured.program, chain.captured.sites[number - 1]
    units = chain.units[number - 1]
    positions = math.prod(program.avals[site.output].shape) // units
    random = np.random.default_rng(0)
    dtype = program.avals[site.output].dtype

    @jax.jit
    def follow(rows: jax.Array) -> jax.Array:
        return chain._activations(number, site.output, chain._value(number - 1, rows))

    with jax.ensure_compile_time_eval():
        touched = np.zeros((units, _shape(program, chain.captured.sites[number])[0]), int)
        for draw in range(4):  # a new sign shows through a ReLU, new numbers through an even activation
            rows = random.normal(size=(positions, units))
            new = -rows if draw % 2 == 0 else random.normal(size=rows.shape)
            changed = np.where(np.eye(units, dtype=bool)[:, None], new, rows)
            start = np.asarray(follow(jnp.asarray(rows, dtype)))
            each = np.stack([np.asarray(follow(jnp.asarray(one, dtype))) for one in changed])
            touched |= (each != start).any(1)
        idle = np.flatnonzero(~touched.any(0))
        if not start[:, idle].any():  # a kernel's places that see padding alone never act; channels vary fastest
            touched[np.arange(len(idle)) % units, idle] = 1
        if (touched.sum(0) > 1).any():
            raise ValueError(f"apply: expected {reading} one by one, but inputs of it depend on several units")
        counts = touched.sum(1)
        if (counts != counts[0]).any() or touched.sum() != touched.shape[1]:
            raise ValueError(f"apply: expected {reading} each in as many inputs, got {counts.tolist()}")
        inputs = np.stack([np.flatnonzero(row) for row in touched])
        order = random.permutation(units)
        swapped = np.asarray(follow(jnp.asarray(rows[:, order], dtype)))[:, inputs]
        if not np.allclose(swapped, start[:, inputs][:, order], atol=1e-5):
            raise ValueError(f"apply: expected {reading} all in the same way, but some are treated differently")
    return inputs
