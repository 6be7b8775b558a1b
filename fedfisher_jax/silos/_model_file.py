"""Models in files: plain safetensors, a tensor per parameter under its path, and in the metadata which network it is.

Everybody's checkpoints of the same network are read, too: with our names, the same with dots, or PyTorch's names and
layout. A file never makes anything run: a user's own network is imported only if the command line names it.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import __version__
from ..data import Scaling
from ..merge._sent import Along, Stepped, model_of, sent_like
from ..models import Network, torch_layout, weights
from ..payload import Limits, PayloadError, fingerprint, leaves
from ..payload import _container as container
from ..payload._tree import Leaf
from ._network import likelihood_of, network_of, require_sizes, template_of

PyTree = Any
FORMAT = 4  # between exchanges of a rule; 3 is a model alone, 2 without names of classes, 1 without a scaling either
MOST_COLUMNS = 2**17  # of a scaling
MOST_NAME = 200  # characters of a class


@dataclasses.dataclass(frozen=True)
class Kind:
    """Which network a file holds the parameters of."""

    model: str  # a name of `models.NAMES`, or module:function
    input_shape: tuple[int, ...]
    outputs: int
    bias: bool = False
    likelihood: str = "categorical"


class Model(NamedTuple):
    """A network with its parameters, and what is done to inputs before it sees them."""

    kind: Kind
    network: Network
    params: PyTree
    made_by: str
    scaling: Scaling | None = None
    classes: tuple[int | str, ...] | None = None  # what labels are called; None: 0, 1, …
    between: Along | Stepped | None = None  # the parameters with what the next exchange of a rule is about

    @property
    def sent(self) -> PyTree:
        """What a rule's clients start from: the parameters, or more."""
        return self.params if self.between is None else self.between

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of what is sent, and scaling: silos that scale differently did not start from one model."""
        if self.scaling is None:
            return fingerprint(self.sent)
        return fingerprint({"params": self.sent, "scaling": self.scaling._asdict()})


def write(
    path: str | os.PathLike[str],
    kind: Kind,
    params: PyTree,
    made_by: str,
    scaling: Scaling | None = None,
    classes: tuple[int | str, ...] | None = None,
) -> bytes:
    """Write a model whole or not at all; returns the bytes that were written.

    Args:
        path: the file.
        kind: which network.
        params: its parameters, or what a rule gives between exchanges, whose arrays are named by their paths in it.
        made_by: a word on where it comes from, for people; no names of files, which tell more than was meant.
        scaling: what is done to inputs before the network sees them; None where nothing is.
        classes: the labels of the outputs, texts or whole numbers; None where they are 0, 1, …

    Raises:
        ValueError: what `read` would refuse, or a folder that cannot be written to.
    """
    require_sizes(kind.input_shape, kind.outputs)
    arrays = {leaf.path: np.asarray(x) for leaf, x in zip(leaves(params), jax.tree.leaves(params), strict=True)}
    header: dict[str, Any] = {"format": 1 if scaling is None else 2, "library": __version__, "made_by": made_by}
    if scaling is not None:
        header["scaling"] = _scaling(scaling.plain(), kind.input_shape, str(path)).plain()
    if classes is not None:
        header |= {"format": 3, "scaling": header.get("scaling"), "classes": _classes(list(classes), kind, str(path))}
    if isinstance(params, Along | Stepped):
        header = {"scaling": None, "classes": None} | header | {"format": 4}
    data = container.pack(header | dataclasses.asdict(kind), arrays)
    container.write_bytes(path, data)
    return data


def read(path: str | os.PathLike[str], model: str | None = None, limits: Limits = Limits()) -> Model:
    """Read a model from a file that `write` made.

    Args:
        path: the file.
        model: module:function of a user's own network; what a file names is imported only if it is named here, too.
        limits: caps.

    Raises:
        PayloadError: the file is refused, with entry and reason.
        ValueError: the network cannot be built.
    """
    header, arrays = container.unpack(container.read_bytes(path, limits), limits, str(path))
    kind = _kind(header, str(path))
    if model is not None and model != kind.model:
        raise PayloadError(f"{path}: model: it is of {kind.model[:80]!r}, not of {model!r}")
    if ":" in kind.model and model is None:
        raise PayloadError(f"{path}: model: it is of {kind.model[:80]!r}; say --model {kind.model[:80]} to import that")
    network = network_of(kind.model, kind.input_shape, kind.outputs, kind.bias)
    likelihood_of(kind.likelihood)
    template, version = template_of(network), header["format"]
    sent = _filled(sent_like(arrays, template) if version == 4 else template, arrays, str(path), exact=True)
    said, called = header.get("scaling"), header.get("classes")
    scaling = None if said is None and version != 2 else _scaling(said, kind.input_shape, str(path))
    classes = None if called is None and version != 3 else tuple(_classes(called, kind, str(path)))
    between = sent if version == 4 else None
    return Model(kind, network, model_of(sent), str(header["made_by"])[:200], scaling, classes, between)


def read_checkpoint(path: str | os.PathLike[str], template: PyTree, limits: Limits = Limits()) -> PyTree:
    """Read parameters like `template`, in its types, from anybody's safetensors file of the same network.

    The path may be a folder of one checkpoint's shards. What trainers wrap around names is dropped, see `weights`.

    Raises:
        PayloadError: the file is refused, with entry and reason.
    """
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else [Path(path)]
    try:
        found = weights.checkpoints(files) if len(files) != 1 or Path(path).is_dir() else {"": files}
        if len(found) != 1:
            raise ValueError(f"{path}: got a folder of {len(found)} checkpoints, expected the shards of one")
        contents = ((container.read_bytes(file, limits), str(file)) for file in files)
        parts = (container.tensors(data, limits, name, weights.COUNTERS)[1] for data, name in contents)
        arrays = weights.joined(parts, str(path))
    except ValueError as error:
        raise error if isinstance(error, PayloadError) else PayloadError(str(error)) from error
    return _filled(template, weights.tidied(arrays, _known(template)), str(path), exact=False)


def _known(template: PyTree) -> set[str]:
    """Every name that a parameter of the network may have in a file: ours, the same with dots, PyTorch's."""
    paths = {leaf.path for leaf in leaves(template)}
    try:
        shapes = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.uint8), template)
        theirs = set(torch_layout.to_torch(shapes))
    except Exception:  # not a tree of dictionaries of kernels and biases
        theirs = set()
    return paths | {path.replace("/", ".") for path in paths} | theirs


def _filled(template: PyTree, arrays: Mapping[str, np.ndarray], file: str, *, exact: bool) -> PyTree:
    try:
        described = leaves(template)
    except ValueError as error:  # types that a file says of what is not the model
        raise PayloadError(f"{file}: {error}") from error
    paths = {leaf.path for leaf in described}
    dotted = {leaf.path.replace("/", "."): leaf.path for leaf in described}
    if not exact and set(arrays) != paths and set(arrays) == set(dotted):
        arrays = {dotted[name]: array for name, array in arrays.items()}
    if set(arrays) != paths:
        if not exact and (converted := _from_torch(template, arrays)) is not None:
            return _checked(template, jax.tree.leaves(converted), described, file, exact)
        missing, more = sorted(paths - set(arrays)), sorted(set(arrays) - paths)
        raise PayloadError(f"{file}: parameters: missing {str(missing)[:200]}, not of this network {str(more)[:200]}")
    return _checked(template, [arrays[leaf.path] for leaf in described], described, file, exact)


def _checked(template: PyTree, values: list[Any], described: tuple[Leaf, ...], file: str, exact: bool) -> PyTree:
    for leaf, value in zip(described, values, strict=True):
        if tuple(value.shape) != leaf.shape or (exact and value.dtype.name != leaf.dtype):
            given = f"{value.dtype.name} {tuple(value.shape)}"
            raise PayloadError(f"{file}: {leaf.path}: got {given}, the network has {leaf.dtype} {leaf.shape}")
        if not np.isfinite(np.asarray(value)).all():
            raise PayloadError(f"{file}: {leaf.path}: expected finite numbers, got NaN or infinity")
    converted = [jnp.asarray(value, leaf.dtype) for leaf, value in zip(described, values, strict=True)]
    return jax.tree.structure(template).unflatten(converted)


def _from_torch(template: PyTree, arrays: Mapping[str, np.ndarray]) -> PyTree | None:
    try:
        return torch_layout.from_torch(template, arrays)
    except Exception:  # not a tree of dictionaries of kernels and biases, other names, or shapes that fit nowhere
        return None


def _kind(header: Mapping[str, Any], file: str) -> Kind:
    version = header.get("format")
    if type(version) is not int or version < 1 or not isinstance(header.get("model"), str):
        raise PayloadError(f"{file}: not a model file")
    if version > FORMAT:
        raise PayloadError(f"{file}: format: version {str(version)[:40]}; this library reads up to {FORMAT}: update it")
    wanted = {"format", "library", "made_by", *(field.name for field in dataclasses.fields(Kind))}
    wanted |= {"scaling"} if version > 1 else set()
    wanted |= {"classes"} if version > 2 else set()
    if set(header) != wanted:
        raise PayloadError(f"{file}: header: expected {', '.join(sorted(wanted))}")
    shape, outputs = header["input_shape"], header["outputs"]
    if not isinstance(shape, list) or type(header["bias"]) is not bool:
        raise PayloadError(f"{file}: input_shape, bias: expected a list of sizes, and true or false")
    try:
        require_sizes(shape, outputs)
    except ValueError as error:
        raise PayloadError(f"{file}: {error}") from error
    if not isinstance(header["likelihood"], str) or not isinstance(header["made_by"], str):
        raise PayloadError(f"{file}: likelihood, made_by: expected texts")
    return Kind(header["model"], tuple(shape), outputs, header["bias"], header["likelihood"])


def _classes(said: Any, kind: Kind, file: str) -> list[Any]:
    """Names of classes that a header holds, or a writer is about to write: one for each output, all of one type."""
    kinds = {type(name) for name in said} if isinstance(said, list) else set()
    if kinds not in ({int}, {str}) or not len(said) == len(set(said)) == kind.outputs:
        raise PayloadError(f"{file}: classes: expected {kind.outputs} different texts, or whole numbers")
    if kinds == {str} and not all(len(name) <= MOST_NAME and name.isprintable() for name in said):
        raise PayloadError(f"{file}: classes: expected printable texts of at most {MOST_NAME} characters")
    return said


def _scaling(said: Any, input_shape: tuple[int, ...], file: str) -> Scaling:
    """The scaling that a header holds, or a writer is about to write."""
    columns = input_shape[-1]
    both = isinstance(said, dict) and len(said) == 2
    parts: list[Any] = [said.get(name) for name in ("mean", "std")] if both else []
    for part in parts:
        numbers = isinstance(part, list) and all(type(n) in (int, float) and abs(n) < 1e100 for n in part)
        if not numbers or len(part) not in (1, columns) or len(part) != len(parts[0]) or len(part) > MOST_COLUMNS:
            parts = []
            break
    if not parts or not all(std > 0 for std in parts[1]):
        raise PayloadError(f"{file}: scaling: expected mean and std > 0 of all {columns} columns or of each")
    return Scaling(*(np.asarray(part, np.float64) for part in parts))
