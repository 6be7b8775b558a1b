"""How one layer's parameters are seen as a matrix: what a Kronecker block acts on."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Steps = tuple[tuple[str, tuple[int, ...]], ...]  # ("transpose", axes) and ("reshape", shape)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A weight and perhaps a bias among the leaves of a parameter tree. Static and hashable.

    Their matrix is [inputs, outputs], or [groups, inputs, outputs] for a grouped convolution; the bias is one more row
    of it (one more input, which is constantly one).
    """

    weight: int  # leaf number
    bias: int | None
    shape: tuple[int, ...]  # of the weight's leaf
    bias_shape: tuple[int, ...]
    steps: Steps  # from the weight's leaf to the matrix
    groups: int = 1

    @property
    def leaves(self) -> tuple[int, ...]:
        """Leaf numbers, weight first."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def to_matrix(self, leaves: Sequence[Any]) -> jax.Array:
        """The matrix of a whole tree's leaves."""
        matrix = run(self.steps, jnp.asarray(leaves[self.weight]))
        if self.bias is None:
            return matrix
        row = jnp.reshape(leaves[self.bias], (*matrix.shape[:-2], 1, matrix.shape[-1]))
        return jnp.concatenate([matrix, row.astype(matrix.dtype)], axis=-2)

    def from_matrix(self, matrix: jax.Array) -> dict[int, jax.Array]:
        """Leaf number → leaf: the inverse of `to_matrix`."""
        if self.bias is None:
            return {self.weight: unrun(self.steps, self.shape, matrix)}
        weight = unrun(self.steps, self.shape, matrix[..., :-1, :])
        return {self.weight: weight, self.bias: matrix[..., -1, :].reshape(self.bias_shape)}


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


def product_steps(shape: Sequence[int], contracting: Sequence[int]) -> Steps:
    """Steps from one operand of a product to [contracted, free]."""
    free = [axis for axis in range(len(shape)) if axis not in contracting]
    inputs = math.prod(shape[axis] for axis in contracting)
    outputs = math.prod(shape[axis] for axis in free)
    return (("transpose", (*contracting, *free)), ("reshape", (inputs, outputs)))
