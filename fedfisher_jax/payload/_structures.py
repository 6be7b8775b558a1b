"""Fisher structures as named arrays and a little JSON, and back: what `file` knows about each of them.

Reading is from untrusted files: what JSON claims about layers is checked against the parameters' shapes before any
array is looked at, and arrays are checked for being a Fisher information: finite and positive semi-definite.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..curvature import Diagonal, Full, Kronecker, Layer
from ..curvature.structures._gram import Gram
from ..curvature.structures._low_rank import LowRank
from ._tree import Leaf

Shapes = dict[str, tuple[int, ...]]
PSD_TOLERANCE = 1e-5  # of the largest diagonal entry: rounding of float32 sums (measured: 1e-6 on 10 x 10 factors)
STRUCTURES = {"diagonal": Diagonal, "full": Full, "kronecker": Kronecker, "gram": Gram, "low_rank": LowRank}
MAX_RANK = 4096  # of low-rank Fishers
MAX_AXES, MAX_SIZE, MAX_STEPS = 32, 2**40, 64  # of shapes in files, and of a layer's way from its weight to its matrix


class Static(NamedTuple):
    """What a structure is beside its arrays."""

    layers: tuple[Layer, ...] = ()  # of kronecker and gram
    rank: int = 0  # of low_rank
    covered: tuple[int, ...] = ()  # leaf numbers of low_rank's vectors


def name_of(fisher: Any) -> str | None:
    """The structure's name in files; None for no Fisher.

    Raises:
        ValueError: this structure has no form in files.
    """
    if fisher is None:
        return None
    for name, record in STRUCTURES.items():
        if type(fisher) is record:
            return name
    raise ValueError(f"payload.fisher: {type(fisher).__name__} has no form in files; known are {', '.join(STRUCTURES)}")


def arrays_of(fisher: Any, leaves: Sequence[Leaf]) -> dict[str, Any]:
    """The structure's arrays by the names that `expected` gives them."""
    match fisher:
        case None:
            return {}
        case Diagonal():
            return dict(zip(_diagonal_names(leaves), jax.tree.leaves(fisher.values), strict=True))
        case Full():
            return {"fisher/matrix": fisher.matrix}
        case Kronecker():
            names = [leaves[layer.weight].path for layer in fisher.layers]
            inputs = {f"fisher/inputs/{name}": a for name, a in zip(names, fisher.inputs, strict=True)}
            outputs = {f"fisher/outputs/{name}": g for name, g in zip(names, fisher.outputs, strict=True)}
            rest = {f"fisher/rest/{leaves[leaf].path}": value for leaf, value in fisher.rest.items()}
            return inputs | outputs | rest
        case Gram():
            names = [leaves[layer.weight].path for layer in fisher.layers]
            return {f"fisher/inputs/{name}": a for name, a in zip(names, fisher.inputs, strict=True)}
        case LowRank():
            vectors = {f"fisher/vectors/{leaves[leaf].path}": u for leaf, u in sorted(fisher.vectors.items())}
            return {"fisher/values": fisher.values} | vectors
    raise ValueError(f"payload.fisher: {type(fisher).__name__} has no form in files")


def static_json(fisher: Any) -> dict[str, Any]:
    """`Static` as JSON; what a structure does not have is left out."""
    if isinstance(fisher, LowRank):
        return {"rank": int(fisher.values.shape[0]), "covered": sorted(map(int, fisher.vectors))}
    if not isinstance(fisher, Kronecker | Gram):
        return {}
    layers = [
        {
            "weight": int(layer.weight),
            "bias": None if layer.bias is None else int(layer.bias),
            "groups": int(layer.groups),
            "steps": [[kind, [int(n) for n in argument]] for kind, argument in layer.steps],
        }
        for layer in fisher.layers
    ]
    return {"layers": layers}


def static_from_json(structure: str | None, value: Any, leaves: Sequence[Leaf]) -> Static:
    """What a file says of its structure, if it fits the parameters.

    Raises:
        ValueError: it does not; what and why.
    """
    wanted = {"kronecker": {"layers"}, "gram": {"layers"}, "low_rank": {"rank", "covered"}}.get(structure or "", set())
    if not isinstance(value, dict) or set(value) != wanted:
        raise ValueError(f"static: expected {', '.join(sorted(wanted)) or 'nothing'} for {structure}")
    if structure == "low_rank":
        rank, covered = value["rank"], value["covered"]
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            raise ValueError(f"rank: expected 1 to {MAX_RANK}, got {str(rank)[:40]!r}")
        numbers = isinstance(covered, list) and all(type(n) is int and 0 <= n < len(leaves) for n in covered)
        if not numbers or not covered or covered != sorted(set(covered)):
            raise ValueError("covered: expected numbers of parameters, at least one, in order")
        return Static(rank=rank, covered=tuple(covered))
    if not wanted:
        return Static()
    if not isinstance(value["layers"], list) or (structure == "gram" and not value["layers"]):
        raise ValueError("layers: expected a list, of a gram at least one layer")
    layers, seen = [], set()
    for number, entry in enumerate(value["layers"]):
        try:
            layer = _layer(entry, leaves)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"layers[{number}]: {error}") from error
        if seen & set(layer.leaves):
            raise ValueError(f"layers[{number}]: its parameters belong to another layer, too")
        seen |= set(layer.leaves)
        layers.append(layer)
    return Static(tuple(layers))


def require_layers(layers: Sequence[Layer], known: Sequence[Layer]) -> None:
    """Refuse layers that the model does not have (some may be left out, and their biases).

    Raises:
        ValueError: which one.
    """
    by_weight = {layer.weight: layer for layer in known}
    for number, layer in enumerate(layers):
        own = by_weight.get(layer.weight)
        if own is not None and layer.bias is None:
            own = dataclasses.replace(own, bias=None, bias_shape=())
        if layer != own:
            raise ValueError(f"layers[{number}]: not a layer of the model")


def expected(structure: str | None, static: Static, leaves: Sequence[Leaf]) -> Shapes:
    """Name and shape of every array of a structure."""
    if structure is None:
        return {}
    if structure == "diagonal":
        return dict(zip(_diagonal_names(leaves), (leaf.shape for leaf in leaves), strict=True))
    if structure == "full":
        size = sum(leaf.size for leaf in leaves)
        return {"fisher/matrix": (size, size)}
    if structure == "low_rank":
        vectors = {f"fisher/vectors/{leaves[leaf].path}": (static.rank, *leaves[leaf].shape) for leaf in static.covered}
        return {"fisher/values": (static.rank,)} | vectors
    shapes: Shapes = {}
    covered = {leaf for layer in static.layers for leaf in layer.leaves}
    for layer in static.layers:
        groups, inputs, outputs = _matrix_shape(layer)
        batch = () if layer.groups == 1 else (groups,)
        shapes[f"fisher/inputs/{leaves[layer.weight].path}"] = (*batch, inputs, inputs)
        if structure == "kronecker":
            shapes[f"fisher/outputs/{leaves[layer.weight].path}"] = (*batch, outputs, outputs)
    if structure == "kronecker":
        shapes |= {f"fisher/rest/{leaf.path}": leaf.shape for n, leaf in enumerate(leaves) if n not in covered}
    return shapes


def build(
    structure: str | None, static: Static, leaves: Sequence[Leaf], arrays: Mapping[str, Any], treedef: Any
) -> Any:
    """The structure from its arrays, which have the names and shapes of `expected`."""
    get = {name: jnp.asarray(value) for name, value in arrays.items()}
    shapes = tuple(leaf.shape for leaf in leaves)
    if structure is None:
        return None
    if structure == "diagonal":
        return Diagonal(jax.tree.unflatten(treedef, [get[name] for name in _diagonal_names(leaves)]))
    if structure == "full":
        return Full(get["fisher/matrix"], shapes, treedef)
    if structure == "low_rank":
        vectors = {leaf: get[f"fisher/vectors/{leaves[leaf].path}"] for leaf in static.covered}
        return LowRank(get["fisher/values"], vectors, shapes, treedef)
    layers = static.layers
    inputs = tuple(get[f"fisher/inputs/{leaves[layer.weight].path}"] for layer in layers)
    if structure == "gram":
        return Gram(inputs, layers, shapes, treedef)
    outputs = tuple(get[f"fisher/outputs/{leaves[layer.weight].path}"] for layer in layers)
    covered = {leaf for layer in layers for leaf in layer.leaves}
    rest = {n: get[f"fisher/rest/{leaf.path}"] for n, leaf in enumerate(leaves) if n not in covered}
    return Kronecker(inputs, outputs, rest, layers, treedef)


def is_matrix(name: str) -> bool:
    """Whether an entry of this name is a semi-definite matrix."""
    return name == "fisher/matrix" or name.startswith(("fisher/inputs/", "fisher/outputs/"))


def is_positive(name: str) -> bool:
    """Whether an entry of this name is a diagonal or eigenvalues, which are not negative."""
    return name == "fisher/values" or name.startswith(("fisher/diagonal/", "fisher/rest/"))


def require_semidefinite(name: str, array: np.ndarray) -> None:
    """Refuse what is no Fisher information, to `PSD_TOLERANCE`.

    Args:
        name: of the entry.
        array: its numbers, finite.

    Raises:
        ValueError: a negative entry of a diagonal, an asymmetric matrix or a negative eigenvalue.
    """
    if is_positive(name) and array.size and array.min() < 0:
        raise ValueError(f"expected no negative entry, got {array.min():g}")
    if not is_matrix(name) or not array.size:
        return
    wide = array.astype(np.float64)  # few copies: files' matrices are large, and readers' memory has a cap
    gap, largest = (wide - np.swapaxes(wide, -1, -2)).max(), max(wide.max(), -wide.min())
    if gap > PSD_TOLERANCE * largest:
        raise ValueError(f"expected a symmetric matrix, got differences up to {gap:g} of {largest:g}")
    shift = PSD_TOLERANCE * np.abs(np.diagonal(wide, axis1=-2, axis2=-1)).max(-1)  # at most that times the largest
    wide = wide + np.swapaxes(wide, -1, -2)
    wide /= 2
    axis = np.arange(wide.shape[-1])
    wide[..., axis, axis] += np.where(shift > 0, shift, np.finfo(np.float64).tiny)[..., None]
    try:  # succeeds where no eigenvalue is below -shift, much faster than finding them
        np.linalg.cholesky(wide)
    except np.linalg.LinAlgError:
        raise ValueError("expected a positive semi-definite matrix, got one with a negative eigenvalue") from None


def nearest_semidefinite(array: np.ndarray) -> np.ndarray:
    """The symmetric part of matrices [..., n, n] without its negative eigenvalues."""
    symmetric = array.astype(np.float64) + np.swapaxes(array, -1, -2)
    symmetric /= 2
    values, vectors = np.linalg.eigh(symmetric)
    del symmetric
    kept = (vectors * np.maximum(values, 0)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    return ((kept + np.swapaxes(kept, -1, -2)) / 2).astype(array.dtype)


def _diagonal_names(leaves: Sequence[Leaf]) -> list[str]:
    return [f"fisher/diagonal/{leaf.path}" for leaf in leaves]


def _matrix_shape(layer: Layer) -> tuple[int, int, int]:
    """Groups, inputs (the bias is one) and outputs of the layer's matrix; shapes alone."""
    shape = layer.shape
    for kind, argument in layer.steps:
        shape = tuple(shape[axis] for axis in argument) if kind == "transpose" else argument
    shape = shape if layer.groups > 1 else (1, *shape)
    return shape[0], shape[1] + (layer.bias is not None), shape[2]


def _layer(entry: Any, leaves: Sequence[Leaf]) -> Layer:
    if not isinstance(entry, dict) or set(entry) != {"weight", "bias", "groups", "steps"}:
        raise ValueError("expected weight, bias, groups and steps")
    weight, bias, groups = entry["weight"], entry["bias"], entry["groups"]
    for number in (weight,) if bias is None else (weight, bias):
        if type(number) is not int or not 0 <= number < len(leaves):
            raise ValueError(f"expected numbers of parameters, 0 to {len(leaves) - 1}, got {str(number)[:40]!r}")
    if type(groups) is not int or groups < 1 or weight == bias:
        raise ValueError("expected at least one group, and a bias that is not the weight")
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
    return Layer(weight, bias, leaves[weight].shape, bias_shape, tuple(steps), groups)
