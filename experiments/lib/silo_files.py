"""Silos of a script that write payload files and give them to the commands, as silos do."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedfisher_jax import Cohort, LocalTraining, Update, payload
from fedfisher_jax.federate import RunKeys, measure_clients, train_clients
from fedfisher_jax.merge import Rule
from fedfisher_jax.silos import _model_file as model_file


def quietly(command: Callable[[Any], Any], settings: Any) -> None:
    """Run a command whose words nobody reads."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        command(settings)


def write(
    folder: Path, start_path: Path, rule: Rule, who: Cohort, keys: RunKeys, training: LocalTraining | None
) -> tuple[Path, ...]:
    """Train, unless `training` is None, and measure; every silo's payload file in a new folder, named by its number."""
    start = model_file.read(start_path)
    update = Update(None, start.params)
    if training is not None:
        trained, _ = train_clients(training, start.params, who, keys.train)
        update = Update(trained.params, start.params)
    sent, _ = measure_clients(rule.measure, update, who, keys.measure)
    folder.mkdir()
    paths = []
    for place, number in enumerate(map(int, who.members.number)):
        one = jax.tree.map(lambda leaf, place=place: np.asarray(leaf[place]), sent)
        kind = None if one.kind is None else one.kind.name
        about = payload.About(rule.name, "categorical", start.fingerprint, kind, silo=number)
        paths.append(folder / f"{number}.safetensors")
        payload.write(paths[-1], one, about)
    return tuple(paths)
