"""Discrete Gaussian numbers, exactly, by integers alone (Canonne, Kamath and Steinke, arXiv 2004.00010).

Noise that is drawn as floating-point numbers has gaps, by which what it hides can be told (Mironov 2012). The integers
here have P(x) ∝ exp(−x² / 2σ²) to the last bit, if the bits that they are drawn from are uniform.
"""

import math
from collections.abc import Callable
from typing import no_type_check

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

CHUNK = 2**16  # bytes of key stream at a time
Below = Callable[[int], int]  # n → uniform integer from 0 to n − 1


def below_from(key: bytes) -> Below:
    """Make a source of uniform integers from a key of 32 bytes that is used once: the same key, the same integers."""
    encryptor = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    held, place = b"", 0

    @no_type_check  # checks of types at every call take fifty times as long as the call
    def below(limit: int) -> int:
        nonlocal held, place
        bits = (limit - 1).bit_length()
        size = (bits + 7) // 8
        while True:
            if place + size > len(held):
                held, place = held[place:] + encryptor.update(bytes(max(CHUNK, size))), 0
            drawn = int.from_bytes(held[place : place + size], "little") >> (8 * size - bits)
            place += size
            if drawn < limit:
                return drawn

    return below


def discrete_gaussian(variance: int, below: Below) -> int:
    """Draw an integer x with probability proportional to exp(−x² / 2σ²) (algorithm 3).

    Args:
        variance: σ², a positive integer.
        below: where uniform integers come from.

    Raises:
        ValueError: no positive integer.
    """
    if type(variance) is not int or variance < 1:
        raise ValueError(f"variance: got {variance!r}, expected a positive integer")
    scale = math.isqrt(variance) + 1
    while True:
        drawn = _laplace(scale, below)
        if _with_exp((abs(drawn) * scale - variance) ** 2, 2 * variance * scale**2, below):
            return drawn


@no_type_check
def _laplace(scale: int, below: Below) -> int:
    """Draw an integer x with probability proportional to exp(−|x| / scale) (algorithm 2)."""
    while True:
        rest = below(scale)
        if not _with_exp(rest, scale, below):
            continue
        whole = 0
        while _with_exp(1, 1, below):
            whole += 1
        size, negative = rest + scale * whole, below(2)
        if size or not negative:  # zero once
            return -size if negative else size


@no_type_check
def _with_exp(numerator: int, denominator: int, below: Below) -> bool:
    """Say yes with probability exp(−numerator / denominator) (algorithm 1)."""
    while numerator > denominator:
        if not _with_exp(1, 1, below):
            return False
        numerator -= denominator
    count = 1
    while below(denominator * count) < numerator:
        count += 1
    return count % 2 == 1
