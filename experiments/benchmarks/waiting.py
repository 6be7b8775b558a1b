"""How long a command takes when its programs must be compiled, and when the user's cache has them.

`fedfisher run` on digits, and on Fashion-MNIST with LeNet and the paper's CNN, each in processes of its own: with an
empty cache, then with what that one left, in turn. One local epoch, so that compiling is much of the first; imports,
reading data and computing are in both. `fedfisher list` is what the command takes to start.
"""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks import side_by_side
from experiments.lib import common, provenance

RUN = ("run", "--clients", "5", "--epochs", "1", "--overwrite")
FASHION = ("--dataset", "fashion_mnist")
COMMANDS: dict[str, tuple[str, ...]] = {
    "digits, FedAvg and K-FAC": (*RUN, "--rules", "fedavg", "fedfisher-kfac"),
    "LeNet, FedAvg and K-FAC": (*RUN, *FASHION, "--model", "lenet", "--rules", "fedavg", "fedfisher-kfac"),
    "CNN, FedAvg": (*RUN, *FASHION, "--model", "cnn", "--rules", "fedavg"),
    "list": ("list",),
}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        rounds: Pairs of runs of every command.
    """

    rounds: int = 3


def seconds_of(words: tuple[str, ...], cache: Path, folder: Path) -> float:
    """Run a command with the user's cache in `cache`."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    out = ("--out", str(folder / "run")) if words[0] == "run" else ()
    path = os.pathsep.join(filter(None, (str(provenance.ROOT), environment.get("PYTHONPATH"))))
    began = time.perf_counter()
    command = [sys.executable, "-m", "fedfisher_jax.cli", *words, *out]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, env=environment | {"PYTHONPATH": path})
    return time.perf_counter() - began


def run(name: str, rounds: int, seed: int) -> dict[str, Any]:
    """One command, with an empty cache and with a filled one."""
    del seed
    busy, found = side_by_side.load(), {"empty": [], "filled": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for cache in found:
                found[cache].append(seconds_of(COMMANDS[name], Path(folder) / "cache", Path(folder)))
    return {"seconds": found, "load_before": busy}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__)
    rounds, names = (1, ("list",)) if settings.quick else (settings.rounds, tuple(COMMANDS))
    grid = [{"name": name, "rounds": rounds, "seed": settings.seed} for name in names]
    rows, summary = [], {}
    for record in common.run_all(settings.out, grid, run):
        name, found = record["settings"]["name"], record["result"]
        empty, filled = (statistics.median(found["seconds"][cache]) for cache in ("empty", "filled"))
        rows.append([name, f"{empty:.1f}", f"{filled:.1f}", f"{empty - filled:.1f}"])
        summary[name] = {"empty": empty, "filled": filled, "load_before": found["load_before"]}
    header = ["", "empty cache, s", "filled cache, s", "difference"]
    common.report(settings.out, common.markdown_table(header, rows), summary)


if __name__ == "__main__":
    main()
