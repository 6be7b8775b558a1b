"""Targets that are no classes: numbers to regress on (gaussian), several labels of 0 and 1 (bernoulli)."""

from typing import NamedTuple

import numpy as np

TARGETS = ("categorical", "gaussian", "bernoulli")
"""What targets may be: names of likelihoods."""
BINS = 10  # of a number, for splits by label


class Strata(NamedTuple):
    """What a split by label goes by, and what it looks like: examples of a kind at each client.

    Attributes:
        labels: int [N], the stratum of each example.
        names: the strata's names, for people.
        what: what a stratum is, for people.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    what: str = "class"


def require_targets(likelihood: str) -> None:
    """Refuse what is no name of a likelihood.

    Raises:
        ValueError: the known ones.
    """
    if likelihood not in TARGETS:
        raise ValueError(f"likelihood: got {likelihood[:40]!r}, expected one of {', '.join(TARGETS)}")


def as_targets(what: str, likelihood: str, y: np.ndarray) -> np.ndarray:
    """Give targets the shape [N, C] and the type that they are fitted in: float32, or int32 of zeros and ones.

    Args:
        what: names them in messages.
        likelihood: gaussian or bernoulli.
        y: real numbers [N], of one target, or [N, C].

    Raises:
        ValueError: what is wrong with them.
    """
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or y.dtype.kind not in "biuf" or not y.size:
        raise ValueError(f"{what}: got {y.dtype} {y.shape}, expected real numbers [N] or [N, C] for {likelihood}")
    if likelihood == "gaussian":
        with np.errstate(over="ignore"):
            numbers = y.astype(np.float32)
        wrong, allowed = ~np.isfinite(numbers), "finite numbers"
    else:
        numbers, wrong, allowed = (y == 1).astype(np.int32), (y != 0) & (y != 1), "0 and 1"
    if wrong.any():
        raise ValueError(f"{what}: got {y[wrong][0]} in example {np.argwhere(wrong)[0][0]}, expected {allowed}")
    return numbers


def strata(likelihood: str, y: np.ndarray) -> Strata:
    """Sort examples into kinds, so that clients can be given unevenly many of each.

    Classes are their own kinds. Numbers are cut into ten bins of as many examples each, by the first of an example's;
    several labels are one kind for each combination that occurs.

    Args:
        likelihood: what the targets are fitted with.
        y: targets, [N] of classes, else [N, C].

    Raises:
        ValueError: another likelihood.
    """
    if likelihood not in TARGETS:
        raise ValueError(f"likelihood: got {likelihood!r}, expected one of {', '.join(TARGETS)}")
    if likelihood == "categorical":
        return Strata(y, tuple(map(str, range(int(y.max()) + 1))))
    if likelihood == "gaussian":
        edges = np.unique(np.quantile(y[:, 0], np.linspace(0, 1, BINS + 1)[1:-1]))
        found, labels = np.unique(np.searchsorted(edges, y[:, 0]), return_inverse=True)
        ends = [*(f"≤ {edge:.3g}" for edge in edges), f"> {edges[-1]:.3g}"]
        return Strata(labels, tuple(ends[number] for number in found), "range of targets")
    found, labels = np.unique(y, axis=0, return_inverse=True)
    return Strata(
        labels.ravel(), tuple("+".join(map(str, np.flatnonzero(row))) or "none" for row in found), "set of labels"
    )
