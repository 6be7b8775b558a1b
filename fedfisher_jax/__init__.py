"""One-shot and few-round federated learning with Fisher information, in JAX.

Rooms, in the order in which data flow: `data` and `models`, `tracing`, `curvature`, `solve`, `merge`, `federate`,
`payload`, `silos`, `privacy`, `theory`, `report`, `torch`, `cli`. What most people need is here, under its own name.
"""

__version__ = "0.2.0"  # the only place that says it

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from ._examples import Examples as Examples
from ._examples import examples as examples
from ._frozen import trainable as trainable
from ._likelihood import Likelihood as Likelihood
from ._likelihood import bernoulli as bernoulli
from ._likelihood import categorical as categorical
from ._likelihood import gaussian as gaussian
from ._metrics import ensemble as ensemble
from ._metrics import evaluate as evaluate
from .curvature import Diagonal as Diagonal
from .curvature import Full as Full
from .curvature import Gram as Gram
from .curvature import Kronecker as Kronecker
from .curvature import LowRank as LowRank
from .curvature import capture as capture
from .curvature import fisher as fisher
from .curvature import fishers as fishers
from .federate import Cohort as Cohort
from .federate import Federation as Federation
from .federate import LocalTraining as LocalTraining
from .federate import cohort as cohort
from .federate import fold_clients as fold_clients
from .federate import map_clients as map_clients
from .federate import personalise as personalise
from .federate import rounds as rounds
from .federate import train as train
from .merge import Merged as Merged
from .merge import Payload as Payload
from .merge import Rule as Rule
from .merge import Update as Update
from .merge import fedavg as fedavg
from .merge import fedfish as fedfish
from .merge import fedfisher as fedfisher
from .merge import fipa as fipa
from .merge import fisher_merge as fisher_merge
from .merge import merge_payloads as merge_payloads
from .merge import then as then
from .solve import closed_form as closed_form
from .solve import conjugate_gradients as conjugate_gradients
from .solve import paper_loop as paper_loop
from .solve import released_adam as released_adam
from .tracing import as_matrix_products as as_matrix_products

if _TYPE_CHECKING:
    from . import cli as cli
    from . import data as data
    from . import models as models
    from . import payload as payload
    from . import privacy as privacy
    from . import report as report
    from . import silos as silos
    from . import theory as theory
    from . import torch as torch

_LAZY = (
    "cli",
    "data",
    "models",
    "payload",
    "privacy",
    "report",
    "silos",
    "theory",
    "torch",
)  # loaded when they are used

__all__ = [
    "Cohort",
    "Diagonal",
    "Examples",
    "Federation",
    "Full",
    "Gram",
    "Kronecker",
    "Likelihood",
    "LocalTraining",
    "LowRank",
    "Merged",
    "Payload",
    "Rule",
    "Update",
    "as_matrix_products",
    "bernoulli",
    "capture",
    "categorical",
    "cli",
    "closed_form",
    "cohort",
    "conjugate_gradients",
    "curvature",
    "data",
    "ensemble",
    "evaluate",
    "examples",
    "fedavg",
    "federate",
    "fedfish",
    "fedfisher",
    "fipa",
    "fisher",
    "fisher_merge",
    "fishers",
    "fold_clients",
    "gaussian",
    "map_clients",
    "merge",
    "merge_payloads",
    "models",
    "paper_loop",
    "payload",
    "personalise",
    "privacy",
    "released_adam",
    "report",
    "rounds",
    "silos",
    "solve",
    "then",
    "theory",
    "tracing",
    "train",
    "trainable",
]


def __getattr__(name: str) -> _Any:
    if name in _LAZY:
        return _importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__version__"]
