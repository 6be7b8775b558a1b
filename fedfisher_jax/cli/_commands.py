"""Subcommands for silos that exchange files alone: init, measure, merge, evaluate, inspect, example (docs/silos.md)."""

from collections.abc import Callable
from typing import Any

from ._evaluate import Evaluate, evaluate
from ._example import Example, example
from ._init import Init, init
from ._inspect import Inspect, inspect
from ._measure import Measure, measure
from ._merge import Merge, merge

COMMANDS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "init": (Init, init),
    "measure": (Measure, measure),
    "merge": (Merge, merge),
    "evaluate": (Evaluate, evaluate),
    "inspect": (Inspect, inspect),
    "example": (Example, example),
}
"""Settings and function of each subcommand by its name."""
