"""Second moments of layers' inputs as a curvature: a Kronecker product with the identity."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..._trees import from_numbered
from .._chosen import Chosen
from .._layers import Layer
from .._leaves import Leaf
from .._pull_back import Capture, Pulled
from .._reuse import Crossed
from ._factors import input_names, layer_blocks, times
from ._kronecker import Kronecker
from ._protocol import Blocks, Spectral, Structure
from ._signs import Sign

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gram(Structure):
    """A ⊗ I for each layer, zero for every other leaf (where the anchor, the average, stays).

    `inputs[l]` is A [(groups,) inputs, inputs], the second moment of layer l's inputs (arXiv 2212.09849). A
    weight that is read both ways, x W and h Wᵀ, such as a tied head, is in no layer: least squares for both uses have
    the curvature A ⊗ I + I ⊗ H.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> data = ff.examples(jnp.asarray([[1.0, 2.0]]))
        >>> f = ff.fisher(lambda w, x: x @ w, ff.categorical(), jnp.zeros((2, 3)), data, structure="gram")
        >>> f.inputs[0].tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """

    name: ClassVar[str] = "gram"
    signs: ClassVar[Mapping[str, Sign]] = {"inputs": "semidefinite", "counts": "nonnegative"}
    additive: ClassVar[bool] = True

    inputs: tuple[Any, ...]  # per layer [(groups,) inputs, inputs], or the diagonal [rows] of a table
    layers: tuple[Layer, ...] = dataclasses.field(metadata={"static": True})
    shapes: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})  # of the parameters' leaves
    treedef: Any = dataclasses.field(metadata={"static": True})

    def kronecker(self) -> Kronecker:
        """The same curvature with its identities and zeros written out."""
        dtype, outputs = self.inputs[0].dtype, [layer.matrix_shape[-1] for layer in self.layers]
        identities = [
            jnp.broadcast_to(jnp.eye(n, dtype=dtype), (*a.shape[:-2], n, n))
            for a, n in zip(self.inputs, outputs, strict=True)
        ]
        rest = {leaf: jnp.zeros(self.shapes[leaf], dtype) for leaf in self._others()}
        return Kronecker(self.inputs, tuple(identities), rest, self.layers, self.treedef)

    def matvec(self, v: PyTree) -> PyTree:
        """F v, which is A V for each layer."""
        leaves, treedef = jax.tree.flatten(v)
        result = dict(enumerate(jax.tree.map(jnp.zeros_like, leaves)))
        for layer, a in zip(self.layers, self.inputs, strict=True):
            result |= layer.from_matrix(times(layer, a, layer.to_matrix(leaves)))
        return from_numbered(treedef, result)

    def diagonal(self) -> PyTree:
        """The diagonal of F, which is diag(A) for each of a layer's outputs."""
        return self.kronecker().diagonal()

    def scale(self, factor: Any) -> "Gram":
        """F times a factor."""
        return dataclasses.replace(self, inputs=tuple(factor * a for a in self.inputs))

    def blocks(self) -> Blocks:
        """A layer's leaves are one block; every other leaf is one alone."""
        return layer_blocks(self.layers, self._others())

    def to_dense(self) -> jax.Array:
        """F as a matrix [d, d] in the order of `ravel_pytree`."""
        return self.kronecker().to_dense()

    def spectral(self, function: Spectral, cutoff: float | None = None) -> Callable[[PyTree], PyTree]:
        """Apply the function to the eigenvalues of each A."""
        return self.kronecker().spectral(function, cutoff)

    def preconditioner(self, damping: float) -> Callable[[PyTree], PyTree]:
        """Each A damped on its own."""
        return self.kronecker().preconditioner(damping)

    def names(self, leaves: Sequence[Leaf]) -> tuple[str, ...]:
        """One name for each layer's matrix, by the path of its weight."""
        return input_names(self.layers, leaves)

    def static(self) -> dict[str, Any]:
        """The layers as JSON."""
        return self.kronecker().static()

    @classmethod
    def outline(cls, static: Any, leaves: Sequence[Leaf], treedef: Any) -> "Gram":
        """The outline of a matrix for each layer, of which there is at least one."""
        whole = Kronecker.outline(static, leaves, treedef)
        if not whole.layers:
            raise ValueError("layers: got an empty list, expected at least one layer for a gram")
        return cls(whole.inputs, whole.layers, tuple(leaf.shape for leaf in leaves), treedef)

    @classmethod
    def sums(cls, pulled: Pulled) -> PyTree:
        """Add up nothing, since gradients do not matter."""
        del pulled
        return ()

    @classmethod
    def input_sums(cls, activations: Sequence[Any]) -> PyTree:
        """Add up second moments of activations."""
        return Kronecker.input_sums(activations)

    @classmethod
    def from_sums(cls, mean: PyTree, inputs: PyTree, captured: Capture, params: PyTree) -> "Gram":
        """Take the mean second moments of every captured layer's inputs as the matrices."""
        del mean
        pairs = [pair for layer, a in zip(captured.layers, inputs, strict=True) for pair in of_inputs(layer, a)]
        if not pairs:
            raise ValueError(f"structure: got a gram of a model without layers, expected one: {captured.fallback}")
        leaves, treedef = jax.tree.flatten(params)
        moments = tuple(a for _, a in pairs)
        return cls(moments, tuple(layer for layer, _ in pairs), tuple(jnp.shape(leaf) for leaf in leaves), treedef)

    def moment(self, layer: Layer, side: int) -> jax.Array:
        """The matrix A itself, for side 0."""
        if side:
            raise ValueError("fisher: a Gram has no gradients, expected a structure that has")
        return self.kronecker().moment(layer, side)

    def _others(self) -> list[int]:
        covered = {leaf for layer in self.layers for leaf in layer.leaves}
        return [leaf for leaf in range(len(self.shapes)) if leaf not in covered]


def of_inputs(layer: Layer, moment: Any) -> list[tuple[Layer, jax.Array]]:
    """List a captured layer with its A for a `Gram`, if it is one there."""
    if isinstance(moment, Crossed):
        return []
    return [(layer, moment.rows if isinstance(moment, Chosen) else moment)]
