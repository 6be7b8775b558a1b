"""Real numbers as integers modulo 2^64, so that sums of them are exact and masks can be uniform."""

import numpy as np

FRACTION_BITS = 32  # resolution 2.3e-10, range ±2.1e9 for the sum


def encode(values: np.ndarray, clients: int, fraction_bits: int = FRACTION_BITS) -> np.ndarray:
    """round(v · 2^fraction_bits) modulo 2^64: uint64 of the same shape.

    Args:
        values: finite real numbers.
        clients: at most so many of them are summed; their sum must not wrap around.
        fraction_bits: of the resolution 2^-fraction_bits; at most 62.

    Raises:
        ValueError: a number that is not finite, or too large for the sum.
    """
    if not 0 <= fraction_bits <= 62 or clients < 1:
        raise ValueError(f"fraction_bits, clients: got {fraction_bits}, {clients}, expected 0 to 62, and at least 1")
    scaled = np.round(np.asarray(values, np.float64) * 2.0**fraction_bits)
    limit = 2.0**63 / clients
    if not (np.abs(scaled) < limit).all():  # NaN, too
        largest = np.abs(values).max()
        raise ValueError(
            f"values: got {largest:g}, expected less than {limit / 2.0**fraction_bits:g} for {clients} clients and "
            f"{fraction_bits} fraction bits"
        )
    return scaled.astype(np.int64).view(np.uint64)


def decode(total: np.ndarray, fraction_bits: int = FRACTION_BITS) -> np.ndarray:
    """The float64 numbers that a sum of encoded ones stands for."""
    return total.view(np.int64).astype(np.float64) / 2.0**fraction_bits
