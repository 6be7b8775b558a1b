"""`fedfisher example`: five silos on digits, every step a process of its own, as on machines of their own."""

import dataclasses
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from .. import data
from .._files import require_folder
from ._ranges import require_ranges

CLIENTS, ALPHA = 5, 0.1
MARK = ".fedfisher-example"


@dataclasses.dataclass(frozen=True)
class ExampleSettings:
    """Five silos with uneven digits, end to end: init, measure five times, merge, evaluate; under two minutes."""

    out: Path = Path("runs/silos")
    """Folder of the silos' data and of all files."""
    rule: str = "fedfisher-kfac"
    """A name of `fedfisher list`."""
    budget: float | None = None
    """Compress the silos' files to this multiple of FedAvg's bits."""
    epochs: int = 30
    """Local epochs."""
    seed: int = 0
    """Seed, as in `fedfisher run`, whose merged model this is when nothing is compressed."""


def example(settings: ExampleSettings) -> None:
    """Write the silos' data and run the commands, printing each.

    Raises:
        ValueError: a command failed; its own message is printed above.
    """
    require_ranges(settings)
    out, dataset = require_folder(settings.out), data.load("digits")
    if any(out.iterdir()) and not (out / MARK).exists():  # somebody's silo0.npz may lie there
        raise ValueError(f"out: got {out}, expected a folder that is empty, or that an example made")
    (out / MARK).touch()
    parts = data.split("dirichlet-client", dataset.train_y, CLIENTS, seed=settings.seed, alpha=ALPHA)
    for number, part in enumerate(parts):
        np.savez(out / f"silo{number}.npz", train_x=dataset.train_x[part], train_y=dataset.train_y[part])
    np.savez(out / "test.npz", test_x=dataset.test_x, test_y=dataset.test_y)

    seed = ["--seed", str(settings.seed)]
    _command(out, "init", "--model", "mlp", "--input-shape", "8", "8", "1", "--outputs", "10", "--overwrite", *seed)
    payloads = [f"payload{number}.safetensors" for number in range(CLIENTS)]
    for number, file in enumerate(payloads):
        mine = ["--data", f"silo{number}.npz", "--silo", str(number), "--out", file]
        how = ["--rule", settings.rule, "--epochs", str(settings.epochs), *seed]
        less = [] if settings.budget is None else ["--budget", str(settings.budget)]
        _command(out, "measure", *mine, *how, *less)
    _command(out, "merge", *payloads)
    for file in ("start.safetensors", "global.safetensors"):
        _command(out, "evaluate", file, "--data", "test.npz")


def _command(folder: Path, *arguments: str) -> None:
    print(f"$ fedfisher {shlex.join(arguments)}", flush=True)
    run = subprocess.run(
        [sys.executable, "-m", "fedfisher_jax.cli", *arguments], cwd=folder, env=os.environ, check=False
    )
    if run.returncode:
        raise ValueError(f"fedfisher {arguments[0]} failed with exit status {run.returncode}")
