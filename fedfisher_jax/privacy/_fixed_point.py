"""Real numbers as integers modulo 2^64, so that sums of them are exact and masks can be uniform."""

import numpy as np

FRACTION_BITS = 32  # resolution 2.3e-10, range ±2.1e9 for the sum
ZERO = -1074  # exponent of zeros: below every number's


def exponent(values: np.ndarray) -> int:
    """Find the least e with all |v| < 2^e, for which a client's numbers have room; `ZERO` where all are zero.

    Raises:
        ValueError: a number that is not finite, or not real.
    """
    _require_real(values)
    largest = float(np.abs(np.asarray(values, np.float64)).max(initial=0))
    if not np.isfinite(largest):
        raise ValueError(f"values: expected finite numbers, got {largest}")
    return int(np.frexp(largest)[1]) if largest else ZERO


def finest(largest: int, clients: int) -> int:
    """Find the most fraction bits with which so many clients' numbers of this exponent at most can be summed.

    Relative to 2^largest a sum of n numbers is then off by at most n / 2^(64 − ⌈log₂ n⌉).
    """
    return 63 - (clients - 1).bit_length() - largest


def encode(values: np.ndarray, clients: int, fraction_bits: int | np.ndarray = FRACTION_BITS) -> np.ndarray:
    """Compute round(v · 2^fraction_bits) modulo 2^64: uint64 of the same shape.

    Args:
        values: finite real numbers.
        clients: at most so many of them are summed; their sum must not wrap around.
        fraction_bits: the resolution is 2^-fraction_bits; one for all numbers or one for each, the same at all clients.

    Raises:
        ValueError: a number that is not finite or not real, too large for the sum, or an integer beyond 2^53, of which
            float64 would lose the last digits.
    """
    _require_real(values)
    if clients < 1:
        raise ValueError(f"clients: got {clients}, expected at least 1")
    with np.errstate(over="ignore"):  # infinite, and refused
        scaled = np.round(np.ldexp(np.asarray(values, np.float64), fraction_bits))
    limit = 2.0**63 / clients
    wrong = ~(np.abs(scaled) < limit)  # NaN, too
    if wrong.any():
        bits = np.broadcast_to(fraction_bits, wrong.shape)[wrong][0]
        raise ValueError(
            f"values: got {np.asarray(values)[wrong][0]:g}, expected less than {np.ldexp(limit, -bits):g} for "
            f"{clients} clients and {bits} fraction bits"
        )
    return scaled.astype(np.int64).view(np.uint64)


def decode(total: np.ndarray, fraction_bits: int | np.ndarray = FRACTION_BITS) -> np.ndarray:
    """Compute the float64 numbers that a sum of encoded ones stands for.

    Raises:
        ValueError: not uint64.
    """
    if np.asarray(total).dtype != np.uint64:
        raise ValueError(f"total: got {np.asarray(total).dtype}, expected uint64")
    with np.errstate(over="ignore"):  # a sum beyond float64 is infinite
        return np.ldexp(total.view(np.int64).astype(np.float64), -np.asarray(fraction_bits))


def _require_real(values: np.ndarray) -> None:
    dtype = np.asarray(values).dtype
    if not np.can_cast(dtype, np.float64, "same_kind"):
        raise ValueError(f"values: got {dtype}, expected real numbers")
    if dtype.kind in "iu" and np.asarray(values).size:
        low, high = int(np.min(values)), int(np.max(values))
        if max(-low, high) > 2**53:
            raise ValueError(f"values: got integers from {low} to {high}, expected at most 2^53")
