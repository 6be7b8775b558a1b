"""Who holds what: the examples that are drawn, the clients of the federation, and those that are held out of it."""

from typing import Any, NamedTuple

import numpy as np

from .. import data
from ..data import Dataset

JUDGED = 0.2  # share of a client's examples by which its fine-tuned model is judged, where no client is held out

Pair = tuple[np.ndarray, np.ndarray]  # rows to fine-tune on, rows to be judged by


class Split(NamedTuple):
    """Who holds which rows of the training examples."""

    parts: list[np.ndarray]  # of those that train
    held_out: list[Pair]


def split_of(settings: Any, dataset: Dataset, labels: np.ndarray, seed: int) -> Split:
    """Draw examples, split them over clients, and hold some of the clients out, whose examples are cut into halves.

    Args:
        settings: a run's.
        dataset: the data.
        labels: [N] integers by which training examples are split.
        seed: what all draws here follow from.

    Raises:
        ValueError: more examples asked for than there are, no client left, one held out that has a single example; or
            as `data.split`.
    """
    rng, count = np.random.default_rng(seed), len(labels)
    drawn = np.arange(count)
    if settings.examples is not None:
        if settings.examples > count:
            raise ValueError(f"examples: got {settings.examples}, expected at most {count}, as {dataset.name} has")
        drawn = rng.permutation(count)[: settings.examples]
    split = data.split(
        settings.partition,
        labels[drawn],
        settings.clients,
        seed=seed,
        alpha=settings.alpha,
        classes_per_client=settings.classes_per_client,
        min_size=settings.min_size,
        groups=None if dataset.groups is None else dataset.groups[drawn],
    )
    parts = [drawn[part] for part in split]
    if settings.held_out is None:
        return Split(parts, [])
    left = len(parts) - count_held_out(settings, len(parts))
    parts = [parts[place] for place in rng.permutation(len(parts))]
    if min(map(len, parts[left:])) < 2:
        raise ValueError(
            "held_out: a client has one example, expected at least 2, one to fine-tune on, one to judge by"
        )
    halves = [np.array_split(rng.permutation(part), 2) for part in parts[left:]]
    return Split(parts[:left], [(mine, judged) for mine, judged in halves])


def count_held_out(settings: Any, clients: int) -> int:
    """How many of some clients are held out: at least one where a share is given.

    Raises:
        ValueError: none is left.
    """
    if settings.held_out is None:
        return 0
    count = max(1, round(settings.held_out * clients))
    if count >= clients:
        raise ValueError(f"held_out: got {settings.held_out} of {clients} clients, expected at least one left")
    return count


def judged_apart(parts: list[np.ndarray], seed: int) -> list[Pair]:
    """Cut each client's rows into those it trains on, and a fifth by which its fine-tuned model is judged.

    Raises:
        ValueError: a client has one example.
    """
    if min(map(len, parts)) < 2:
        raise ValueError("personalise: a client has one example, expected at least 2 of each, one of them held out")
    drawn = [np.random.default_rng((seed, number)).permutation(part) for number, part in enumerate(parts)]
    counts = [max(1, round(JUDGED * len(part))) for part in drawn]
    return [(part[count:], part[:count]) for part, count in zip(drawn, counts, strict=True)]
