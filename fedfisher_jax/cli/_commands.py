"""Subcommands for silos that exchange files alone (docs/silos.md)."""

from collections.abc import Callable
from typing import Any

from ._describe import DescribeSettings, describe
from ._evaluate import EvaluateSettings, evaluate
from ._example import ExampleSettings, example
from ._fold import FoldSettings, fold
from ._init import InitSettings, init
from ._inspect import InspectSettings, inspect
from ._measure import MeasureSettings, measure
from ._merge import MergeSettings, merge

COMMANDS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "describe": (DescribeSettings, describe),
    "init": (InitSettings, init),
    "measure": (MeasureSettings, measure),
    "fold": (FoldSettings, fold),
    "merge": (MergeSettings, merge),
    "evaluate": (EvaluateSettings, evaluate),
    "inspect": (InspectSettings, inspect),
    "example": (ExampleSettings, example),
}
"""Settings and function of each subcommand by its name."""
