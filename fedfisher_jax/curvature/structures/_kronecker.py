"""Kronecker-factored Fisher information: K-FAC (arXiv 1503.05671; 2403.12329, section 4)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from ..._trees import from_numbered, weighted_sum
from .._layers import Layer, layers_from_json, layers_to_json, numbered
from .._leaves import Leaf
from .._pull_back import Capture, Pulled
from .._reuse import input_moment
from ._factors import (
    balanced,
    factor_of,
    from_means,
    gradient_moments,
    input_eigenpairs,
    input_names,
    layer_blocks,
    nearest,
    reciprocal,
    times,
)
from ._protocol import Blocks, Spectral, Structure, eigenpairs, require_static, shaped
from ._signs import Sign

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kronecker(Structure):
    """A ⊗ G per captured layer, a diagonal elsewhere (arXiv 2403.12329, section 4).

    `inputs[l]` is A [(groups,) inputs, inputs], the second moment of the layer's activations summed over positions;
    `outputs[l]` is G [(groups,) outputs, outputs], of the gradients at its output, averaged over positions. On the
    layer's matrix V [inputs, outputs] the block acts as A V G; papers, whose weights are [out, in], write G ⊗ A. For a
    table whose rows are looked up A is diagonal, and `inputs[l]` is that diagonal [rows]: how often each row is read.

    Uses of one weight are more positions (Martens, Ba and Johnson 2018). Where some read its transpose, as h Wᵀ with
    output gradients δ, theirs is D ⊗ H, of the second moments of δ and of h. A ⊗ G + D ⊗ H is no product; `inputs[l]`
    and `outputs[l]` are factors of the one with the same partial traces, which is the nearest in relative entropy, and
    exact where one use has no gradient. Left out is how the gradients of different uses go together. A table that is
    the head, too (GPT-2), has only the diagonal of D. Experts that positions choose: see `_chosen`.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> data = ff.examples(jnp.asarray([[1.0, 2.0]]))
        >>> f = ff.fisher(lambda w, x: x @ w, ff.gaussian(), jnp.zeros((2, 1)), data, structure="kronecker")
        >>> f.inputs[0].tolist(), f.outputs[0].tolist()
        ([[1.0, 2.0], [2.0, 4.0]], [[1.0]])
    """

    name: ClassVar[str] = "kronecker"
    signs: ClassVar[Mapping[str, Sign]] = {
        "inputs": "semidefinite",
        "counts": "nonnegative",
        "outputs": "semidefinite",
        "rest": "nonnegative",
    }
    additive: ClassVar[bool] = False

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    rest: dict[int, Any]  # leaf number → diagonal
    layers: tuple[Layer, ...] = dataclasses.field(metadata={"static": True})
    treedef: Any = dataclasses.field(metadata={"static": True})

    def matvec(self, v: PyTree) -> PyTree:
        """F v, which is A V G for each layer."""
        leaves = jax.tree.leaves(v)
        result = {leaf: value * leaves[leaf] for leaf, value in self.rest.items()}
        for layer, a, g in zip(self.layers, self.inputs, self.outputs, strict=True):
            result |= layer.from_matrix(times(layer, a, layer.to_matrix(leaves)) @ g)
        return _tree(v, result)

    def diagonal(self) -> PyTree:
        """The diagonal of F, which is diag(A) diag(G)ᵀ for each layer."""
        result = dict(self.rest)
        for layer, a, g in zip(self.layers, self.inputs, self.outputs, strict=True):
            left = a if layer.lookup else jnp.diagonal(a, axis1=-2, axis2=-1)
            right = jnp.diagonal(g, axis1=-2, axis2=-1)
            result |= layer.from_matrix(left[..., :, None] * right[..., None, :])
        return from_numbered(self.treedef, result)

    def scale(self, factor: Any) -> "Kronecker":
        """F times a factor, which G and the diagonal take."""
        outputs = tuple(factor * g for g in self.outputs)
        rest = {leaf: factor * value for leaf, value in self.rest.items()}
        return dataclasses.replace(self, outputs=outputs, rest=rest)

    def blocks(self) -> Blocks:
        """A layer's weight and bias are one block; every other leaf is one alone."""
        return layer_blocks(self.layers, sorted(self.rest))

    def to_dense(self) -> jax.Array:
        """F as a matrix [d, d] in the order of `ravel_pytree`, from explicit Kronecker products."""
        leaves = jax.tree.leaves(self.diagonal())
        numbers, size = numbered([leaf.shape for leaf in leaves]), sum(leaf.size for leaf in leaves)
        dense = jnp.zeros((size, size), jnp.result_type(*leaves))
        for leaf, value in self.rest.items():
            where = numbers[leaf].ravel()
            dense = dense.at[where, where].set(value.ravel())
        for layer, a, g in zip(self.layers, self.inputs, self.outputs, strict=True):
            where, a = layer.to_matrix(numbers), jnp.diag(a) if layer.lookup else a
            groups = [(where, a, g)] if where.ndim == 2 else zip(where, a, g, strict=True)
            for rows, left, right in groups:
                dense = dense.at[rows.ravel()[:, None], rows.ravel()].set(jnp.kron(left, right))
        return dense

    def spectral(self, function: Spectral, cutoff: float | None = None) -> Callable[[PyTree], PyTree]:
        """Apply the function to the blocks' eigenvalues, which are all products of their factors' eigenvalues."""
        count = len(self.layers)
        rest = {leaf: function(self.rest[leaf], 0, count + n) for n, leaf in enumerate(sorted(self.rest))}
        parts = []
        for number, (layer, a, g) in enumerate(zip(self.layers, self.inputs, self.outputs, strict=True)):
            left, u, left_noise = input_eigenpairs(layer, a, cutoff)
            right, w, right_noise = eigenpairs(g, cutoff)
            left, right = left[..., :, None], right[..., None, :]
            noise = jnp.maximum(left_noise[..., None] * right, left * right_noise[..., None])
            parts.append((u, function(left * right, noise, number), w))
        return self._turned(parts, rest)

    def preconditioner(self, damping: float) -> Callable[[PyTree], PyTree]:
        """Each factor damped on its own, by ε relative to its mean diagonal entry (arXiv 1503.05671, section 6.3)."""
        rest = {leaf: reciprocal(value, damping, None) for leaf, value in self.rest.items()}
        parts = []
        for layer, a, g in zip(self.layers, self.inputs, self.outputs, strict=True):
            (left, u, _), (right, w, _) = input_eigenpairs(layer, a, None), eigenpairs(g, None)
            factors = reciprocal(left, damping)[..., :, None] * reciprocal(right, damping)[..., None, :]
            parts.append((u, factors, w))
        return self._turned(parts, rest)

    def parts(self) -> Iterator[tuple[tuple[int, ...], "Kronecker"]]:
        """Take F apart into layers, and what is in none: numbers of leaves, and F's block of them, over their tuple.

        F is block-diagonal between the parts, and so is a sum of such Fishers: its minimiser is found part by part.
        """
        for layer, a, g in zip(self.layers, self.inputs, self.outputs, strict=True):
            alone = dataclasses.replace(layer, weight=0, bias=None if layer.bias is None else 1)
            yield layer.leaves, Kronecker((a,), (g,), {}, (alone,), jax.tree.structure((0,) * len(layer.leaves)))
        if self.rest:
            numbers = tuple(sorted(self.rest))
            rest = {n: self.rest[leaf] for n, leaf in enumerate(numbers)}
            yield numbers, Kronecker((), (), rest, (), jax.tree.structure((0,) * len(numbers)))

    def _turned(self, parts: Sequence[tuple], rest: Mapping[int, Any]) -> Callable[[PyTree], PyTree]:
        """The map that multiplies by factors in the factors' eigenvectors, (u, factors, w) for each layer.

        Where u is None its eigenvectors are the unit vectors. It is a pytree, which compiled programs can return.
        """
        return Partial(functools.partial(_turn, self.layers), parts, rest)

    def names(self, leaves: Sequence[Leaf]) -> tuple[str, ...]:
        """The names of each layer's two matrices, by its weight, and of every other leaf's diagonal."""
        outputs = tuple(f"outputs/{leaves[layer.weight].path}" for layer in self.layers)
        rest = tuple(f"rest/{leaves[leaf].path}" for leaf in sorted(self.rest))
        return input_names(self.layers, leaves) + outputs + rest

    def static(self) -> dict[str, Any]:
        """The layers as JSON."""
        return {"layers": layers_to_json(self.layers)}

    @classmethod
    def outline(cls, static: Any, leaves: Sequence[Leaf], treedef: Any) -> "Kronecker":
        """The outline of two matrices for each layer and a diagonal for every other leaf."""
        require_static(static, {"layers"}, cls.name)
        layers = layers_from_json(static["layers"], leaves)
        shapes = [(layer.matrix_shape[:-2], *layer.matrix_shape[-2:]) for layer in layers]
        covered = {leaf for layer in layers for leaf in layer.leaves}
        return cls(
            tuple(
                shaped(inputs) if layer.lookup else shaped(*groups, inputs, inputs)
                for layer, (groups, inputs, _) in zip(layers, shapes, strict=True)
            ),
            tuple(shaped(*groups, outputs, outputs) for groups, _, outputs in shapes),
            {n: shaped(*leaf.shape) for n, leaf in enumerate(leaves) if n not in covered},
            layers,
            treedef,
        )

    @classmethod
    def sums(cls, pulled: Pulled) -> PyTree:
        """Add up second moments of output gradients, and squared gradients of the leaves that are in no layer."""
        rest = [jnp.sum(g**2, axis=(0, 1)) for g in pulled.leaves]
        positions = [None] * len(pulled.gradients) if pulled.positions is None else pulled.positions
        layers = zip(pulled.activations, pulled.gradients, positions, strict=True)
        return {"rest": rest, "outputs": [gradient_moments(a, g, count) for a, g, count in layers]}

    @classmethod
    def input_sums(cls, activations: Sequence[Any]) -> PyTree:
        """Add up second moments of activations, [(groups,) inputs, inputs] each, or counts of a table's rows."""
        return [input_moment(a) for a in activations]

    @classmethod
    def from_sums(cls, mean: PyTree, inputs: PyTree, captured: Capture, params: PyTree) -> "Kronecker":
        """Take the means as the factors."""
        rest = dict(zip(captured.fallback_leaves, mean["rest"], strict=True))
        pairs = [from_means(*layer) for layer in zip(captured.layers, inputs, mean["outputs"], strict=True)]
        treedef = jax.tree.structure(params)
        return cls(tuple(a for a, _ in pairs), tuple(g for _, g in pairs), rest, captured.layers, treedef)

    def nearest_sum(self, weights: Any, floor: float = 0.01) -> "Kronecker":
        """One product C · A ⊗ G, A and G being the partial traces of Σ_i w_i A_i ⊗ G_i divided by its trace C.

        Each then gets 1 % of its mean diagonal entry on its diagonal, since the sum is larger than this product in
        directions that few clients know. Where clients are equal it is their own Fisher, but for that.
        """
        stacked = zip(self.layers, self.inputs, self.outputs, strict=True)
        pairs = [nearest(layer, a, g, weights, floor) for layer, a, g in stacked]
        first = jax.tree.map(lambda leaf: leaf[0], self)
        rest = weighted_sum(weights, self.rest)
        return dataclasses.replace(
            first, inputs=tuple(a for a, _ in pairs), outputs=tuple(g for _, g in pairs), rest=rest
        )

    def balanced(self) -> "Kronecker":
        """The same F with both factors of a layer of one norm, so that clipping treats them alike."""
        pairs = [balanced(a, g) for a, g in zip(self.inputs, self.outputs, strict=True)]
        return dataclasses.replace(self, inputs=tuple(a for a, _ in pairs), outputs=tuple(g for _, g in pairs))

    def moment(self, layer: Layer, side: int) -> jax.Array:
        """The factor itself: A, or G."""
        factor = factor_of(self.layers, (self.inputs, self.outputs)[side], layer)
        return jnp.diag(factor) if layer.lookup and side == 0 else factor


def _tree(like: PyTree, result: dict[int, Any]) -> PyTree:
    return from_numbered(jax.tree.structure(like), result)


def _turn(layers: Sequence[Layer], parts: Sequence[tuple], rest: Mapping[int, Any], v: PyTree) -> PyTree:
    """Multiply by factors in eigenvectors, see `Kronecker._turned`."""
    leaves = jax.tree.leaves(v)
    result = {leaf: factor * leaves[leaf] for leaf, factor in rest.items()}
    for layer, (u, factors, w) in zip(layers, parts, strict=True):
        matrix = layer.to_matrix(leaves)
        turned = (matrix if u is None else jnp.swapaxes(u, -1, -2) @ matrix) @ w
        back = (factors * turned) @ jnp.swapaxes(w, -1, -2)
        result |= layer.from_matrix(back if u is None else u @ back)
    return _tree(v, result)
