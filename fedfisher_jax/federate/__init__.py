"""Clients at work: local training and its variants, many clients at once, one shot, rounds, personalisation."""

from .._augment import crop_and_flip as crop_and_flip
from .._metrics import best_constant as best_constant
from . import rounds as rounds
from ._checkpoints import run_rounds as run_rounds
from ._cohort import Client as Client
from ._cohort import Cohort as Cohort
from ._cohort import cohort as cohort
from ._fold_clients import fold_clients as fold_clients
from ._local import LocalTraining as LocalTraining
from ._local import Trained as Trained
from ._local import train as train
from ._map_clients import CohortReport as CohortReport
from ._map_clients import map_clients as map_clients
from ._one_shot import RunKeys as RunKeys
from ._one_shot import compare as compare
from ._one_shot import run_keys as run_keys
from ._own_scores import own_scores as own_scores
from ._own_scores import scores_at_clients as scores_at_clients
from ._own_scores import zero_fishers as zero_fishers
from ._personalise import Personalised as Personalised
from ._personalise import personalise as personalise
from ._private import Private as Private
from ._references import Simulation as Simulation
from ._server_step import clip_to_clients as clip_to_clients
from ._server_step import server_adam as server_adam
from ._simulate import measure_clients as measure_clients
from ._simulate import merge_clients as merge_clients
from ._simulate import payload_bits as payload_bits
from ._simulate import train_clients as train_clients
from ._variants import Variant as Variant
from ._variants import feddyn as feddyn
from ._variants import fedprox as fedprox
from ._variants import scaffold as scaffold
from .rounds import Federation as Federation

__all__ = [
    "Client",
    "Cohort",
    "CohortReport",
    "Federation",
    "LocalTraining",
    "Personalised",
    "Private",
    "RunKeys",
    "Simulation",
    "Trained",
    "Variant",
    "best_constant",
    "clip_to_clients",
    "cohort",
    "compare",
    "crop_and_flip",
    "feddyn",
    "fedprox",
    "fold_clients",
    "map_clients",
    "measure_clients",
    "merge_clients",
    "own_scores",
    "payload_bits",
    "personalise",
    "rounds",
    "run_keys",
    "run_rounds",
    "scaffold",
    "scores_at_clients",
    "server_adam",
    "train",
    "train_clients",
    "zero_fishers",
]
