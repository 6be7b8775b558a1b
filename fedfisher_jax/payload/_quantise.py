"""Uniform quantisation with one scale per array, as integers without gaps (arXiv 2403.12329, section 4)."""

import math
from collections.abc import Mapping

import numpy as np

from ._packing import pack, unpack


def quantise(
    array: np.ndarray, bits: int, signed: bool, random: np.random.Generator | None = None
) -> dict[str, np.ndarray]:
    """Compute round(v/m · (2^bits − 1)) with m = max |v|: "codes", and m as "scale".

    Args:
        array: numbers of a floating-point type.
        bits: bits of the magnitude.
        signed: whether a code has a sign bit, too; else entries must not be negative.
        random: where given, round up with the probability that makes every number right on average.

    Raises:
        ValueError: a negative entry without a sign bit.
    """
    if not signed and array.size and array.min() < 0:
        raise ValueError(f"array: expected no negative entry without a sign bit, got {array.min():g}")
    levels = (1 << bits) - 1
    largest = np.abs(array).max(initial=0).astype(array.dtype)
    scaled = array.astype(np.float64) / (float(largest) or 1.0) * levels
    steps = np.round(scaled) if random is None else np.floor(scaled + random.random(scaled.shape))
    codes = np.asarray(np.clip(steps, -levels, levels).astype(np.int64) + (levels if signed else 0))
    return {"codes": pack(codes, bits + signed), "scale": np.asarray(largest)}


def restore(parts: Mapping[str, np.ndarray], bits: int, signed: bool, shape: tuple[int, ...]) -> np.ndarray:
    """Restore the float64 array from `quantise`'s codes and scale.

    Raises:
        ValueError: a scale or a code that `quantise` never writes.
    """
    scale, levels = float(parts["scale"]), (1 << bits) - 1
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"scale: expected a finite number of at least 0, got {scale}")
    try:
        codes = unpack(parts["codes"], math.prod(shape), bits + signed)
    except ValueError as error:
        raise ValueError(f"codes: {error}") from error
    largest = 2 * levels if signed else levels
    if codes.size and int(codes.max()) > largest:
        raise ValueError(f"codes: got {codes.max()}, expected at most {largest}")
    values = codes.astype(np.float64)
    values -= levels if signed else 0
    values *= scale / levels
    return values.reshape(shape)
