"""Payload files: what a silo writes and a server reads; docs/silos.md describes the format.

Reading trusts nothing: the header is checked against itself and the starting model, every entry's size against the
header, every number for being finite, every Fisher for being one, before anything is used. A refusal is one line with
file, entry and reason.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..curvature import Layer
from ..merge._rule import Kind, Payload
from . import _codecs as codecs
from . import _container as container
from . import _structures as structures
from ._codecs import Raw
from ._container import Limits, PayloadError
from ._decode import decode_entries, outline_of, require_sound
from ._header import About, Header, Plan, from_json, require_start, to_json
from ._tree import nested

PyTree = Any


def entries(payload: Payload) -> dict[str, np.ndarray]:
    """Name every array of a payload as files do."""
    described = structures.model_leaves(payload)
    held = () if payload.params is None else zip(described, jax.tree.leaves(payload.params), strict=True)
    params = {f"params/{leaf.path}": x for leaf, x in held}
    fisher = structures.arrays_of(payload.statistics, described)
    return {name: np.asarray(value) for name, value in (params | fisher).items()}


def dumps(payload: Payload, about: About, plan: Plan | None = None, random: np.random.Generator | None = None) -> bytes:
    """Write a payload as the bytes of a file; equal for equal input.

    Args:
        payload: one client's; its weight is its number of examples.
        about: what the file says of itself.
        plan: how entries are encoded, see `plan`.
        random: where the draws of stochastic rounding come from.

    Raises:
        ValueError: a structure that has no form in files, a weight that is no number of examples, numbers that are not
            finite, or a Fisher that is not positive semi-definite: what readers would refuse is not written.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> params = {"w": np.ones((8, 4), np.float32)}
        >>> about = ff.payload.About("fedavg", "categorical", ff.payload.fingerprint(params))
        >>> sent = ff.Payload(5.0, params)
        >>> payload, header = ff.payload.loads(ff.payload.dumps(sent, about), params)
        >>> float(payload.weight), header.about.rule, bool(np.array_equal(payload.params["w"], params["w"]))
        (5.0, 'fedavg', True)
    """
    plan = plan or {}
    arrays = _entries(payload, plan)
    kinds = functools.partial(structures.sign, structures.name_of(payload.statistics))
    stored: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        try:
            require_sound(kinds(name), array)
            codec = plan.get(name, Raw())
            stored[name] = codecs.join(codec, codecs.encode(codec, array, random))
        except ValueError as error:
            raise ValueError(f"payload: {name}: {error}") from error
    return container.pack(to_json(payload, arrays, about, plan), stored)


def size_bits(payload: Payload, about: About, plan: Plan | None = None) -> int:
    """Count the bits of the file that `dumps` would make, without encoding anything."""
    plan = plan or {}
    arrays = _entries(payload, plan)
    layouts = {name: codecs.joined_layout(plan.get(name, Raw()), x.shape, x.dtype) for name, x in arrays.items()}
    empty = {name: np.zeros(shape, dtype) for name, (shape, dtype) in layouts.items()}
    return 8 * len(container.pack(to_json(payload, arrays, about, plan), empty))


def _entries(payload: Payload, plan: Plan) -> dict[str, np.ndarray]:
    examples = float(payload.weight)
    if not (1 <= examples < 2**53 and examples == int(examples)):
        raise ValueError(f"payload.weight: expected a number of examples, got {payload.weight}")
    arrays = entries(payload)
    unknown = set(plan) - set(arrays)
    if unknown:
        raise ValueError(f"plan: got {sorted(unknown)[0]}, expected entries of the payload: {', '.join(arrays)}")
    return arrays


def loads(
    data: bytes,
    like: PyTree | None = None,
    *,
    layers: Sequence[Layer] | None = None,
    limits: Limits = Limits(),
    file: str = "payload",
    parity: bool = False,
    start: str | None = None,
) -> tuple[Payload, Header]:
    """Read a payload from the bytes of a file, all of it checked.

    Args:
        data: the bytes.
        like: the starting model (arrays) or None. With it the file's tree, shapes, types and fingerprint must be its
            own, and the payload has its tree structure; without it trees are nested dictionaries, gradients lists.
        layers: the model's layers, from `capture`; with them a file's layers must be among them.
        limits: caps on what is read.
        file: what messages call it.
        parity: leave the authors' U S Vᵀ as it is; else it is made symmetric and positive semi-definite.
        start: fingerprint that the file must name, where it is not that of `like` alone (see `silos.Model`).

    Raises:
        PayloadError: it is refused; file, entry and reason.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> params = {"w": np.ones((8, 4), np.float32)}
        >>> about = ff.payload.About("fedavg", "categorical", ff.payload.fingerprint(params))
        >>> sent = ff.Payload(5.0, params)
        >>> data = ff.payload.dumps(sent, about)
        >>> try:
        ...     ff.payload.loads(data[:-1])
        ... except ff.payload.PayloadError:
        ...     print("refused")
        refused
    """
    raw, arrays = container.unpack(data, limits, file)
    header = checked(raw, len(data), like, layers=layers, limits=limits, file=file, start=start)
    return filled(header, arrays, like, limits, file, parity), header


def header_of(
    data: bytes,
    like: PyTree | None = None,
    *,
    layers: Sequence[Layer] | None = None,
    limits: Limits = Limits(),
    file: str = "payload",
    start: str | None = None,
) -> Header:
    """Read the header of a file's bytes without decoding an array; arguments and errors are those of `loads`."""
    raw, _ = container.unpack(data, limits, file)
    return checked(raw, len(data), like, layers=layers, limits=limits, file=file, start=start)


def write(
    path: str | os.PathLike[str],
    payload: Payload,
    about: About,
    plan: Plan | None = None,
    random: np.random.Generator | None = None,
) -> int:
    """Write a payload file, whole or not at all, and return its number of bits; arguments and errors as in `dumps`."""
    data = dumps(payload, about, plan, random)
    container.write_bytes(path, data)
    return 8 * len(data)


def read(
    path: str | os.PathLike[str], like: PyTree | None = None, *, limits: Limits = Limits(), **options: Any
) -> tuple[Payload, Header]:
    """Read a payload file; options and errors are those of `loads`."""
    return loads(container.read_bytes(path, limits), like, limits=limits, file=str(path), **options)


def checked(
    raw: dict[str, Any],
    size: int,
    like: PyTree | None = None,
    *,
    layers: Sequence[Layer] | None = None,
    limits: Limits = Limits(),
    file: str = "payload",
    start: str | None = None,
) -> Header:
    """Read the header of a payload of `size` bytes from its JSON, checked as by `loads`.

    Raises:
        PayloadError: it is refused.
    """
    try:
        header = from_json(raw, size, limits)
        if like is not None:
            require_start(header, like, start)
        if layers is not None:
            structures.require_layers(outline_of(header), layers)
    except (ValueError, OverflowError) as error:
        raise PayloadError(f"{file}: header: {error}") from error
    return header


def filled(
    header: Header,
    arrays: Mapping[str, np.ndarray],
    like: PyTree | None,
    limits: Limits,
    file: str,
    parity: bool,
    sound: bool = False,
) -> Payload:
    """Make the payload of a checked header and arrays as they are stored, checked unless known as sound.

    Raises:
        PayloadError: it is refused.
    """
    decoded = decode_entries(header, arrays, limits, file, parity, sound)
    params, treedef = None, None if like is None else jax.tree.structure(like)
    if structures.has_params(header.structure):
        values = [decoded[f"params/{leaf.path}"] for leaf in header.leaves]
        try:
            params = nested(header.leaves, values) if like is None else jax.tree.structure(like).unflatten(values)
        except ValueError as error:
            raise PayloadError(f"{file}: {error}") from error
        treedef = jax.tree.structure(params)
    fisher = structures.filled(outline_of(header, treedef), header.leaves, decoded)
    kind = None if fisher is None or header.about.kind is None else Kind(header.about.kind)
    return Payload(jnp.asarray(header.examples, jnp.result_type(float)), params, fisher, kind)
