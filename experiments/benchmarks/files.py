"""Time and peak memory of `fedfisher merge` against the number of payload files, a fresh process for every run.

Silos are made of 300 that were really trained (LeNet, 60 Fashion-MNIST examples each, one epoch): each file is one of
these with its parameters moved by a thousandth of their size and its statistics scaled, under a number of its own.
Smaller merges take the first of the files of the largest. `fedfisher-kfac` reads its files again for each step of the
solver where they are more than 64 MiB (from 95 on); the others keep one sum.
"""

import dataclasses
import functools
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import side_by_side
from experiments.benchmarks.growth import peak_bytes
from experiments.lib import common
from fedfisher_jax import categorical, data, models, payload
from fedfisher_jax.cli._merge import MergeSettings, merge
from fedfisher_jax.federate import LocalTraining, run_keys
from fedfisher_jax.merge import catalogue
from fedfisher_jax.silos import _model_file as model_file
from fedfisher_jax.silos import silo_cohort, train_and_measure

TRAINED, EXAMPLES = 300, 60
RULES = ("fedavg", "fedfisher-diag", "fedfisher-kfac", "analytic")


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        rules: Rules to merge by.
        sizes: Numbers of files.
        worker: For the processes that the script starts: settings of one run, as JSON.
    """

    rules: tuple[str, ...] = RULES
    sizes: tuple[int, ...] = (20, 200, 2000, 10000)
    worker: str = ""


def write_files(folder: Path, rule_name: str, count: int, seed: int) -> int:
    """Write the start and so many payload files; returns the bytes of one of them."""
    dataset = data.load("fashion_mnist")
    network, likelihood, draw = models.build("lenet", (28, 28, 1), 10), categorical(), np.random.default_rng(seed)
    start, keys = network.init(jax.random.key(seed)), run_keys(seed)
    kind = model_file.Kind("lenet", (28, 28, 1), 10)
    model_file.write(folder / "start.safetensors", kind, start, "benchmark")
    mark = model_file.read(folder / "start.safetensors").fingerprint
    rule = catalogue.named_rule(rule_name, network.apply, likelihood)
    training = LocalTraining(network.apply, likelihood, optax.sgd(0.01, momentum=0.9), 1, 64) if rule.trains else None
    trained = []
    for number in range(min(TRAINED, count)):
        rows = draw.integers(len(dataset.train_x), size=EXAMPLES)
        silo = silo_cohort(dataset.train_x[rows], dataset.train_y[rows], number, 64)
        trained.append(jax.tree.map(np.asarray, train_and_measure(training, rule, start, silo, keys)))
    size = 0
    (folder / "sent").mkdir()
    for number in range(count):
        sent = trained[number % len(trained)]
        move = lambda leaf: (leaf * (1 + 1e-3 * draw.normal(size=leaf.shape))).astype(leaf.dtype)  # noqa: E731
        factor = np.float32(draw.uniform(0.5, 2.0))
        statistics = jax.tree.map(lambda leaf, by=factor: leaf * by, sent.statistics)
        sent = sent._replace(params=jax.tree.map(move, sent.params), statistics=statistics)
        kind_name = None if sent.kind is None else sent.kind.name
        about = payload.About(rule_name, "categorical", mark, kind_name, silo=number)
        written = payload.dumps(sent, about)
        (folder / "sent" / f"{number}.safetensors").write_bytes(written)
        size = len(written)
    return size


def work(folder: str, files: int) -> dict[str, Any]:
    """One merge, in this process."""
    place = Path(folder)
    sent = tuple(place / "sent" / f"{number}.safetensors" for number in range(files))
    jax.block_until_ready(jnp.ones(1))
    idle, began = peak_bytes(), time.perf_counter()
    merge(MergeSettings(sent, place / "start.safetensors", place / "global.safetensors"))
    return {"seconds": time.perf_counter() - began, "peak_bytes": peak_bytes(), "idle_bytes": idle}


@functools.lru_cache(maxsize=1)
def written(base: Path, rule: str, most: int, seed: int) -> tuple[Path, int]:
    """The files of a rule, in a folder that takes the place of the last rule's, and the bytes of one of them."""
    for last in base.iterdir():
        shutil.rmtree(last)
    folder = base / rule
    folder.mkdir()
    return folder, write_files(folder, rule, most, seed)


def run(base: Path, most: int, rule: str, files: int, seed: int) -> dict[str, Any]:
    """One merge in a process of its own, of the first of `most` files."""
    folder, size = written(base, rule, most, seed)
    return {**side_by_side.worker("files", {"folder": str(folder), "files": files}), "bytes_of_a_file": size}


def main() -> None:
    """Runs what is missing and reports; with --worker one run."""
    if "--worker" in sys.argv:
        print(json.dumps(work(**json.loads(sys.argv[sys.argv.index("--worker") + 1]))))
        return
    settings = common.command_line(Settings, __doc__, quick={"sizes": (2, 8)})
    grid = [{"rule": rule, "files": n, "seed": settings.seed} for rule in settings.rules for n in settings.sizes]
    with tempfile.TemporaryDirectory() as base:
        records = common.run_all(settings.out, grid, functools.partial(run, Path(base), max(settings.sizes)))
    mib, rows = 2.0**20, []
    for record in records:
        who, found = record["settings"], record["result"]
        above = found["peak_bytes"] - found["idle_bytes"]
        cells = [who["rule"], who["files"], f"{found['bytes_of_a_file'] * who['files'] / mib:.1f}"]
        rows.append([*cells, f"{found['seconds']:.1f}", f"{found['peak_bytes'] / mib:.0f}", f"{above / mib:.0f}"])
    fig, axes = common.figure(1, 2, width=4.2)
    peaks: dict[str, dict[int, dict[str, float]]] = {}
    for record in records:
        peaks.setdefault(record["settings"]["rule"], {})[record["settings"]["files"]] = record["result"]
    own = common.rule_colours(peaks)
    for rule, found in peaks.items():
        style = {"color": own[rule], "label": rule}
        axes[0, 0].plot(list(found), [one["seconds"] for one in found.values()], "o-", **style)
        axes[0, 1].plot(list(found), [one["peak_bytes"] / mib for one in found.values()], "o-", **style)
    axes[0, 0].set(xscale="log", yscale="log", xlabel="files", ylabel="seconds, compilation included")
    axes[0, 1].set(xscale="log", xlabel="files", ylabel="peak memory (MiB)", ylim=(0, None))
    axes[0, 0].legend()
    text = (
        "Seconds include compilation; memory in MiB, of the whole process and above what it holds before it reads.\n\n"
    )
    header = ["rule", "files", "MiB of files", "seconds", "peak", "above idle"]
    summary: dict[str, dict[str, float]] = {}
    for rule, found in peaks.items():
        least, most = min(found), max(found)
        ratio = found[most]["peak_bytes"] / found[least]["peak_bytes"]
        summary.setdefault(f"memory_ratio_{most}_vs_{least}", {})[rule] = ratio
    common.report(settings.out, text + common.markdown_table(header, rows), summary, fig)


if __name__ == "__main__":
    main()
