"""What `fedfisher run` tells a person beside its results."""

from collections.abc import Sequence

import numpy as np

from .. import data, report
from .._likelihood import categorical
from .._metrics import Scores
from ..data._scaling import far_from_one
from ..federate import best_constant
from ..federate._one_shot import Result


def words_on_data(dataset: data.Dataset) -> list[str]:
    """What a person should know of the data before any training."""
    words = []
    if dataset.classes:
        shown = ", ".join(map(str, dataset.classes[:8])) + (" …" if len(dataset.classes) > 8 else "")
        what = "texts as labels" if isinstance(next(iter(dataset.classes)), str) else "labels with gaps"
        words.append(f"{what}: {shown} are classes 0 to {len(dataset.classes) - 1} (result.json has them)")
    far = far_from_one(dataset.train_x)
    return [*words, far] if far else words


def words_on_result(result: Result, parts: Sequence[np.ndarray], y: np.ndarray) -> list[str]:
    """What a person should know of a result."""
    if result.kind == "training":
        names, guesses = [f"client {n}" for n in range(len(parts))], [best_constant(categorical(), y[p]) for p in parts]
        return report.words_on_training(names, Scores(**result.value["own"]["after"]), guesses)
    return report.words_on_rule(result.name, result.value) if result.kind == "rule" else []
