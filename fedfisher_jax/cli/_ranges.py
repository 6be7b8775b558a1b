"""The numbers that settings may have: what one command refuses, every command refuses, before any work."""

import math
from typing import Any, NamedTuple

from ..federate._one_shot import MOST_SEED

MOST_COUNT = 2**31 - 1  # of what programs count in 32 bits


class Range(NamedTuple):
    """From `least` on, to `most`; either end may be left out."""

    words: str
    least: float
    most: float
    with_least: bool = True
    with_most: bool = True

    def holds(self, value: Any) -> bool:
        """Whether a number, never NaN, is inside."""
        above = value >= self.least if self.with_least else value > self.least
        return above and (value <= self.most if self.with_most else value < self.most)


COUNT = Range(f"a number from 1 to {MOST_COUNT}", 1, MOST_COUNT)
SEED = Range(f"a whole number from 0 to {MOST_SEED}", 0, MOST_SEED)
POSITIVE = Range("a positive number", 0, math.inf, with_least=False, with_most=False)
RANGES = {
    **dict.fromkeys(
        ("clients", "examples", "epochs", "batch_size", "samples", "rounds", "sampled", "shots", "sharers"), COUNT
    ),
    **dict.fromkeys(("seed", "data_seed"), SEED),
    **dict.fromkeys(("learning_rate", "server_learning_rate", "server_clip", "budget"), POSITIVE),
    "personalise_learning_rate": POSITIVE,
    "held_out": Range("a share above 0 and below 1", 0, 1, with_least=False, with_most=False),
    **dict.fromkeys(("warm_up_rounds", "personalise"), Range(f"a number from 0 to {MOST_COUNT}", 0, MOST_COUNT)),
    "max_bytes": Range("at least 1", 1, math.inf),
    "rank": Range("a number from 1 to 4096", 1, 4096),
    "in_memory": Range("at least 0", 0, math.inf),
    **dict.fromkeys(("momentum", "server_momentum"), Range("a number from 0 to below 1", 0, 1, with_most=False)),
    **dict.fromkeys(("damping", "lengths"), Range("a number of at least 0", 0, math.inf, with_most=False)),
    "silo": Range(f"a whole number from 0 to {MOST_COUNT}", 0, MOST_COUNT),
}


def require_ranges(settings: Any) -> None:
    """Refuse settings whose numbers are out of range; None is not given, and of several each is looked at.

    Raises:
        ValueError: which one, what it is and what is allowed.
    """
    for name, allowed in RANGES.items():
        given = getattr(settings, name, None)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None and not allowed.holds(value):
                raise ValueError(f"{name}: got {str(value)[:40]}, expected {allowed.words}")
