"""What tells a person that a client is odd: how far its numbers lie from the others', and how much weight it asks for.

Each payload leaves a sketch when it is read, so that any number of files is compared in the memory of their sketches.
Who knows how sketches are made can hide from them; `_robust` compares the numbers themselves.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..curvature import quadratic, trace
from ..curvature.structures._protocol import Fisher
from ._rule import Payload

PyTree = Any
BUCKETS = 1024  # distances are right to about sqrt(2 / BUCKETS), 4 %
COMPARED = 500  # clients, spread over all
FEWEST = 4  # clients, below which nobody is odd
FAR, MANY, LARGE = 3.0, 20.0, 100.0  # times the others' median distance, examples, and trace of the Fisher


class Look(NamedTuple):
    """What is kept of a payload to compare it with others."""

    sketch: np.ndarray  # [BUCKETS], of its parameters, or of its statistics where it has none
    trace: float | None  # of its Fisher


def look(payload: Payload) -> Look:
    """Sketch a payload by signed sums over random buckets (Charikar et al. 2002, "Finding frequent items")."""
    seen = payload.statistics if payload.params is None else payload.params
    values = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(seen)])
    buckets, signs = _hashes(values.size)
    held = float(trace(payload.statistics)) if isinstance(payload.statistics, Fisher) else None
    return Look(np.bincount(buckets, signs * values, BUCKETS), held)


def from_others(looks: Sequence[Look]) -> list[float | None]:
    """Each client's median distance to the others, of many clients to `COMPARED` of them; None where it is alone."""
    sketches = np.stack([one.sketch for one in looks])
    chosen = np.unique(np.linspace(0, len(sketches) - 1, min(len(sketches), COMPARED)).astype(int))
    found: list[float | None] = []
    for number, sketch in enumerate(sketches):
        apart = np.linalg.norm(sketches[chosen[chosen != number]] - sketch, axis=1)
        found.append(float(np.median(apart)) if apart.size else None)
    return found


def predicted_losses(payload: Payload, at: PyTree, start: PyTree) -> dict[str, float]:
    """Predict how far a client's loss is above its own model's, to second order: ½ (θ − θ_i)ᵀ F_i (θ − θ_i).

    Args:
        payload: the client's, with a Fisher.
        at: the merged model.
        start: the model that all clients were sent.

    Returns:
        "before", at the start, and "after", at the merged model.
    """
    gap = lambda model: jax.tree.map(jnp.subtract, model, payload.params)  # noqa: E731
    return {
        name: float(quadratic(payload.statistics, gap(model)) / 2) for name, model in (("before", start), ("after", at))
    }


def words_on_outliers(looks: Mapping[int, Look], examples: Mapping[int, int]) -> list[str]:
    """Write sentences about clients that differ from the others by more than honest ones often do.

    Args:
        looks: by the client's number.
        examples: what each says that it has, by its number.
    """
    if len(looks) < FEWEST:
        return []
    numbers = sorted(looks)
    apart = np.asarray(from_others([looks[n] for n in numbers]), float)
    found = {
        f"its numbers lie {{:.3g}} times as far from the others as is usual ({FAR:g} is the limit)": (apart, FAR),
        "it claims {:.3g} times as many examples as is usual": ([examples[n] for n in numbers], MANY),
        "its Fisher information is {:.3g} times as large as is usual": ([looks[n].trace for n in numbers], LARGE),
    }
    words = []
    for said, (values, limit) in found.items():
        if any(value is None for value in values):
            continue
        usual = float(np.median(np.asarray(values, float)))
        for number, value in zip(numbers, np.asarray(values, float), strict=True):
            if usual > 0 and value > limit * usual:
                words.append(f"silo {number}: {said.format(value / usual)}")
    return words


@lru_cache(2)
def _hashes(size: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(size)
    return draw.integers(0, BUCKETS, size, dtype=np.int16), 2 * draw.integers(0, 2, size, dtype=np.int8) - 1
