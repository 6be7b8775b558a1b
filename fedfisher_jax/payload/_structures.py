"""Fisher structures in files: their named arrays behind "fisher/", and what a header claims, which is not trusted."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..curvature import Layer
from ..curvature._layers import MAX_AXES as MAX_AXES
from ..curvature._layers import MAX_SIZE as MAX_SIZE
from ..curvature._leaves import Leaf
from ..curvature._leaves import leaves as leaves_of
from ..curvature.structures._protocol import named, sign_of, with_arrays
from ..curvature.structures._registry import statistics
from ..curvature.structures._signs import Sign

PREFIX = "fisher/"


def name_of(fisher: Any) -> str | None:
    """Give the structure's name in files; None for no Fisher.

    Raises:
        ValueError: this structure is not registered.
    """
    if fisher is None:
        return None
    if statistics().get(getattr(type(fisher), "name", "")) is not type(fisher):
        known = ", ".join(statistics())
        raise ValueError(f"payload.statistics: {type(fisher).__name__} has no form in files; known are {known}")
    return fisher.name


def arrays_of(fisher: Any, leaves: Sequence[Leaf]) -> dict[str, Any]:
    """Give the structure's arrays by their names in files."""
    if name_of(fisher) is None:
        return {}
    return {PREFIX + name: array for name, array in named(fisher, leaves).items()}


def outline(structure: str | None, static: Any, leaves: Sequence[Leaf], treedef: Any = None) -> Any:
    """Make the structure that a file announces, its arrays' shapes in their place; None for no Fisher.

    Args:
        structure: its name.
        static: what the file says of it beside its arrays.
        leaves: the parameters' leaves.
        treedef: structure of the parameter tree; without it, that of a list.

    Raises:
        ValueError: an unknown name, or `static` does not fit the parameters.
    """
    if structure is None:
        if static != {}:
            raise ValueError("static: expected nothing without a structure")
        return None
    tree = jax.tree.structure([0] * len(leaves)) if treedef is None else treedef
    known = statistics()
    if structure not in known:
        raise ValueError(f"structure: got {structure!r}, expected one of {', '.join(known)}")
    return known[structure].outline(static, leaves, tree)


def expected(outlined: Any, leaves: Sequence[Leaf]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of an outline."""
    return {name: array.shape for name, array in arrays_of(outlined, leaves).items()}


def filled(outlined: Any, leaves: Sequence[Leaf], arrays: Mapping[str, np.ndarray | jax.Array]) -> Any:
    """Fill an outline with the arrays that have the names and shapes of `expected`."""
    return with_arrays(outlined, [jnp.asarray(arrays[name]) for name in expected(outlined, leaves)])


def sign(structure: str | None, entry: str) -> Sign:
    """Tell what the entries of a file's array may be; its parameters may be anything."""
    if structure is None or not entry.startswith(PREFIX):
        return "any"
    return sign_of(statistics()[structure], entry.removeprefix(PREFIX))


def model_leaves(payload: Any) -> tuple[Leaf, ...]:
    """List the leaves of the model that a payload is about, whether or not it holds the parameters."""
    return leaves_of(payload.params) if payload.params is not None else payload.statistics.leaves


def has_params(structure: str | None) -> bool:
    """Tell whether files with this structure hold parameters, too."""
    return structure is None or not statistics()[structure].alone


def require_layers(outlined: Any, known: Sequence[Layer]) -> None:
    """Refuse layers that the model does not have (some may be left out, and their biases).

    Raises:
        ValueError: which one.
    """
    by_weight = {layer.weight: layer for layer in known}
    for number, layer in enumerate(getattr(outlined, "layers", ())):
        own = by_weight.get(layer.weight)
        if own is not None and layer.bias is None:
            own = dataclasses.replace(own, bias=None, bias_shape=())
        if layer != own:
            raise ValueError(f"layers[{number}]: not a layer of the model")
