"""A safetensors file with one JSON header in its metadata, sealed by a SHA-256 over everything it says.

The seal finds damage, not malice: who writes a file can seal it. What a file claims is checked by `file`.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from .._files import write_atomically
from ._tree import little_endian

KEY = "fedfisher"  # of the metadata
MAX_AXES, MAX_SIZE = 32, 2**40  # of a tensor's shape
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "U8": np.uint8,
}


class PayloadError(ValueError):
    """A file is refused: file, entry and reason in one line, which a terminal can show whatever the file says."""

    def __init__(self, message: str) -> None:
        """Escape what is not printable."""
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


class Limits(NamedTuple):
    """What a reader takes at most of a file.

    Memory stays below 3 times the file's bytes (at most `file_bytes`) + 2 `decoded_bytes` + `working_bytes` + 32
    `header_bytes` (Python's objects). Time grows with the cubes of the matrices' sides n: Σ n³ stays below `cubes`
    times 1 + bytes / 2^16, for an uncompressed matrix has 4 n² bytes, but two kilobytes may announce any number.
    On one core (5e10 n³ a second, measured) that is 1.3 s a megabyte at worst. Less would refuse honest files: n / 10
    singular values and vectors of 8 bits are n² / 5 bytes, and count `_decode.EIGEN` n³.
    """

    file_bytes: int = 2**31
    header_bytes: int = 2**23
    entries: int = 50_000
    decoded_bytes: int = 2**32  # arrays of one file after decompression
    working_bytes: int = 2**32  # to decompress and check one entry, see `_decode.WORKING`
    cubes: int = 2**32  # Σ n³ of matrices to check, see above; an eigendecomposition counts `_decode.EIGEN` times
    depth: int = 32  # of what is nested in a header
    files: int = 10_000  # of one merge


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Write the file's bytes; equal for equal content.

    Args:
        header: a JSON object.
        arrays: by name, of types that `Limits`' readers know.
    """
    ordered = {name: little_endian(np.asarray(arrays[name])) for name in sorted(arrays)}
    sealed = dict(header) | {"sha256": _seal(header, ordered)}
    specs = {
        name: safetensors.TensorSpec(
            dtype=array.dtype.name, shape=list(array.shape), data_ptr=array.ctypes.data, data_len=array.nbytes
        )
        for name, array in ordered.items()
    }
    return bytes(safetensors.serialize(specs, metadata={KEY: _canonical(sealed)}))


def unpack(data: bytes, limits: Limits, file: str, sealed: bool = True) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read header and arrays (read-only) of a file's bytes; without `sealed`, the seal was looked at before.

    Raises:
        PayloadError: too large, not a safetensors file, without our header, or damaged.
    """
    text, arrays = tensors(data, limits, file)
    if text is None:
        raise PayloadError(f"{file}: no header {KEY!r} in its metadata: not a file of this library")
    header = _json(text, f"{file}: header", limits)
    seal = header.pop("sha256", None)
    try:
        right = not sealed or seal == _seal(header, arrays)
    except (ValueError, RecursionError) as error:  # 1e999 is read as infinity
        raise PayloadError(f"{file}: header: {error}") from error
    if not right:
        raise PayloadError(f"{file}: sha256: its content is not what was written: damaged or changed")
    return header, arrays


def tensors(
    data: bytes, limits: Limits, file: str, without: str | None = None
) -> tuple[str | None, dict[str, np.ndarray]]:
    """Read our header's text, if there is one, and the arrays (read-only) of anybody's safetensors file.

    Entries whose names end in `without` are left out, whatever their type.

    Raises:
        PayloadError: too large, not a safetensors file, or of types that we do not know.
    """
    if len(data) > limits.file_bytes:
        raise PayloadError(f"{file}: more than {limits.file_bytes} bytes, which is the cap")
    outline = _outline(data, limits, file)
    try:
        found = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise PayloadError(f"{file}: not a safetensors file: {error}") from error
    arrays = {}
    for name, entry in found:
        if without is not None and name.endswith(without):
            continue
        if entry["dtype"] not in _DTYPES:
            raise PayloadError(f"{file}: {_short(name)}: type {entry['dtype']}, expected one of {', '.join(_DTYPES)}")
        arrays[name] = np.frombuffer(entry["data"], np.dtype(_DTYPES[entry["dtype"]])).reshape(entry["shape"])
    text = outline.get("__metadata__", {}).get(KEY)
    return text if isinstance(text, str) else None, arrays


def read_bytes(path: str | os.PathLike[str], limits: Limits) -> bytes:
    """Read a file's bytes, never more than the cap.

    Raises:
        PayloadError: no such file, not a regular one, or too large.
    """
    file = Path(path)
    try:
        if not file.is_file():
            raise PayloadError(f"{file}: no such file")
        with file.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            data = handle.read(size + 1) if size <= limits.file_bytes else None  # asks for as much memory as there is
    except OSError as error:
        raise PayloadError(f"{file}: cannot be read: {error.strerror or error}") from error
    if data is None:
        raise PayloadError(f"{file}: more than {limits.file_bytes} bytes, which is the cap")
    if len(data) > size:
        raise PayloadError(f"{file}: grew while it was being read")
    return data


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        ValueError: the folder is not there or cannot be written to.
    """
    try:
        write_atomically(path, data)
    except OSError as error:
        raise ValueError(f"out: cannot write {path}: {error.strerror or error}") from error


def _outline(data: bytes, limits: Limits, file: str) -> dict[str, Any]:
    """The safetensors header, before anything is allocated for its tensors."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise PayloadError(f"{file}: not a safetensors file, or cut off")
    if size > limits.header_bytes:
        raise PayloadError(f"{file}: its header has {size} bytes, the cap is {limits.header_bytes}")
    try:
        text = data[8 : 8 + size].decode()
    except UnicodeDecodeError as error:
        raise PayloadError(f"{file}: its header is not text: {error}") from error
    outline = _json(text, file, limits)
    if len(outline) > limits.entries:
        raise PayloadError(f"{file}: {len(outline)} entries, the cap is {limits.entries}")
    if not isinstance(outline.get("__metadata__", {}), dict):
        raise PayloadError(f"{file}: __metadata__: expected an object")
    for name, entry in outline.items():
        if name != "__metadata__" and not _is_entry(entry):
            shape = f"of at most {MAX_AXES} sizes below 2^40, together below 2^62"
            raise PayloadError(f"{file}: {_short(name)}: expected type, place and a shape {shape}")
    return outline


def _is_entry(entry: Any) -> bool:
    """Whether a tensor's shape is one that arrays can have, also where a size of 0 hides the others."""
    if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list) or len(entry["shape"]) > MAX_AXES:
        return False
    sizes = entry["shape"]
    return all(type(n) is int and 0 <= n < MAX_SIZE for n in sizes) and math.prod(max(n, 1) for n in sizes) < 2**62


def _json(text: str, where: str, limits: Limits) -> dict[str, Any]:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a name is there twice")
        return result

    try:
        value = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"{where}: not JSON: {_short(str(error), 120)}") from error
    if not isinstance(value, dict):
        raise PayloadError(f"{where}: expected a JSON object")
    if _is_deeper(value, limits.depth):
        raise PayloadError(f"{where}: nested more than {limits.depth} deep, which is the cap")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects lie more than `depth` deep in each other; level by level, not by recursion."""
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _seal(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(_canonical(header).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\0{name}\0{array.dtype.name}\0{array.shape}\0".encode("utf-8", "surrogatepass"))
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
