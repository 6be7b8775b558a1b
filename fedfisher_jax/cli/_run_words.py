"""What `fedfisher run` tells a person beside its results."""

import dataclasses

from .. import data, report
from .._metrics import Scores
from ..data._scaling import far_from_one
from ..federate import best_constant
from ..federate._references import Result
from ._settings import RunSettings
from ._world import World

DRAWN = ("dirichlet-client", "dirichlet-class", "quantity")  # splits whose shares are drawn by a concentration


def words_on_settings(settings: RunSettings) -> list[str]:
    """What was set and is read by nothing, which a person may not have meant."""
    usual = {field.name: field.default for field in dataclasses.fields(settings)}
    unread: dict[str, str] = {}
    if settings.optimizer != "sgd":
        unread["momentum"] = f"--optimizer {settings.optimizer}"
    if settings.partition not in DRAWN:
        unread |= dict.fromkeys(("alpha", "min_size"), f"--partition {settings.partition}")
    if settings.partition != "shards":
        unread["classes_per_client"] = f"--partition {settings.partition}"
    if not any("monte_carlo" in word for word in (settings.kind, settings.warm_up or "", *settings.rules)):
        unread["samples"] = f"--kind {settings.kind}"
    return [f"{name}: {by} does not read it" for name, by in unread.items() if getattr(settings, name) != usual[name]]


def words_on_data(dataset: data.Dataset, strata: data.Strata) -> list[str]:
    """What a person should know of the data before any training."""
    words = []
    if dataset.likelihood != "categorical":
        words.append(f"splits by label go by {len(strata.names)} kinds of examples, each a {strata.what}")
    if dataset.likelihood == "gaussian" and (far := far_from_one(dataset.train_y)):
        words.append(far.replace("inputs", "targets") + ": a network learns them best near one, so divide them")
    if dataset.classes:
        shown = ", ".join(map(str, dataset.classes[:8])) + (" …" if len(dataset.classes) > 8 else "")
        what = "texts as labels" if isinstance(next(iter(dataset.classes)), str) else "labels with gaps"
        words.append(f"{what}: {shown} are classes 0 to {len(dataset.classes) - 1} (result.json has them)")
    far = far_from_one(dataset.train_x)
    return [*words, far] if far else words


def words_on_result(result: Result, here: World) -> list[str]:
    """What a person should know of a result."""
    if result.kind == "training":
        names = [f"client {number}" for number in range(len(here.parts))]
        guesses = [best_constant(here.likelihood, here.dataset.train_y[part]) for part in here.parts]
        return report.words_on_training(names, Scores(**result.value["own"]["after"]), guesses)
    return report.words_on_rule(result.name, result.value) if result.kind == "rule" else []
