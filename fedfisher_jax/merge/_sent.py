"""What clients are sent: a model, or between the exchanges of a rule a model and what else is measured there."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._trees import in_types_of, pick
from ..curvature._leaves import leaves as leaves_of

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Along:
    """A model and directions along which clients measure their loss.

    Attributes:
        model: the parameters.
        directions: a tree like them, with a leading axis of directions.
        masks: [blocks, leaves], one where a leaf of the parameters is in a block, else zero; a block's part of a
            direction is a direction of its own.
    """

    model: PyTree
    directions: PyTree
    masks: Any

    def parts(self) -> list[tuple[int, Any]]:
        """List pairs of a direction's place and a mask over leaves: the directions d_k, m of them."""
        count = jax.tree.leaves(self.directions)[0].shape[0]
        return [(place, mask) for place in range(count) for mask in self.masks]

    def part(self, place: Any, mask: Any) -> PyTree:
        """Take one d_k, zero outside of its block."""
        leaves, treedef = jax.tree.flatten(pick(self.directions, place))
        return treedef.unflatten([jnp.asarray(mask[n], leaf.dtype) * leaf for n, leaf in enumerate(leaves)])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stepped:
    """A model and the step that led there, for a further step.

    Attributes:
        model: the parameters.
        step: a tree like them.
    """

    model: PyTree
    step: PyTree


def model_of(sent: PyTree) -> PyTree:
    """Return the model in what clients are sent."""
    return sent.model if isinstance(sent, Along | Stepped) else sent


def in_models_types(sent: PyTree, like: PyTree) -> PyTree:
    """Convert the model in what clients are sent to the types of that in `like`, if it is like it."""
    model = in_types_of(model_of(sent), model_of(like))
    return dataclasses.replace(sent, model=model) if isinstance(sent, Along | Stepped) else model


def sent_like(arrays: Mapping[str, Any], like: PyTree) -> PyTree:
    """Tell by the names of arrays what clients were sent, and which shapes and types these must have.

    Args:
        arrays: by their paths, from a file or a message that nobody vouches for.
        like: the model's parameters, or their shapes.

    Returns:
        What was sent, with shapes in the place of arrays: `like` itself, or one whose numbers of directions and blocks
        are those of the arrays.
    """
    first = leaves_of(like)[0]
    model = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), like)

    def beside(one: Any, *axes: int) -> PyTree:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape), one.dtype), model)

    directions, masks = arrays.get(f"directions/{first.path}"), arrays.get("masks")
    if directions is not None and directions.ndim == len(first.shape) + 1 and masks is not None and masks.ndim == 2:
        blocks = jax.ShapeDtypeStruct((len(masks), len(jax.tree.leaves(like))), masks.dtype)
        return Along(model, beside(directions, len(directions)), blocks)
    step = arrays.get(f"step/{first.path}")
    return like if step is None else Stepped(model, beside(step))
