"""Silos that exchange files, or messages of a live federation: what each of them does on its own machine."""

from ._model_file import Kind as Kind
from ._model_file import Model as Model
from ._silo import silo_cohort as silo_cohort
from ._silo import train_and_measure as train_and_measure

__all__ = [
    "Kind",
    "Model",
    "silo_cohort",
    "train_and_measure",
]
