"""Sums of a silo's inputs in a file: count, sum and sum of squares, by column, in float64."""

import os
from collections.abc import Sequence

import numpy as np

from .. import __version__
from ..data import Scaling, Sums, scaling_of
from ..payload import Limits, PayloadError
from ..payload import _container as container

FORMAT = 1
KIND = "sums of inputs"


def write(path: str | os.PathLike[str], sums: Sums) -> None:
    """Write the sums whole or not at all.

    Raises:
        ValueError: a folder that cannot be written to.
    """
    header = {"format": FORMAT, "library": __version__, "holds": KIND}
    container.write_bytes(path, container.pack(header, sums._asdict()))


def read(path: str | os.PathLike[str], limits: Limits = Limits()) -> Sums:
    """Read sums from a file that `write` made, checked to be those of some numbers.

    Raises:
        PayloadError: the file is refused, with the reason.
    """
    header, arrays = container.unpack(container.read_bytes(path, limits), limits, str(path))
    if header.get("holds") != KIND or header.get("format") != FORMAT or set(arrays) != set(Sums._fields):
        raise PayloadError(f"{path}: expected sums of inputs, from fedfisher describe")
    if any(array.dtype != np.float64 for array in arrays.values()):
        raise PayloadError(f"{path}: expected float64 sums")
    sums = Sums(**arrays)
    try:
        scaling_of(sums)
    except ValueError as error:
        raise PayloadError(f"{path}: {error}") from error
    return sums


def agreed(paths: Sequence[str | os.PathLike[str]]) -> Scaling:
    """Compute the scaling by the sums of all silos, as if their inputs lay in one place.

    Raises:
        PayloadError: a file is refused, or has other columns than the first.
    """
    found = [read(path) for path in paths]
    for path, sums in zip(paths, found, strict=True):
        if sums.total.shape != found[0].total.shape:
            raise PayloadError(f"{path}: {sums.total.size} columns, {paths[0]} has {found[0].total.size}")
    return scaling_of(Sums(*(np.sum(part, axis=0) for part in zip(*found, strict=True))))
