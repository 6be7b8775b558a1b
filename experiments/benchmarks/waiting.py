"""How long a command takes when its programs must be compiled, and when the user's cache has them.

`fedfisher run` as the demo, on digits, and on Fashion-MNIST with LeNet and the paper's CNN, each in processes of its
own: with an empty cache, then with what that one left, in turn. But for the demo clients train one local epoch, so that
compiling is much of the first; imports, reading data and computing are in both. `fedfisher list` is what the command
takes to start. With `--before COMMIT` the same commands of that commit run in the same rounds.
"""

import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.benchmarks import side_by_side
from experiments.lib import common, provenance

RUN = ("run", "--clients", "5", "--epochs", "1")
FASHION = ("--dataset", "fashion_mnist")
START = "import sys; from fedfisher_jax.cli import main; sys.exit(main())"  # older commits have no cli.__main__
COMMANDS: dict[str, tuple[str, ...]] = {
    "the demo": ("run",),
    "digits, FedAvg and K-FAC": (*RUN, "--rules", "fedavg", "fedfisher-kfac"),
    "LeNet, FedAvg and K-FAC": (*RUN, *FASHION, "--model", "lenet", "--rules", "fedavg", "fedfisher-kfac"),
    "CNN, FedAvg": (*RUN, *FASHION, "--model", "cnn", "--rules", "fedavg"),
    "list": ("list",),
}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        rounds: Runs of every command with every cache.
        before: Commit of this repository whose commands are timed beside today's; none if empty.
    """

    rounds: int = 3
    before: str = ""


def seconds_of(words: tuple[str, ...], tree: Path, cache: Path) -> float:
    """Run a command of the code in `tree` with the user's cache in `cache`."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    path = os.pathsep.join(filter(None, (str(tree), environment.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        out = ("--out", str(Path(folder) / "run")) if words[0] == "run" else ()
        began = time.perf_counter()
        command = [sys.executable, "-c", START, *words, *out]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, env=environment | {"PYTHONPATH": path})
        return time.perf_counter() - began


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The repository's files as they were at a commit."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], check=True, capture_output=True, cwd=provenance.ROOT)
        subprocess.run(["tar", "-x", "-C", folder], check=True, input=archive.stdout)
        yield Path(folder)


def run(name: str, rounds: int, seed: int, before: str = "") -> dict[str, Any]:
    """One command, with an empty cache and with a filled one, and as it was."""
    del seed
    busy, found = side_by_side.load(), {"before": [], "empty": [], "filled": []}
    with checkout(before) if before else contextlib.nullcontext(provenance.ROOT) as old:
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                if before:
                    found["before"].append(seconds_of(COMMANDS[name], old, Path(folder) / "old"))
                for cache in ("empty", "filled"):
                    found[cache].append(seconds_of(COMMANDS[name], provenance.ROOT, Path(folder) / "cache"))
    return {"seconds": found, "load_before": busy}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__)
    rounds, names = (1, ("list",)) if settings.quick else (settings.rounds, tuple(COMMANDS))
    grid = [{"name": name, "rounds": rounds, "seed": settings.seed, "before": settings.before} for name in names]
    rows, summary = [], {}
    for record in common.run_all(settings.out, grid, run):
        name, found = record["settings"]["name"], record["result"]
        medians = {when: statistics.median(times) for when, times in found["seconds"].items() if times}
        cells = [f"{medians[when]:.1f}" if when in medians else "" for when in ("before", "empty", "filled")]
        rows.append([name, *cells, f"{medians['empty'] - medians['filled']:.1f}"])
        summary[name] = medians | {"load_before": found["load_before"]}
    header = ["", "before, s", "empty cache, s", "filled cache, s", "difference"]
    common.report(settings.out, common.markdown_table(header, rows), summary)


if __name__ == "__main__":
    main()
