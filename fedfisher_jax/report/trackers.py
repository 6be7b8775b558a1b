"""Experiment trackers: each is a context that gives a function `on_record`, which is told every record of a run.

A record holds "kind" and "name" (of a rule, a client or a reference), perhaps "round", and numbers. The function goes
where records come from: `run_rounds(on_record=…)`, a loop over `compare`, or by command `fedfisher run --track NAME`.
All write to a folder, with no account and no network; the trackers' own tools send it on if they are asked to.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ._records import numbers_of

OnRecord = Callable[[Mapping[str, Any]], None]
Folder = str | os.PathLike[str]


@contextlib.contextmanager
def tensorboard(folder: Folder, settings: Mapping[str, Any] | None = None) -> Iterator[OnRecord]:
    """Write TensorBoard's event files, by tensorboardX; `tensorboard --logdir FOLDER` shows them."""
    writer = _import("tensorboardX").SummaryWriter(os.fspath(folder))
    if settings:
        writer.add_text("settings", _listed(settings))

    def on_record(record: Mapping[str, Any]) -> None:
        for name, value in _named(record).items():
            writer.add_scalar(name, value, _step(record))

    with contextlib.closing(writer):
        yield on_record


@contextlib.contextmanager
def wandb(folder: Folder, settings: Mapping[str, Any] | None = None) -> Iterator[OnRecord]:
    """Write a run of Weights & Biases offline; `wandb sync FOLDER/wandb/offline-run-…` sends it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    module = _import("wandb")
    run = module.init(
        project="fedfisher", dir=os.fspath(folder), mode="offline", config=_plain(settings), settings={"silent": True}
    )
    run.define_metric("*", step_metric="round")
    try:
        yield lambda record: run.log({"round": _step(record), **_named(record)})
    finally:
        run.finish()


@contextlib.contextmanager
def mlflow(folder: Folder, settings: Mapping[str, Any] | None = None) -> Iterator[OnRecord]:
    """Write a run to MLflow's store FOLDER/mlflow.db; `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    client = _import("mlflow").MlflowClient(f"sqlite:///{Path(folder).resolve()}/mlflow.db")
    found = client.get_experiment_by_name("fedfisher")
    place = found.experiment_id if found else client.create_experiment("fedfisher")
    run = client.create_run(place).info.run_id
    for name, value in _plain(settings).items():
        client.log_param(run, name, value)

    def on_record(record: Mapping[str, Any]) -> None:
        for name, value in _named(record).items():
            client.log_metric(run, name.replace("+", "."), value, step=_step(record))

    try:
        yield on_record
    finally:
        client.set_terminated(run)


@contextlib.contextmanager
def trackio(folder: Folder, settings: Mapping[str, Any] | None = None) -> Iterator[OnRecord]:
    """Write a run of Trackio to FOLDER; `TRACKIO_DIR=FOLDER trackio show` shows it."""
    os.environ["TRACKIO_DIR"] = os.fspath(Path(folder).resolve())  # which it reads when it is imported
    module = _import("trackio")
    run = module.init(project="fedfisher", config=_plain(settings), embed=False)
    try:
        yield lambda record: run.log(_named(record), step=_step(record))
    finally:
        run.finish()


TRACKERS = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow, "trackio": trackio}
"""The trackers by name."""


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        tracker = "tensorboard" if name == "tensorboardX" else name
        raise ImportError(f"track: {tracker} needs more: pip install 'fedfisher-jax[{tracker}]'") from error


def _named(record: Mapping[str, Any]) -> dict[str, float]:
    of = record.get("name")
    found = {name: value for name, value in numbers_of(record).items() if name != "round"}
    return {f"{of}/{name}": value for name, value in found.items()} if of else found


def _step(record: Mapping[str, Any]) -> int:
    return int(record.get("round", 0))


def _plain(settings: Mapping[str, Any] | None) -> dict[str, str]:
    return {name: str(value) for name, value in (settings or {}).items()}


def _listed(settings: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in settings.items())
