"""`fedfisher evaluate`: how well a model file predicts."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import tyro

from .. import _metrics as metrics
from .._further import further_scores
from .._metrics import predict
from ..data import Columns
from ..report import words_on_training
from ..silos import _model_file as model_file
from ..silos import _silo_data as silo_data
from ..silos._network import likelihood_of, outputs_of
from ._one_line import say


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """Print loss, accuracy and AUC, or root mean square error, of a model file on examples."""

    file: Annotated[Path, tyro.conf.Positional]
    """A model file, from `fedfisher init` or `fedfisher merge`."""
    data: str
    """A .npz file with test_x, test_y (or x, y), a .csv or .parquet table, or a name of `fedfisher list`."""
    part: Literal["test", "train"] = "test"
    """Part of the data."""
    by_class: bool = False
    """Also print the accuracy on the examples of each class."""
    label: tuple[str, ...] = ("label",)
    """Column, or columns, of the labels in a table."""
    ignore: tuple[str, ...] = ()
    """Columns of a table that are no inputs."""
    model: str | None = None
    """module:function, where the file is of a network of your own."""


def evaluate(settings: EvaluateSettings) -> dict[str, float]:
    """Print and return loss (nats) and, where there are such, accuracy (0 to 1), AUC and root mean square error.

    It also says if a constant guess does better.
    """
    found = model_file.read(settings.file, settings.model)
    likelihood = likelihood_of(found.kind.likelihood)
    columns = Columns(settings.label, None, settings.ignore)
    x, y = silo_data.read(settings.data, settings.part, columns=columns)
    y = silo_data.classes_of(settings.data, found, y)
    x = silo_data.inputs_of(settings.data, found, x)
    outputs = outputs_of(found.network.apply, found.params, x, found.kind.input_shape)
    y = silo_data.targets_of(settings.data, likelihood, outputs, y)
    scores = metrics.evaluate(found.network.apply, likelihood, found.params, jnp.asarray(x), jnp.asarray(y))
    further = further_scores(likelihood, predict(found.network.apply, found.params, x), y)
    more = {name: value for name, value in further.items() if name in ("rmse", "auc")}
    accuracy = {} if scores.accuracy is None else {"accuracy": float(scores.accuracy)}
    result = {"loss": float(scores.loss), **more, **accuracy}
    print(f"{settings.file}: {len(x)} examples, " + ", ".join(f"{name} {value:.4f}" for name, value in result.items()))
    if settings.by_class:
        if likelihood.name != "categorical" or y.ndim != 1:
            raise ValueError(f"by_class: got a model of {likelihood.name}, expected one of a class for each example")
        names = found.classes or range(found.kind.outputs)
        for number, (name, share) in enumerate(zip(names, further["accuracy_by_class"], strict=True)):
            said = "no example" if share is None else f"{(y == number).sum()} examples, accuracy {share:.4f}"
            print(f"class {name}: {said}")
    rows, guess = metrics.Scores(scores.loss[None], None), metrics.best_constant(likelihood, y)
    for word in words_on_training([str(settings.file)], rows, [guess]):
        say(word)
    return result
