"""One weight that is read several times: its uses are positions of one layer, also if some read its transpose.

The gradient of a weight W [inputs, outputs] is the sum over its uses. Uses x W, each with inputs a and output gradients
g, are more positions of one layer (Martens, Ba and Johnson 2018; arXiv 2311.00636, "expand"). A use h Wᵀ with output
gradients δ adds δ hᵀ: there δ lies on the side of the inputs, and h on that of the outputs. So does a language model's
table that is its head, too: of V rows some are looked up, and each is multiplied by hidden states.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _lookup
from ._chosen import Chosen
from ._layers import Layer, run
from ._lookup import Lookup


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Crossed:
    """What belongs to uses x W, and to uses h Wᵀ: activations x and h, output gradients g and δ, or moments of them."""

    along: Any
    across: Any


def each(function: Callable, *values: Any) -> Any:
    """Apply a function to what belongs to a layer; where it is read both ways, to what belongs to either way."""
    if not isinstance(values[0], Crossed):
        return function(*values)
    return Crossed(function(*(v.along for v in values)), function(*(v.across for v in values)))


def joined(parts: Sequence[Any], crossed: Sequence[bool]) -> Any:
    """Put the positions of a layer's uses behind each other: those of uses h Wᵀ, which are `crossed`, apart."""
    along, across = ([part for part, c in zip(parts, crossed, strict=True) if c is way] for way in (False, True))
    return Crossed(_behind(along), _behind(across)) if across else _behind(along)


def _behind(parts: Sequence[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Lookup):
        return dataclasses.replace(parts[0], numbers=jnp.concatenate([part.numbers for part in parts], axis=-1))
    return jnp.concatenate(parts, axis=-2)


def gradient(a: Any, g: Any) -> jax.Array:
    """Add up a_t g_tᵀ over positions, and δ_t h_tᵀ: activations and output gradients of one example and cotangent."""
    if not isinstance(a, Crossed):
        return _lookup.gradient(a.rows if isinstance(a, Chosen) else a, g)
    other = _lookup.gradient(a.across, g.across)
    return _lookup.gradient(a.along, g.along) + jnp.swapaxes(other, -1, -2)


def input_moment(a: Any) -> Any:
    """Add up a layer's a aᵀ over examples and positions, and how often each expert was chosen, of a batch [n, ...]."""
    if isinstance(a, Chosen):
        return Chosen(_lookup.second_moment(a.rows), jnp.sum(a.chose, axis=(0, -1)))
    return each(_lookup.second_moment, a)


def dense(a: Any) -> jax.Array:
    """Write out activations [..., T, inputs], of a table as one-hot rows.

    Raises:
        ValueError: they are of a weight that is read both ways, or of experts.
    """
    if isinstance(a, Crossed | Chosen):
        raise ValueError("layer: got a weight that is read both ways, or experts that are chosen, expected neither")
    return jax.nn.one_hot(a.numbers - 1, a.size, dtype=a.dtype) if isinstance(a, Lookup) else a


def is_crossed(layer: Layer, other: Layer) -> bool | None:
    """Tell whether a weight's other use sees its matrix the other way round; None where it sees another matrix."""
    if layer.steps == other.steps:
        return False
    here, there = _places(layer), _places(other)
    if here is None or there is None:
        return None
    if here == there:
        return False
    return True if here == (*there[:-2], there[-1], there[-2]) else None


def _places(layer: Layer) -> tuple | None:
    """Size and stride, in the weight's leaf, of each axis of its matrix; None where it is no plain view of the leaf."""
    leaf = np.empty(layer.shape, np.bool_)  # nothing is written, so that no memory is taken
    matrix = run(layer.steps, leaf)
    if not np.may_share_memory(matrix, leaf):
        return None
    return tuple((size, stride if size > 1 else 0) for size, stride in zip(matrix.shape, matrix.strides, strict=True))
