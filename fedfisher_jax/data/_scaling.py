"""How inputs are brought near one: (x − mean) / std by column, from sums that silos can add.

A column is an entry of the last axis: a feature of a table, a channel of images. Pixels in uint8 share one unit, so
rows of them are one column: a pixel that is rarely lit would otherwise be blown up.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

INPUTS = ("standardised", "as-is")
FAR, NEAR = 10.0, 0.01  # root mean squares of a column between which training digests it
_ROWS = 2**22  # numbers that are worked on in float64 at once


class Sums(NamedTuple):
    """What a silo tells of its inputs so that all can agree on one scaling: float64 arrays, which add leaf by leaf."""

    count: np.ndarray  # [] numbers in a column
    total: np.ndarray  # [columns]
    squares: np.ndarray  # [columns] Σ x²


class Scaling(NamedTuple):
    """(x − mean) / std, column by column; both float64 [columns], or [1] for all columns alike."""

    mean: np.ndarray
    std: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Scale inputs [N, ..., columns] to float32, computed in float64.

        Raises:
            ValueError: another number of columns.
        """
        if self.mean.size not in (1, x.shape[-1]):
            raise ValueError(f"x: got {x.shape[-1]} columns, expected {self.mean.size}, which the scaling has")
        scaled = np.empty(x.shape, np.float32)
        for rows in _chunks(x):
            scaled[rows] = (np.asarray(x[rows], np.float64) - self.mean) / self.std
        return scaled

    def plain(self) -> dict[str, list[float]]:
        """Mean and std as lists, for reports and headers."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}


def describe(x: np.ndarray) -> Sums:
    """Count, sum and sum of squares of each column of inputs.

    Args:
        x: [N, ..., columns] real numbers; uint8 rows [N, features] count as one column.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> north, south = np.array([[0.0, 100.0]]), np.array([[2.0, 300.0], [4.0, 200.0]])
        >>> sums = ff.data.Sums(*map(np.add, ff.data.describe(north), ff.data.describe(south)))
        >>> ff.data.scaling_of(sums).mean.tolist()
        [2.0, 200.0]
    """
    columns = 1 if x.dtype == np.uint8 and x.ndim == 2 else x.shape[-1]
    total, squares = np.zeros(columns), np.zeros(columns)
    for rows in _chunks(x):
        part = np.asarray(x[rows], np.float64).reshape(-1, columns)
        total += part.sum(0)
        squares += np.square(part).sum(0)
    return Sums(np.asarray(float(x.size // columns)), total, squares)


def scaling_of(sums: Sums) -> Scaling:
    """The scaling that gives every column mean 0 and spread 1; a constant column gets spread 0, not NaN.

    A column whose spread is below a millionth of its mean counts as constant, since sums of squares do not show it:
    subtract a common number first, such as the first day of seconds since 1970.

    Args:
        sums: the sums of one silo, or those of many added up.

    Raises:
        ValueError: no examples, shapes that differ, or sums that no numbers have.
    """
    count, total, squares = (np.asarray(part, np.float64) for part in sums)
    if count.shape != () or total.ndim != 1 or total.shape != squares.shape or not total.size:
        raise ValueError(f"sums: got shapes {count.shape}, {total.shape} and {squares.shape}, expected [], [F] and [F]")
    if not (1 <= count < np.inf and np.isfinite(total).all() and np.isfinite(squares).all()):
        raise ValueError("sums: expected finite numbers of at least one example")
    mean, square = total / count, squares / count
    variance = square - mean**2
    rounding = 1e-12 * square  # what float64 leaves of a column that is constant
    if (variance < -rounding).any():
        column = int(np.argmax(variance < -rounding))
        raise ValueError(f"sums: column {column} has a mean square below its squared mean, which no numbers have")
    varies = variance > rounding
    return Scaling(mean, np.sqrt(np.where(varies, variance, 1.0)))


def far_from_one(x: np.ndarray) -> str | None:
    """Say which column is so large, or that all are so small, that training hardly digests them; None if none is."""
    sums = describe(x)
    size = np.sqrt(sums.squares / sums.count)
    largest = int(np.argmax(size))
    if size[largest] > FAR:
        where = f"column {largest} has" if size.size > 1 else "they have"
        return f"inputs far from one: {where} a root mean square of {size[largest]:.4g}"
    if size[largest] < NEAR:
        return f"inputs far from one: no column has a root mean square above {size[largest]:.4g}"
    return None


def as_images(x: np.ndarray) -> np.ndarray:
    """Give images [N, H, W] their one channel, [N, H, W, 1]; other arrays stay as they are."""
    return x[..., None] if x.ndim == 3 else x


def require_digestible(name: str, x: np.ndarray) -> None:
    """Refuse what is not a number, or beyond float32.

    Raises:
        ValueError: the first example that has such a number.
    """
    if not x.size or x.dtype.kind in "biu":
        return
    largest = np.finfo(np.float32).max
    if not (x.max() <= largest and x.min() >= -largest):  # NaN fails both
        rows = (i for i, example in enumerate(x) if not (np.abs(example) <= largest).all())
        raise ValueError(f"{name} has NaN or infinite values, first in example {next(rows)}")


def _chunks(x: Any) -> Iterator[slice]:
    step = max(1, _ROWS // max(x[:1].size, 1))
    return (slice(start, start + step) for start in range(0, len(x), step))
