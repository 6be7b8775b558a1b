"""Arrays from .npz archives of anybody: their sizes are known before anything is unpacked, and nothing is unpickled."""

import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MOST_BYTES = 2**32  # of the arrays of one archive, unpacked
_MAX_AXES = 32
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(
    path: Path, choose: Callable[[list[str]], Sequence[str]], most_bytes: int = MOST_BYTES
) -> dict[str, np.ndarray]:
    """Some of the arrays of an archive.

    Args:
        path: the file.
        choose: names that are in the archive → names to read; may raise ValueError.
        most_bytes: cap on what these arrays take, unpacked.

    Raises:
        ValueError: no archive, damaged, beyond the cap, or an array of Python objects; the array is named.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise ValueError("it is no .npz archive")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        chosen = {name: members[name] for name in choose(list(members))}
        total = sum(info.file_size for info in chosen.values())
        if total > most_bytes:
            raise ValueError(f"{', '.join(chosen)}: {total} bytes when unpacked, the cap is {most_bytes}")
        return {name: _read(archive, name, info) for name, info in chosen.items()}


def _read(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> np.ndarray:
    try:
        with archive.open(info) as file:
            _require_honest(file, info.file_size)
        with archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # zipfile, its decompressors and numpy fail in many ways at what is damaged
        raise ValueError(f"{name}: cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


def _require_honest(file: Any, size: int) -> None:
    """Refuse a header that announces more than the `size` bytes that are there, for numpy would allocate it."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of .npy, expected 1.0 or 2.0")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("Python objects, expected numbers: nothing is unpickled")
    if len(shape) > _MAX_AXES or any(n < 0 for n in shape):
        raise ValueError(f"shape {str(shape)[:80]}, expected at most {_MAX_AXES} sizes of at least 0")
    items = math.prod(shape)
    if items * dtype.itemsize > size or (not items and math.prod(n for n in shape if n) >= 2**31):
        raise ValueError(f"it announces the shape {str(shape)[:80]}, and has {size} bytes")
