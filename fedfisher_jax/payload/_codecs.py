"""Encoders of arrays, which compose: each one turns an array into parts, and parts may be encoded further.

`layout` says, from shape and type alone, which parts there are and how large: bits are counted with it before anything
is encoded, and a file's entries are checked against it before anything is decoded. Everything is numpy on the host.

Positive semi-definite matrices stay so after quantisation by construction: L Lᵀ, U Λ Uᵀ with Λ ≥ 0, squares. The
authors' U S Vᵀ (arXiv 2403.12329, released code) does not, and is here for parity.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._packing import packed_bytes
from ._quantise import quantise, restore
from ._tree import little_endian

Parts = dict[str, np.ndarray]
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]
BYTES = np.dtype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Raw:
    """The array as it is."""


@dataclasses.dataclass(frozen=True)
class Uniform:
    """round(v/m · (2^s − 1)) with m = max |v|: `bits` = s and, if `signed`, one more for the sign; m is kept as it is.

    The error is at most m / (2 (2^s − 1)), twice that with stochastic rounding, which is unbiased.
    """

    bits: int
    signed: bool = True
    stochastic: bool = False


@dataclasses.dataclass(frozen=True)
class Root:
    """The square root of a non-negative array, encoded by `inner`: small entries keep a relative error."""

    inner: "Codec"


@dataclasses.dataclass(frozen=True)
class Cholesky:
    """L of a positive semi-definite [..., n, n] = L Lᵀ, its triangle encoded by `inner`: n (n + 1) / 2 numbers."""

    inner: "Codec"


@dataclasses.dataclass(frozen=True)
class Eigen:
    """The largest eigenvalues of a positive semi-definite [..., n, n]: U Λ Uᵀ + t I, n r + r + 1 numbers.

    t is the mean of the eigenvalues left out if `tail`, so that the trace is kept, and else zero; Λ holds what the
    others have above t.
    """

    rank: int
    vectors: "Codec"
    values: "Codec"
    tail: bool = True


@dataclasses.dataclass(frozen=True)
class Singular:
    """The authors' truncated U S Vᵀ, 2 n r + r numbers; the result is neither symmetric nor semi-definite."""

    rank: int
    inner: "Codec"


Codec = Raw | Uniform | Root | Cholesky | Eigen | Singular


def bits(codec: Codec, shape: tuple[int, ...], dtype: Any) -> int:
    """Count the bits of an array's parts as they are written: whole bytes."""
    sizes = (math.prod(s) * d.itemsize for s, d in layout(codec, shape, dtype).values())
    return 8 * sum(sizes)


def layout(codec: Codec, shape: tuple[int, ...], dtype: Any) -> Layout:
    """Name, shape and type of every part; the one part of `Raw` has the empty name.

    Raises:
        ValueError: the codec cannot hold an array of this shape.
    """
    dtype = np.dtype(dtype)
    match codec:
        case Raw():
            return {"": (tuple(shape), dtype)}
        case Uniform():
            width = codec.bits + codec.signed
            return {"codes": ((packed_bytes(math.prod(shape), width),), BYTES), "scale": ((), dtype)}
        case Root():
            return layout(codec.inner, shape, dtype)
        case Cholesky():
            batch, n = _square(shape)
            return layout(codec.inner, (*batch, n * (n + 1) // 2), dtype)
        case Eigen():
            batch, n = _square(shape)
            rank = min(codec.rank, n)
            vectors = _under("vectors", layout(codec.vectors, (*batch, n, rank), dtype))
            values = _under("values", layout(codec.values, (*batch, rank), dtype))
            return vectors | values | ({"tail": (batch, dtype)} if codec.tail else {})
        case Singular():
            batch, n = _square(shape)
            rank = min(codec.rank, n)
            shapes = {"left": (*batch, n, rank), "values": (*batch, rank), "right": (*batch, rank, n)}
            parts = [_under(name, layout(codec.inner, part, dtype)) for name, part in shapes.items()]
            return parts[0] | parts[1] | parts[2]


def encode(codec: Codec, array: np.ndarray, random: np.random.Generator | None = None) -> Parts:
    """Encode an array as the parts that `layout` promises.

    Args:
        codec: how.
        array: numbers of a floating-point type.
        random: for stochastic rounding.

    Raises:
        ValueError: negative entries where none are allowed, or stochastic rounding without `random`.
    """
    array = np.asarray(array)
    match codec:
        case Raw():
            return {"": array}
        case Uniform():
            if codec.stochastic and random is None:
                raise ValueError("random: stochastic rounding draws and needs a generator, got None")
            return quantise(array, codec.bits, codec.signed, random if codec.stochastic else None)
        case Root():
            if array.size and array.min() < 0:
                raise ValueError(f"array: expected no negative entry for a square root, got {array.min():g}")
            return encode(codec.inner, np.asarray(np.sqrt(array)), random)
        case Cholesky():
            n = array.shape[-1]
            values, vectors = _eigen(array)
            rooted = np.swapaxes(vectors * np.sqrt(values)[..., None, :], -1, -2)
            lower = np.swapaxes(np.linalg.qr(rooted, mode="r"), -1, -2)  # works where Cholesky's own algorithm stops
            flat = lower[(..., *np.tril_indices(n))]
            return encode(codec.inner, flat.astype(array.dtype), random)
        case Eigen():
            rank = min(codec.rank, array.shape[-1])
            values, vectors = _eigen(array)
            left_out = values[..., rank:]
            tail = left_out.mean(-1) if codec.tail and left_out.size else np.zeros(array.shape[:-2])
            above = np.maximum(values[..., :rank] - tail[..., None], 0).astype(array.dtype)
            parts = _under("vectors", encode(codec.vectors, vectors[..., :rank].astype(array.dtype), random))
            parts |= _under("values", encode(codec.values, above, random))
            return parts | ({"tail": np.asarray(tail, array.dtype)} if codec.tail else {})
        case Singular():
            rank = min(codec.rank, array.shape[-1])
            u, s, v = np.linalg.svd(array.astype(np.float64))
            pieces = {"left": u[..., :rank], "values": s[..., :rank], "right": v[..., :rank, :]}
            encoded = [
                _under(name, encode(codec.inner, piece.astype(array.dtype), random)) for name, piece in pieces.items()
            ]
            return encoded[0] | encoded[1] | encoded[2]


def decode(codec: Codec, parts: Mapping[str, np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Decode an array from parts that have been checked against `layout`.

    Raises:
        ValueError: a part holds what `encode` never writes; its name and the reason.
    """
    dtype = np.dtype(dtype)
    match codec:
        case Raw():
            return parts[""]
        case Uniform():
            return restore(parts, codec.bits, codec.signed, shape).astype(dtype)
        case Root():
            return np.asarray(np.square(decode(codec.inner, parts, shape, dtype)))  # numpy makes a number of a scalar
        case Cholesky():
            batch, n = _square(shape)
            lower = np.zeros(shape, np.float64)
            lower[(..., *np.tril_indices(n))] = decode(codec.inner, parts, (*batch, n * (n + 1) // 2), dtype)
            return _symmetric(lower @ np.swapaxes(lower, -1, -2), dtype)
        case Eigen():
            batch, n = _square(shape)
            rank = min(codec.rank, n)
            vectors = decode(codec.vectors, _part(parts, "vectors"), (*batch, n, rank), dtype).astype(np.float64)
            values = decode(codec.values, _part(parts, "values"), (*batch, rank), dtype)
            tail = parts["tail"] if codec.tail else np.zeros(batch)
            if (values.size and values.min() < 0) or (tail.size and tail.min() < 0):
                raise ValueError("values: expected no negative eigenvalue")
            product = (vectors * values[..., None, :]) @ np.swapaxes(vectors, -1, -2)
            axis = np.arange(n)
            product[..., axis, axis] += tail[..., None]
            return _symmetric(product, dtype)
        case Singular():
            batch, n = _square(shape)
            rank = min(codec.rank, n)
            left = decode(codec.inner, _part(parts, "left"), (*batch, n, rank), dtype)
            values = decode(codec.inner, _part(parts, "values"), (*batch, rank), dtype)
            right = decode(codec.inner, _part(parts, "right"), (*batch, rank, n), dtype)
            return (left * values[..., None, :]) @ right


def join(codec: Codec, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Write all parts as one array: the array itself for `Raw`, else bytes, part after part."""
    if isinstance(codec, Raw):
        return parts[""]
    pieces = [little_endian(parts[name]).reshape(-1).view(np.uint8) for name in sorted(parts)]
    return np.concatenate(pieces)


def split(codec: Codec, joined: np.ndarray, shape: tuple[int, ...], dtype: Any) -> Parts:
    """Undo `join`, for an array that has the shape and type of `joined_layout`."""
    if isinstance(codec, Raw):
        return {"": joined}
    parts, start = {}, 0
    for name, (size, kind) in sorted(layout(codec, shape, dtype).items()):
        end = start + math.prod(size) * kind.itemsize
        parts[name] = np.frombuffer(joined[start:end].tobytes(), kind.newbyteorder("<")).reshape(size).astype(kind)
        start = end
    return parts


def joined_layout(codec: Codec, shape: tuple[int, ...], dtype: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Tell shape and type of `join`'s result.

    Raises:
        ValueError: as `layout`.
    """
    if isinstance(codec, Raw):
        return tuple(shape), np.dtype(dtype)
    return (bits(codec, shape, dtype) // 8,), BYTES


def _eigen(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [..., n], largest first and none negative, and vectors [..., n, n] of the symmetric part."""
    symmetric = (array.astype(np.float64) + np.swapaxes(array, -1, -2)) / 2
    values, vectors = np.linalg.eigh(symmetric)
    return np.maximum(values[..., ::-1], 0), vectors[..., ::-1]


def _symmetric(matrix: np.ndarray, dtype: np.dtype) -> np.ndarray:
    symmetric = matrix + np.swapaxes(matrix, -1, -2)
    symmetric /= 2
    return symmetric.astype(dtype, copy=False)


def _square(shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError(f"expected a square matrix, got shape {tuple(shape)}")
    return tuple(shape[:-2]), shape[-1]


def _under(name: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{part}" if part else name: value for part, value in parts.items()}


def _part(parts: Mapping[str, np.ndarray], name: str) -> Parts:
    return {
        part.removeprefix(name).removeprefix("."): value
        for part, value in parts.items()
        if part == name or part.startswith(f"{name}.")
    }
