"""What the comparisons over rounds share: server optimisers by name, rounds scored now and then, paired gains."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optax
from scipy import stats

from fedfisher_jax import Cohort, Federation, rounds
from fedfisher_jax.federate import server_adam


def server(name: str) -> optax.GradientTransformation | None:
    """A server optimiser: "plain" takes the merged model, "sgd-0.25" and "adam-0.01" are of a rate.

    "sgd-1-0.5" has momentum 0.5; "adam" is `server_adam`, of b1 0.5 and b2 0.99.

    Raises:
        ValueError: another name.
    """
    kind, *numbers = name.split("-")
    if kind == "plain" and not numbers:
        return None
    made = {("sgd", 1): optax.sgd, ("sgd", 2): optax.sgd, ("adam", 1): server_adam}.get((kind, len(numbers)))
    if made is None:
        raise ValueError(f"server: got {name!r}, expected plain, sgd-RATE, sgd-RATE-MOMENTUM or adam-RATE")
    return made(*map(float, numbers))


def follow(
    federation: Federation,
    state: rounds.State,
    who: Cohort,
    count: int,
    accuracy: Callable[[Any], float],
    every: int,
    last: int = 1,
) -> tuple[rounds.State, dict[str, list[float]]]:
    """Run `count` rounds, scored every `every` rounds and in each of the last `last`; what was noted, by name."""
    found: dict[str, list[float]] = {"scored": [], "accuracy": [], "moved": [], "barrier_loss": []}
    for number in range(1, count + 1):
        state, report = rounds.step(federation, state, who)
        found["moved"].append(float(report.moved))
        if federation.barrier:
            found["barrier_loss"].append(float(report.barrier_loss))
        if number % every == 0 or number > count - last:
            found["scored"].append(number)
            found["accuracy"].append(accuracy(state.params))
    return state, found


def interval(differences: Any) -> tuple[float, float]:
    """The 95 % interval of the mean of paired differences, by Student's t; NaN for one pair."""
    values = np.asarray(differences, float)
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def paired(differences: Any, better: Callable[[np.ndarray], np.ndarray] = lambda d: d > 0) -> str:
    """Mean ± std of paired differences, the mean's 95 % interval, and on how many seeds the first one is better."""
    values = np.asarray(differences, float)
    if len(values) < 2:
        return f"{values.mean():+.1f}"
    low, high = interval(values)
    spread = f"{values.mean():+.1f} ± {values.std(ddof=1):.1f} [{low:+.1f}, {high:+.1f}]"
    return f"{spread}, {int(better(values).sum())}/{len(values)}"
