"""The payload files of one merge: they belong together, in the order of their silos' numbers."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from ..curvature import Layer
from ..merge._rule import Payload
from . import _container as container
from ._container import Limits, PayloadError
from ._file import header_of, read
from ._header import Header, require_same

PyTree = Any


def read_each(
    paths: Sequence[str | os.PathLike[str]],
    like: PyTree | None = None,
    *,
    layers: Sequence[Layer] | None = None,
    limits: Limits = Limits(),
    parity: bool = False,
    start: str | None = None,
) -> Iterator[tuple[Payload, Header]]:
    """Read the files of one merge one at a time, in the order of the silos' numbers, whatever the order of `paths`.

    All headers are compared before this returns, and before the first array is decoded: each file is opened twice. What
    is kept of each is what its header says of the silo.

    Raises:
        PayloadError: none or too many files, one is refused, two are of one silo, or they do not belong together. While
            they are read: an array is refused, or a file has changed.
    """
    if not paths:
        raise PayloadError("files: expected at least one payload, got none")
    if len(paths) > limits.files:
        raise PayloadError(f"files: {len(paths)} payloads, the cap is {limits.files}")
    headers: list[Header] = []
    seen: dict[int, str] = {}
    for path in paths:
        data = container.read_bytes(path, limits)
        header = header_of(data, like, layers=layers, limits=limits, file=str(path), start=start)
        number = header.about.silo
        if number in seen:
            raise PayloadError(f"{path}: silo: number {number} is in {seen[number]}, too, and a silo counts once")
        seen[number] = str(path)
        if headers:
            require_same(header, headers[0], str(path), str(paths[0]))
            header = header._replace(leaves=headers[0].leaves, static=headers[0].static)  # equal ones are kept once
        headers.append(header)
    ordered = sorted(zip(paths, headers, strict=True), key=lambda pair: pair[1].about.silo)

    def each() -> Iterator[tuple[Payload, Header]]:
        for path, header in ordered:
            sent, again = read(path, like, layers=layers, limits=limits, parity=parity, start=start)
            if again != header:
                raise PayloadError(f"{path}: changed while it was being read")
            yield sent, header

    return each()


def read_all(
    paths: Sequence[str | os.PathLike[str]], like: PyTree | None = None, **options: Any
) -> list[tuple[Payload, Header]]:
    """Read the files of one merge as `read_each` does, with its options, all into memory."""
    return list(read_each(paths, like, **options))
