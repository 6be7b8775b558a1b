"""Clients at work: local training and its variants, many clients at once, one shot and rounds."""

from . import rounds as rounds
from ._checkpoints import run as run
from ._fold_clients import fold_clients as fold_clients
from ._local import Trained as Trained
from ._local import crop_and_flip as crop_and_flip
from ._local import train as train
from ._map_clients import Report as Report
from ._map_clients import map_clients as map_clients
from ._one_shot import Problem as Problem
from ._one_shot import compare as compare
from ._personalise import personalise as personalise
from ._simulate import Clients as Clients
from ._simulate import Train as Train
from ._simulate import clients as clients
from ._simulate import measure_clients as measure_clients
from ._simulate import merge_clients as merge_clients
from ._simulate import train_clients as train_clients
from ._variants import Variant as Variant
from ._variants import feddyn as feddyn
from ._variants import fedprox as fedprox
from ._variants import scaffold as scaffold
