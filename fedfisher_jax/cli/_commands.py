"""The subcommands; those for silos exchange files alone (docs/silos.md)."""

from collections.abc import Callable
from typing import Any

from ._describe import DescribeSettings, describe
from ._evaluate import EvaluateSettings, evaluate
from ._example import ExampleSettings, example
from ._fold import FoldSettings, fold
from ._init import InitSettings, init
from ._inspect import InspectSettings, inspect
from ._leave import LeaveSettings, leave
from ._list import ListSettings, list_names
from ._measure import measure
from ._measure_settings import MeasureSettings
from ._merge import MergeSettings, merge
from ._predict import PredictSettings, predict
from ._report import ReportSettings, report_runs
from ._run import run
from ._secure import SecureSettings, secure
from ._settings import RunSettings
from ._sweep import sweep
from ._sweep_settings import SweepSettings

COMMANDS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "run": (RunSettings, run),
    "sweep": (SweepSettings, sweep),
    "report": (ReportSettings, report_runs),
    "list": (ListSettings, list_names),
    "describe": (DescribeSettings, describe),
    "init": (InitSettings, init),
    "measure": (MeasureSettings, measure),
    "fold": (FoldSettings, fold),
    "merge": (MergeSettings, merge),
    "leave": (LeaveSettings, leave),
    "secure": (SecureSettings, secure),
    "evaluate": (EvaluateSettings, evaluate),
    "predict": (PredictSettings, predict),
    "inspect": (InspectSettings, inspect),
    "example": (ExampleSettings, example),
}
"""Settings and function of each subcommand by its name."""
