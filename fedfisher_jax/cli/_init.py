"""`fedfisher init`: the model that all silos start from."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from .. import _files, models
from ..data import Columns, Scaling, describe, is_own, scaling_of
from ..data._scaling import as_images
from ..data._where import expanded
from ..federate import run_keys
from ..silos import _model_file as model_file
from ..silos import _silo_data as silo_data
from ..silos import _sums_file as sums_file
from ..silos._network import likelihood_of, network_of, require_sizes, template_of
from ._ranges import require_ranges


@dataclasses.dataclass(frozen=True)
class InitSettings:
    """Write the common starting model: every silo trains from this file, and merging asks for it."""

    out: Path = Path("start.safetensors")
    """The file to write."""
    model: str = "mlp"
    """A name of `fedfisher list`, or your own as module:function: function(input_shape, outputs) → (init, apply)."""
    data: str | None = None
    """Examples to read shape and classes from: a .npz file, a .csv or .parquet table, or a name of `fedfisher list`."""
    input_shape: tuple[int, ...] = ()
    """Shape of one example, where no data are given."""
    outputs: int | None = None
    """Classes, or numbers that the network puts out."""
    likelihood: str = "categorical"
    """categorical, bernoulli or gaussian."""
    bias: bool = False
    """Whether the layers of our models have biases."""
    start: Literal["usual", "designed"] = "usual"
    """"designed": convolutions made for the heads of `analytic`, cosines first; free of data."""
    seed: int = 0
    """Seed of the initialisation, as in `fedfisher run`."""
    standardise: tuple[Path, ...] = ()
    """Files of `fedfisher describe`, from all silos: every silo scales its inputs by the mean and spread of all."""
    inputs: Literal["standardised", "as-is"] = "standardised"
    """With a .npz file as data and one of our models: scale by that file's mean and spread, or nothing."""
    label: tuple[str, ...] = ("label",)
    """Column, or columns, of the labels in a table."""
    ignore: tuple[str, ...] = ()
    """Columns of a table that are no inputs."""
    checkpoint: Path | None = None
    """A safetensors file of this network to start from instead, or a folder of its shards."""
    overwrite: bool = False
    """Replace a start that is there already: payloads that were made from it then cannot be merged any more."""


def init(settings: InitSettings) -> None:
    """Write the start.

    Raises:
        ValueError: a network, shape or file that does not work, or a start that is there already.
    """
    taken = [expanded(path) for path in (settings.data, settings.checkpoint) if path]
    _files.require_file(settings.out, [*taken, *settings.standardise])
    if settings.out.exists() and not settings.overwrite:
        raise ValueError(f"out: {settings.out} is there already; a federation may have agreed on it: say --overwrite")
    shape, outputs = settings.input_shape, settings.outputs
    require_ranges(settings)
    likelihood_of(settings.likelihood)
    if settings.checkpoint is not None and (settings.start != "usual" or settings.seed):
        raise ValueError("checkpoint: got it with --start or --seed, which nothing is drawn by then; leave them out")
    scaling = sums_file.agreed(settings.standardise) if settings.standardise else None
    if settings.data is not None:
        x, y = silo_data.read(settings.data, "train", columns=Columns(settings.label, None, settings.ignore))
        ours = ":" not in settings.model
        x = as_images(x) if ours else x
        shape = shape or x.shape[1:]
        if outputs is None and settings.likelihood == "categorical" and np.issubdtype(y.dtype, np.integer):
            outputs = _outputs(settings.data, y)
        elif outputs is None and settings.likelihood != "categorical":
            outputs = 1 if y.ndim == 1 else int(y.shape[-1])
        if scaling is None and ours and settings.inputs == "standardised" and is_own(settings.data):
            scaling = scaling_of(describe(x))
    shape = tuple(int(size) for size in shape)
    if not shape or min(shape) < 1:
        raise ValueError(f"input_shape: got {list(shape) or 'none'}, expected sizes of an example, or --data to read")
    if outputs is None or outputs < 1:
        what = "the number of classes" if settings.likelihood == "categorical" else "how many numbers a target has"
        raise ValueError(f"outputs: got {'none' if outputs is None else outputs}, expected {what}, or --data to read")
    kind = model_file.Kind(settings.model, tuple(shape), outputs, settings.bias, settings.likelihood)
    require_sizes(kind.input_shape, kind.outputs)
    network = network_of(kind.model, kind.input_shape, kind.outputs, kind.bias)
    template_of(network)
    params = models.STARTS[settings.start](network.init(run_keys(settings.seed).init))
    made_by = f"init, seed {settings.seed}" + (", designed" if settings.start == "designed" else "")
    if settings.checkpoint is not None:
        params, made_by = model_file.read_checkpoint(settings.checkpoint, params), "init, a checkpoint"
    model_file.write(settings.out, kind, params, made_by, scaling)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    mark = model_file.Model(kind, network, params, made_by, scaling).fingerprint[:12]
    print(f"{settings.out}: {kind.model}, {size} parameters, inputs {_said(scaling)}, {mark}")


def _outputs(source: str, y: Any) -> int:
    """An output for every class from 0 to the largest label, none of which may be without examples.

    Raises:
        ValueError: labels with gaps.
    """
    found = np.unique(y)
    if len(found) <= found[-1] or found[0] < 0:
        labels = ", ".join(map(str, found[:4])) + (" …" if len(found) > 4 else "")
        raise ValueError(
            f"data: {source}: got labels {labels}, {len(found)} classes of {int(found[-1]) + 1}: number them "
            f"0 to {len(found) - 1} in all silos alike, or say --outputs {int(found[-1]) + 1}"
        )
    return int(found[-1]) + 1


def _said(scaling: Scaling | None) -> str:
    return "as they are" if scaling is None else f"scaled by {scaling.mean.size} means and spreads"
