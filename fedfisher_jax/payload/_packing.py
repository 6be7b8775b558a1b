"""Small unsigned integers as bytes without gaps: n codes of b bits take ⌈n b / 8⌉ bytes."""

import numpy as np
from jaxtyping import UInt8, UInt32

MAX_BITS = 32
_CHUNK = 1 << 16  # codes at a time, a multiple of 8 so that chunks end at whole bytes; bounds memory


def packed_bytes(count: int, bits: int) -> int:
    """Count the bytes that `count` codes of `bits` bits take."""
    return -(-count * bits // 8)


def pack(codes: np.ndarray, bits: int) -> UInt8[np.ndarray, " m"]:
    """Pack codes [n], each below 2^bits, into bytes, most significant bit first; the last byte ends with zeros.

    Raises:
        ValueError: `bits` is not in 1 … 32, or a code does not fit.
    """
    _check_bits(bits)
    codes = np.asarray(codes).ravel()
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= 1 << bits):
        raise ValueError(f"codes: got {codes.min()} to {codes.max()}, expected 0 to {(1 << bits) - 1} for {bits} bits")
    parts = []
    for start in range(0, codes.size, _CHUNK):
        words = codes[start : start + _CHUNK].astype(">u4").view(np.uint8).reshape(-1, 4)
        parts.append(np.packbits(np.unpackbits(words, axis=1)[:, 32 - bits :]))
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def unpack(packed: UInt8[np.ndarray, " m"], count: int, bits: int) -> UInt32[np.ndarray, " n"]:
    """Undo `pack`: uint32 [count].

    Raises:
        ValueError: not that many bytes, or the filling of the last byte is not zero (so every code list has one form).
    """
    _check_bits(bits)
    if packed.shape != (packed_bytes(count, bits),):
        raise ValueError(f"expected {packed_bytes(count, bits)} bytes for {count} codes of {bits} bits")
    filling = packed.size * 8 - count * bits
    if filling and int(packed[-1]) & ((1 << filling) - 1):
        raise ValueError("the filling of the last byte is not zero")
    codes = np.empty(count, np.uint32)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        piece = packed[start * bits // 8 : start * bits // 8 + packed_bytes(size, bits)]
        words = np.zeros((size, 32), np.uint8)
        words[:, 32 - bits :] = np.unpackbits(piece, count=size * bits).reshape(size, bits)
        codes[start : start + size] = np.packbits(words, axis=1).view(">u4").ravel()
    return codes


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits: got {bits}, expected 1 to {MAX_BITS}")
