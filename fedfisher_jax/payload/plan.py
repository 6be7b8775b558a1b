"""Which encoder for which entry: nothing, the authors' scheme, or what fits a budget."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from ..curvature.structures._signs import Sign
from ..merge._rule import Payload
from . import _codecs as codecs
from . import _file as file
from . import _structures as structures
from ._codecs import Cholesky, Codec, Eigen, Root, Singular, Uniform

MOST, LEAST = 16, 4  # bits of a number
FINE = 8  # below so many bits small eigenvalues are left out instead of making numbers coarser,
KEPT = 16  # but not so many of them: with fewer kept, coarser numbers cost less (experiments/fedfisher/bits.py)


PUBLISHED = ("diagonal", "kronecker", "gram")  # the structures of the authors' scheme


def none(payload: Payload) -> dict[str, Codec]:
    """Leave every entry as it is."""
    del payload
    return {}


def authors(payload: Payload) -> dict[str, Codec]:
    """Plan the released scheme (arXiv 2403.12329): 15 bits and sign, factors by U S Vᵀ of one rank, 8 bits and sign.

    The rank is int(2 d / Σ_layers (2 b₁ + 2 b₂ + 2)), so that factors cost about as much as parameters: LeNet rank 50,
    1.034 × FedAvg's 32 bits per parameter. RegMean's sums run over its one factor; FedAvg's parameters stay raw.

    Raises:
        ValueError: a Fisher of another structure than the `PUBLISHED` ones, which the authors do not compress.
    """
    name = structures.name_of(payload.statistics)
    if name is None:
        return {}
    if name not in PUBLISHED:
        raise ValueError(f"compression: the authors' scheme has no {name} Fisher")
    arrays = file.entries(payload)
    size = sum(array.size for entry, array in arrays.items() if entry.startswith("params/"))
    factors = {entry: array.shape for entry, array in arrays.items() if is_matrix(name, entry)}  # [groups, n, n]
    plan: dict[str, Codec] = {entry: Uniform(15) for entry in arrays if entry not in factors}
    if factors:
        rank = max(1, int(2 * size / sum(math.prod(shape[:-2]) * (2 * shape[-1] + 1) for shape in factors.values())))
        plan |= {entry: Singular(rank, Uniform(8)) for entry in factors}
    return plan


def fit(payload: Payload, about: file.About, budget: float, *, stochastic: bool = False) -> dict[str, Codec]:
    """Make the finest plan whose file, header included, takes at most `budget` times 32 bits per parameter.

    Numbers have one width b for all of a file. Down to 8 bits semi-definite matrices keep every eigenvalue (L Lᵀ); then
    small ones are replaced by their mean (U Λ Uᵀ + t I), at the largest common rank that fits; where that is below
    `KEPT`, b falls, down to 4.
    Diagonals are stored by their square roots.

    Args:
        payload: what is to be sent.
        about: the header's part of the file.
        budget: multiple of FedAvg's 32 bits per parameter.
        stochastic: round so that every number is right on average.

    Raises:
        ValueError: the budget is not positive or too small; the smallest that works is named.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> params = {"w": np.linspace(-1, 1, 4096, dtype=np.float32)}
        >>> about = ff.payload.About("fedavg", "categorical", ff.payload.fingerprint(params))
        >>> sent = ff.Payload(5.0, params)
        >>> chosen = ff.payload.plan.fit(sent, about, 0.5)
        >>> 8 * len(ff.payload.dumps(sent, about, chosen)) <= 0.5 * 32 * 4096
        True
    """
    if not 0 < budget < float("inf"):
        raise ValueError(f"budget: got {budget}, expected a positive multiple of 32 bits per parameter")
    arrays = file.entries(payload)
    full = 32 * sum(leaf.size for leaf in structures.model_leaves(payload))
    name = structures.name_of(payload.statistics)
    largest = max((array.shape[-1] for entry, array in arrays.items() if is_matrix(name, entry)), default=0)

    def plan(width: int, rank: int | None) -> dict[str, Codec]:
        return {n: _codec(structures.sign(name, n), array, width, rank, stochastic) for n, array in arrays.items()}

    def bits(width: int, rank: int | None) -> int:
        return file.size_bits(payload, about, plan(width, rank))

    room = budget * full
    for width in range(MOST, FINE - 1 if largest else LEAST - 1, -1):
        if bits(width, None) <= room:
            return plan(width, None)
    for width in range(FINE, LEAST - 1, -1) if largest else ():
        rank = _largest(lambda r, width=width: bits(width, r) <= room, largest)
        if rank >= min(KEPT, largest) or (rank and width == LEAST):
            return plan(width, rank)
    smallest = bits(LEAST, 1 if largest else None) / full
    raise ValueError(f"budget: got {budget:g}, expected at least {smallest:.3f} for this payload")


def describe(plan: dict[str, Codec]) -> Iterator[str]:
    """Yield a line per kind of entry that a plan encodes."""
    seen: dict[str, Codec] = {}
    for entry, codec in plan.items():
        seen.setdefault("/".join(entry.split("/")[:2]) if entry.startswith("fisher/") else "params", codec)
    return (f"{kind}: {codec}" for kind, codec in seen.items())


def is_matrix(structure: str | None, entry: str) -> bool:
    """Tell whether a file's array is a semi-definite matrix."""
    return structures.sign(structure, entry) == "semidefinite"


def _codec(sign: Sign, array: Any, width: int, rank: int | None, stochastic: bool) -> Codec:
    signed, positive = Uniform(width - 1, True, stochastic), Uniform(width, False, stochastic)
    if sign != "semidefinite":
        return Root(positive) if sign == "nonnegative" else signed
    whole = Cholesky(signed)
    if rank is None:
        return whole
    some = Eigen(rank, signed, positive)
    cost = {codec: codecs.bits(codec, array.shape, array.dtype) for codec in (whole, some)}
    return whole if cost[whole] <= cost[some] else some


def _largest(works: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that works, where every smaller one does, too; 0 if none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if works(middle) else (low, middle - 1)
    return low
