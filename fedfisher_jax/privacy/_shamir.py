"""Shamir's secret sharing: any `threshold` shares restore a secret, fewer say nothing about it (CACM 22, 1979)."""

import secrets
from collections.abc import Mapping
from functools import lru_cache

PRIME = 2**521 - 1  # a field larger than any 64-byte secret
SHARE_BYTES = 66


def split(secret: bytes, threshold: int, holders: list[int]) -> dict[int, bytes]:
    """Make a share for each holder: a random polynomial of degree threshold − 1 at its number.

    Args:
        secret: at most 64 bytes.
        threshold: shares that restore it.
        holders: different numbers from 1 to 2^31.

    Raises:
        ValueError: holders or threshold that do not fit.
    """
    if not 1 <= threshold <= len(holders) or len(set(holders)) != len(holders) or len(secret) > 64:
        raise ValueError(f"threshold, holders: got {threshold} of {len(holders)}, expected at most all, and different")
    if not all(1 <= holder < 2**31 for holder in holders):
        raise ValueError("holders: expected numbers from 1")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]

    def value(x: int) -> int:
        result = 0
        for coefficient in reversed(coefficients):
            result = (result * x + coefficient) % PRIME
        return result

    return {holder: value(holder).to_bytes(SHARE_BYTES, "big") for holder in holders}


def join(shares: Mapping[int, bytes], threshold: int, size: int) -> bytes:
    """Find the secret of `size` bytes from at least `threshold` shares; those beyond it must fit the others.

    Raises:
        ValueError: too few shares, or they are of no secret of this size; the holder of one that is none is named.
    """
    if len(shares) < threshold:
        raise ValueError(f"shares: got {len(shares)}, expected at least {threshold}")
    points = {}
    for holder, share in sorted(shares.items()):
        whole = isinstance(share, bytes) and len(share) == SHARE_BYTES
        points[holder] = int.from_bytes(share, "big") if whole else PRIME
        if points[holder] >= PRIME:
            raise ValueError(f"shares: that of {holder} is none, expected {SHARE_BYTES} bytes below the field's size")
    first = dict(list(points.items())[:threshold])
    secret = _value(first, 0)
    if secret >= 1 << 8 * size or any(_value(first, x) != y for x, y in points.items() if x not in first):
        raise ValueError("shares: they do not belong to one secret")
    return secret.to_bytes(size, "big")


def _value(points: Mapping[int, int], at: int) -> int:
    """The polynomial through the points, by Lagrange."""
    return sum(y * c for y, c in zip(points.values(), _coefficients(tuple(points), at), strict=True)) % PRIME


@lru_cache(512)  # the same holders answer for every secret of a round
def _coefficients(places: tuple[int, ...], at: int) -> tuple[int, ...]:
    found = []
    for x in places:
        above, below = 1, 1
        for other in places:
            if other != x:
                above, below = above * (at - other) % PRIME, below * (x - other) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(found)
