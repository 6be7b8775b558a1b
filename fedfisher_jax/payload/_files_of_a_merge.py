"""The files of one merge, silos' payloads and regions: they belong together, in the order of their silos' numbers."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..curvature import Layer
from ..merge._exact_sums import Sums
from ..merge._rule import Payload
from ..solve._products import Products
from . import _container as container
from . import _products_file as products_file
from . import _region as region
from ._container import Limits, PayloadError
from ._file import checked, filled
from ._header import Header, owes_noise, require_same
from ._region import Silo

PyTree = Any
PAYLOAD = "a silo's payload"
APART = (PAYLOAD, region.STACK)  # what holds each silo's payload


class Part(NamedTuple):
    """A file of a merge that has been looked at, and what is kept of it: what its header says of each of its silos."""

    path: str
    silos: tuple[Silo, ...]  # by their numbers
    holds: str  # PAYLOAD, `region.SUMS`, `region.STACK` or `region.PRODUCTS`
    stamp: tuple[int, ...] = ()  # the file's size, time of change and number in the file system
    lifted: str = ""  # of a sum: the rule with its options, where contributions depend on them


class Terms(NamedTuple):
    """What the files of a merge are checked against."""

    like: PyTree | None = None  # the starting model
    layers: Sequence[Layer] | None = None  # the model's; those of a file must be among them
    limits: Limits = Limits()
    parity: bool = False  # leave the authors' U S Vᵀ as it is
    start: str | None = None  # fingerprint that a file must name, where it is not that of `like` alone
    secure: bool = False  # whether the files are for a secure sum, which alone takes those that owe noise


def parts_of(paths: Sequence[str | os.PathLike[str]], terms: Terms = Terms()) -> list[Part]:
    """Look at the files of one merge, and compare all headers, before the first array is decoded.

    Args:
        paths: files of payloads and regions, in any order.
        terms: what they are checked against.

    Returns:
        The files in the order of their lowest silos' numbers.

    Raises:
        PayloadError: none or too many files, one is refused, a silo is there twice, or they do not belong together.
    """
    if not paths:
        raise PayloadError("files: expected at least one payload, got none")
    if len(paths) > terms.limits.files:
        raise PayloadError(f"files: {len(paths)} payloads, the cap is {terms.limits.files}")
    parts: list[Part] = []
    seen: dict[int, str] = {}
    for path in paths:
        part, _, _ = _opened(str(path), terms, parts[0].silos[0].header if parts else None)
        if parts:
            require_same(part.silos[0].header, parts[0].silos[0].header, part.path, parts[0].path)
        for silo in part.silos:
            number = silo.header.about.silo
            if number in seen:
                raise PayloadError(f"{path}: silo: number {number} is in {seen[number]}, too, and a silo counts once")
            seen[number] = part.path
        parts.append(part)
    return sorted(parts, key=lambda part: part.silos[0].header.about.silo)


def payloads_of(part: Part, terms: Terms = Terms(), sound: bool = False) -> Iterator[tuple[Payload, Header]]:
    """Read the payloads of a file that has been looked at.

    Args:
        part: the file.
        terms: what it is checked against.
        sound: whether its payloads were read before, so that, while the file is the same, they are not checked again.

    Raises:
        PayloadError: an array is refused, the file has changed, or it holds a sum.
    """
    if part.holds not in APART:
        raise PayloadError(f"{part.path}: holds the sum of {len(part.silos)} silos, expected their payloads")
    raw, arrays = _again(part, terms) if sound else stored(part, terms)
    return payloads_in(part, raw, arrays, terms, sound)


def payloads_in(
    part: Part, raw: dict[str, Any], arrays: dict[str, np.ndarray], terms: Terms, sound: bool = False
) -> Iterator[tuple[Payload, Header]]:
    """Decode the payloads of a file by its JSON header and its arrays as they are stored; else as `payloads_of`."""
    each = ((raw, arrays),) if part.holds == PAYLOAD else region.members(raw, arrays)
    headers = {silo.header.about.silo: silo.header for silo in part.silos}
    for said, own in sorted(each, key=lambda one: one[0]["silo"]):
        header, file = headers[said["silo"]], part.path
        file = file if len(headers) == 1 else f"{file}: silo {said['silo']}"
        yield filled(header, own, terms.like, terms.limits, file, terms.parity, sound), header


def sums_of(part: Part, shape: PyTree, terms: Terms) -> Sums:
    """Read the sum of a region that adds and has been looked at; `shape` is a contribution's.

    Raises:
        PayloadError: an array is refused, or the file has changed.
    """
    return sums_in(part, stored(part, terms)[1], shape)


def sums_in(part: Part, arrays: dict[str, np.ndarray], shape: PyTree) -> Sums:
    """Check the arrays of a region that adds; else as `sums_of`."""
    examples = sum(silo.header.examples for silo in part.silos)
    try:
        return region.sums_of(arrays, shape, part.silos[0].header, examples)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise PayloadError(f"{part.path}: {error}") from error


def products_of(part: Part, terms: Terms) -> Products:
    """Read a region that holds Kronecker products and has been looked at.

    Raises:
        PayloadError: an array is refused, or the file has changed.
    """
    return products_in(part, *stored(part, terms), terms)


def products_in(part: Part, raw: dict[str, Any], arrays: dict[str, np.ndarray], terms: Terms) -> Products:
    """Check the header and the arrays of a region that holds Kronecker products; else as `products_of`."""
    try:
        return products_file.unpacked(raw, arrays, part.silos, terms.like)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise PayloadError(f"{part.path}: {error}") from error


def stored(part: Part, terms: Terms = Terms()) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the JSON header and the arrays of a file that has been looked at, as they are stored.

    Raises:
        PayloadError: the file has changed.
    """
    again, raw, arrays = _opened(part.path, terms, part.silos[0].header)
    if again != part:
        raise PayloadError(f"{part.path}: changed while it was being read")
    return raw, arrays


def _again(part: Part, terms: Terms) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `stored` gave before, without looking at it again."""
    data = container.read_bytes(part.path, terms.limits)
    if _stamp(part.path) != part.stamp:
        raise PayloadError(f"{part.path}: changed while it was being read")
    return container.unpack(data, terms.limits, part.path, sealed=False)


def _stamp(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise PayloadError(f"{path}: cannot be read: {error.strerror or error}") from error
    return found.st_size, found.st_mtime_ns, found.st_ino


def read_each(
    paths: Sequence[str | os.PathLike[str]], like: PyTree | None = None, **options: Any
) -> Iterator[tuple[Payload, Header]]:
    """Read the payloads of one merge one at a time, in the order of the silos' numbers, whatever the order of `paths`.

    All headers are compared before this returns, and before the first array is decoded: each file is opened twice. What
    is kept of each is what its header says of the silo.

    Args:
        paths: files of payloads, and regions that hold payloads.
        like: the starting model, as in `loads`.
        options: layers, limits, parity, start, as in `loads`.

    Raises:
        PayloadError: none or too many files, one is refused, two are of one silo, or they do not belong together. While
            they are read: an array is refused, or a file has changed.
    """
    terms = Terms(like, **options)
    parts = parts_of(paths, terms)
    return (found for part in parts for found in payloads_of(part, terms))


def read_all(
    paths: Sequence[str | os.PathLike[str]], like: PyTree | None = None, **options: Any
) -> list[tuple[Payload, Header]]:
    """Read the files of one merge as `read_each` does, with its options, all into memory."""
    return list(read_each(paths, like, **options))


def _opened(path: str, terms: Terms, first: Header | None) -> tuple[Part, dict[str, Any], dict[str, np.ndarray]]:
    """Check a file's header; the header of another file of the merge, where it is equal, is kept once."""
    data = container.read_bytes(path, terms.limits)
    stamp = _stamp(path)
    part, raw, arrays = opened(data, path, terms)
    return part._replace(silos=tuple(_lean(part.silos, first)), stamp=stamp), raw, arrays


def opened(data: bytes, path: str, terms: Terms = Terms()) -> tuple[Part, dict[str, Any], dict[str, np.ndarray]]:
    """Check the header of a file's bytes, which messages call `path`; with its JSON and its arrays as they are stored.

    Raises:
        PayloadError: it is refused.
    """
    raw, arrays = container.unpack(data, terms.limits, path)
    options = {"layers": terms.layers, "limits": terms.limits, "start": terms.start}
    if not region.is_region(raw):
        silo = Silo(checked(raw, len(data), terms.like, file=path, **options), "")
        _require_its_noise([silo], path, terms)
        return Part(path, (silo,), PAYLOAD), raw, arrays
    try:
        silos = region.silos_of(raw, arrays, terms.limits)
    except (ValueError, OverflowError) as error:
        raise PayloadError(f"{path}: header: {error}") from error
    said = raw["silos"] if raw["holds"] == region.STACK else [raw["payload"]]
    for one, silo in zip(said, silos, strict=False):
        checked(one, silo.header.bits // 8, terms.like, file=path, **options)
        require_same(silo.header, silos[0].header, path, path)
    _require_its_noise(silos, path, terms)
    silos = sorted(silos, key=lambda silo: silo.header.about.silo)
    return Part(path, tuple(silos), raw["holds"], lifted=raw.get(region.LIFTED, "")), raw, arrays


def _require_its_noise(silos: Sequence[Silo], path: str, terms: Terms) -> None:
    if not terms.secure and any(owes_noise(silo.header.about.privacy) for silo in silos):
        raise PayloadError(f"{path}: privacy: its noise is divided among silos, so only fedfisher secure may take it")


def _lean(silos: Sequence[Silo], first: Header | None) -> list[Silo]:
    """The same silos, what their headers have in common with another one kept once."""
    like = silos[0].header if first is None else first
    if (like.leaves, like.static) != (silos[0].header.leaves, silos[0].header.static):
        return list(silos)
    return [silo._replace(header=silo.header._replace(leaves=like.leaves, static=like.static)) for silo in silos]
