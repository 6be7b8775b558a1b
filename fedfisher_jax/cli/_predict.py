"""`fedfisher predict`: what a model file says of examples, as a table."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from .. import _files
from .._metrics import predict as outputs_for
from ..data import Columns
from ..data._where import expanded
from ..silos import _model_file as model_file
from ..silos import _silo_data as silo_data
from ..silos._network import likelihood_of, outputs_of


@dataclasses.dataclass(frozen=True)
class PredictSettings:
    """Write what a model file predicts for examples, a line for each, as .csv."""

    file: Annotated[Path, tyro.conf.Positional]
    """A model file, from `fedfisher run`, `init` or `merge`."""
    data: str
    """A .npz file with x (or test_x), a .csv or .parquet table, or a name of `fedfisher list`; labels are not read."""
    out: Path = Path("predictions.csv")
    """The file to write."""
    label: tuple[str, ...] = ("label",)
    """Column, or columns, of a table that hold labels, and are no inputs; they may be missing."""
    ignore: tuple[str, ...] = ()
    """Columns of a table that are no inputs."""
    model: str | None = None
    """module:function, where the file is of a network of your own."""


def predict(settings: PredictSettings) -> None:
    """Write the predictions: the class and its probability, or the outputs' means where there are no classes.

    Raises:
        ValueError: files that do not work, named.
    """
    _files.require_file(settings.out, [settings.file, expanded(settings.data)])
    found = model_file.read(settings.file, settings.model)
    x = silo_data.read_inputs(settings.data, columns=Columns(settings.label, None, settings.ignore))
    x = silo_data.inputs_of(settings.data, found, x)
    outputs_of(found.network.apply, found.params, x, found.kind.input_shape)
    likelihood = likelihood_of(found.kind.likelihood)
    means = np.asarray(jax.vmap(likelihood.mean)(outputs_for(found.network.apply, found.params, x)))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if likelihood.name == "categorical" and means.ndim == 2:
        best = means.argmax(-1)
        names = found.classes or range(means.shape[-1])
        writer.writerow(["row", "label", "probability"])
        writer.writerows([n, names[k], f"{means[n, k]:.6g}"] for n, k in enumerate(best))
    else:
        rows = means.reshape(len(means), -1)
        writer.writerow(["row", *(f"output_{k}" for k in range(rows.shape[1]))])
        writer.writerows([n, *(f"{value:.6g}" for value in row)] for n, row in enumerate(rows))
    _files.write_atomically(settings.out, out.getvalue())
    print(f"{settings.out}: {len(x)} predictions of {settings.file}")
