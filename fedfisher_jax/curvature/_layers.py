"""How one layer's parameters are seen as a matrix: what a Kronecker block acts on."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._leaves import Leaf

Steps = tuple[tuple[str, tuple[int, ...]], ...]  # ("transpose", axes) and ("reshape", shape)
MAX_AXES, MAX_SIZE, MAX_STEPS = 32, 2**40, 64  # of shapes in files, and of a layer's way from its weight to its matrix


@dataclasses.dataclass(frozen=True)
class Layer:
    """A weight and perhaps a bias among the leaves of a parameter tree. Static and hashable.

    Their matrix is [inputs, outputs], or [groups, inputs, outputs] for a grouped convolution and for experts whose
    weights are stacked; the bias is one more row of it (one more input, which is constantly one). A table
    [rows, outputs] has its rows as inputs.
    """

    weight: int  # leaf number
    bias: int | None
    shape: tuple[int, ...]  # of the weight's leaf
    bias_shape: tuple[int, ...]
    steps: Steps  # from the weight's leaf to the matrix
    groups: int = 1
    lookup: bool = False  # whether it is a table: its inputs are one-hot, and the side of its rows is a diagonal

    @property
    def leaves(self) -> tuple[int, ...]:
        """Leaf numbers, weight first."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """The shape of the layer's matrix: [(groups,) inputs, outputs], the bias being one more input."""
        shape = self.shape
        for kind, argument in self.steps:
            shape = tuple(shape[axis] for axis in argument) if kind == "transpose" else argument
        return (*shape[:-2], shape[-2] + (self.bias is not None), shape[-1])

    def to_matrix(self, leaves: Sequence[Any]) -> jax.Array:
        """Arrange the layer's parameters, among the leaves of a whole tree, as its matrix."""
        matrix = run(self.steps, jnp.asarray(leaves[self.weight]))
        if self.bias is None:
            return matrix
        row = jnp.reshape(leaves[self.bias], (*matrix.shape[:-2], 1, matrix.shape[-1]))
        return jnp.concatenate([matrix, row.astype(matrix.dtype)], axis=-2)

    def from_matrix(self, matrix: jax.Array) -> dict[int, jax.Array]:
        """Undo `to_matrix`: give the layer's leaves by their numbers."""
        if self.bias is None:
            return {self.weight: unrun(self.steps, self.shape, matrix)}
        weight = unrun(self.steps, self.shape, matrix[..., :-1, :])
        return {self.weight: weight, self.bias: matrix[..., -1, :].reshape(self.bias_shape)}


def layers_to_json(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Write layers as JSON, for files."""
    return [
        {
            "weight": int(layer.weight),
            "bias": None if layer.bias is None else int(layer.bias),
            "groups": int(layer.groups),
            "steps": [[kind, [int(n) for n in argument]] for kind, argument in layer.steps],
        }
        | ({"lookup": True} if layer.lookup else {})  # files of models without tables stay as they were
        for layer in layers
    ]


def layers_from_json(value: Any, leaves: Sequence[Leaf]) -> tuple[Layer, ...]:
    """Read layers from the JSON of a file that nobody vouches for, and check them against the parameters' shapes.

    Raises:
        ValueError: no list, or a layer that does not fit the parameters, or two that share one.
    """
    if not isinstance(value, list):
        raise ValueError("layers: expected a list")
    layers, seen = [], set()
    for number, entry in enumerate(value):
        try:
            layer = _layer(entry, leaves)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"layers[{number}]: {error}") from error
        if seen & set(layer.leaves):
            raise ValueError(f"layers[{number}]: its parameters belong to another layer, too")
        seen |= set(layer.leaves)
        layers.append(layer)
    return tuple(layers)


def numbered(shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Make leaves of these shapes that hold each parameter's place in the order of `ravel_pytree`."""
    sizes = [math.prod(shape) for shape in shapes]
    ends = np.cumsum(sizes)
    return [jnp.arange(e - n, e).reshape(shape) for e, n, shape in zip(ends, sizes, shapes, strict=True)]


def run(steps: Steps, array: Any) -> Any:
    """Apply transpositions and reshapes."""
    for kind, argument in steps:
        array = array.transpose(argument) if kind == "transpose" else array.reshape(argument)
    return array


def unrun(steps: Steps, shape: Sequence[int], array: Any) -> Any:
    """Undo `run`, back to `shape`."""
    shapes = [tuple(shape)]
    for kind, argument in steps:
        shapes.append(tuple(shapes[-1][axis] for axis in argument) if kind == "transpose" else tuple(argument))
    for (kind, argument), before in zip(reversed(steps), reversed(shapes[:-1]), strict=True):
        array = array.transpose(np.argsort(argument)) if kind == "transpose" else array.reshape(before)
    return array


def product_steps(shape: Sequence[int], contracting: Sequence[int], batch: Sequence[int] = ()) -> Steps:
    """Steps from one operand of a product to [contracted, free], or [groups, contracted, free] with batch axes."""
    free = [axis for axis in range(len(shape)) if axis not in (*contracting, *batch)]
    groups, inputs, outputs = (math.prod(shape[axis] for axis in axes) for axes in (batch, contracting, free))
    split = (groups, inputs, outputs) if groups > 1 else (inputs, outputs)
    return (("transpose", (*batch, *contracting, *free)), ("reshape", split))


def _layer(entry: Any, leaves: Sequence[Leaf]) -> Layer:
    if not isinstance(entry, dict) or set(entry) - {"lookup"} != {"weight", "bias", "groups", "steps"}:
        raise ValueError("expected weight, bias, groups and steps")
    weight, bias, groups, lookup = entry["weight"], entry["bias"], entry["groups"], "lookup" in entry
    for number in (weight,) if bias is None else (weight, bias):
        if type(number) is not int or not 0 <= number < len(leaves):
            raise ValueError(f"expected numbers of parameters, 0 to {len(leaves) - 1}, got {str(number)[:40]!r}")
    if type(groups) is not int or groups < 1 or weight == bias:
        raise ValueError("expected at least one group, and a bias that is not the weight")
    if lookup and (entry["lookup"] is not True or bias is not None or groups > 1):
        raise ValueError("lookup: expected true, for a table without bias and groups")
    if len(entry["steps"]) > MAX_STEPS:
        raise ValueError(f"steps: got {len(entry['steps'])}, expected at most {MAX_STEPS}")
    shape, steps = leaves[weight].shape, []
    for step in entry["steps"]:
        kind, argument = step
        if len(argument) > MAX_AXES or not all(type(n) is int and 0 <= n < MAX_SIZE for n in argument):
            raise ValueError(f"steps: expected lists of at most {MAX_AXES} sizes or axes, each below {MAX_SIZE}")
        argument = tuple(argument)
        if kind == "transpose" and sorted(argument) == list(range(len(shape))):
            shape = tuple(shape[axis] for axis in argument)
        elif kind == "reshape" and Leaf("", argument, "").size == Leaf("", shape, "").size:
            shape = argument
        else:
            raise ValueError(f"steps: {str(kind)[:40]!r} {str(argument)[:80]} does not fit shape {shape}")
        steps.append((kind, argument))
    if len(shape) != (2 if groups == 1 else 3) or (groups > 1 and shape[0] != groups):
        raise ValueError(f"steps: they lead to shape {shape}, expected a matrix for each of {groups} groups")
    if bias is not None and leaves[bias].size != groups * shape[-1]:
        raise ValueError(f"bias: {leaves[bias].path} has not one entry for each of {groups * shape[-1]} outputs")
    bias_shape = () if bias is None else leaves[bias].shape
    return Layer(weight, bias, leaves[weight].shape, bias_shape, tuple(steps), groups, lookup)
