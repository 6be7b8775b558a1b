"""FedAvg over rounds: `rounds.step` against Flower's simulation and BlazeFL, on PyTorch, and fedjax, side by side.

LeNet, Fashion-MNIST dealt out evenly to 100 clients, 10 of which train one epoch of plain SGD in a round. A round's
time is taken inside each process, from the end of the first round on, without starting and compiling; both are in the
seconds of 100 rounds, which count from the start of a fresh process. Accuracies tell that all sides train; starts and
samples of clients are each side's own, so they differ by some points in few rounds. BlazeFL's best arrangement
counts: one client after the other with one thread or all, or as many clients at a time as there are cores. fedjax runs
one after the other, each step with all threads. "training" is the part of a round that clients' training takes; ours is
timed by itself, in the same rounds.
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks import side_by_side
from experiments.benchmarks.side_by_side import Contender, Found, Task
from experiments.lib import common
from fedfisher_jax import (
    Federation,
    LocalTraining,
    categorical,
    cohort,
    data,
    evaluate,
    fedavg,
    federate,
    models,
    rounds,
)

OURS, ALONE, FLOWER, FEDJAX = "ours", "ours, training alone", "Flower, an actor per core", "fedjax"
RATE, BATCH = 0.05, 50


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        rounds: Alternating runs of every contender.
        length: Federated rounds of a run, after a first one.
        clients: Registered clients.
        sampled: Clients of a round.
        whole: Federated rounds of the runs that are timed from the start of their process.
    """

    rounds: int = 5
    length: int = 10
    clients: int = 100
    sampled: int = 10
    whole: int = 100


QUICK: dict[str, Any] = {"rounds": 1, "length": 1, "clients": 10, "sampled": 2, "whole": 2}


def federation_of(task: Task, clients: int) -> tuple[Any, ...]:
    """The settings, the first so many clients, the first model and the test examples."""
    with np.load(task.arrays) as arrays:
        x, y, test = arrays["x"], arrays["y"], (arrays["test_x"], arrays["test_y"])
    net, likelihood = models.build("lenet", x.shape[1:], 10), categorical()
    training = LocalTraining(net.apply, likelihood, optax.sgd(task.rate), epochs=1, batch_size=task.batch_size)
    federation = Federation(training, fedavg(net.apply, likelihood), task.sampled)
    who = cohort(x, y, np.split(np.arange(len(x)), task.clients)[:clients])
    return federation, who, net.init(jax.random.key(task.seed)), test


def ours(task: Task, length: int, strategy: str | None) -> Callable[[], Found]:
    """Contender: so many rounds after a first one."""
    federation, who, start, test = federation_of(task, task.clients)

    def run() -> Found:
        state, began = rounds.init(federation, start, task.clients, jax.random.key(task.seed)), 0.0
        for number in range(length + 1):
            state, _ = rounds.step(federation, state, who, strategy=strategy)
            if number == 0:
                jax.block_until_ready(state.params)
                began = time.perf_counter()
        jax.block_until_ready(state.params)
        seconds = (time.perf_counter() - began) / length
        training = federation.training
        found = evaluate(training.apply, training.likelihood, state.params, *test)
        return {"seconds": seconds, "accuracy": float(found.accuracy)}

    return run


def alone(task: Task, length: int) -> Callable[[], Found]:
    """Contender: the training of so many rounds' clients and nothing else."""
    federation, who, start, _ = federation_of(task, task.sampled)

    def run() -> Found:
        began = time.perf_counter()
        for _ in range(length):
            jax.block_until_ready(federate.train_clients(federation.training, start, who, jax.random.key(0))[0])
        return {"seconds": (time.perf_counter() - began) / length}

    return run


def contenders(task: Task, length: int) -> dict[str, tuple[str, tuple[Any, ...], dict[str, str] | None]]:
    """Name → factory, its arguments, its environment."""
    cores = side_by_side.cores()
    devices = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={cores}"}
    one = side_by_side.ONE_THREAD
    return {
        OURS: ("rounds:ours", (task, length, None), None),
        ALONE: ("rounds:alone", (task, length), None),
        f"{OURS}, a device per core": ("rounds:ours", (task, length, "devices"), devices),
        FLOWER: ("peers:flower", (task, length, cores), {**one, "FLWR_TELEMETRY_ENABLED": "0"}),
        FEDJAX: ("peer_fedjax:rounds", (task, length), None),
        "BlazeFL, 1 thread": ("peers:blazefl", (task, length, 0, 1), one),
        "BlazeFL, all threads": ("peers:blazefl", (task, length, 0, cores), None),
        "BlazeFL, clients in threads": ("peers:blazefl", (task, length, cores, 1), one),
    }


def contest(task: Task, length: int, repeats: int) -> dict[str, list[Found]]:
    """What each contender found in each of the alternating runs."""
    ready = {
        name: Contender(factory, *arguments, env=env)
        for name, (factory, arguments, env) in contenders(task, length).items()
    }
    found: dict[str, list[Found]] = {name: [] for name in ready}
    with side_by_side.ready(ready):
        for number in range(repeats):
            for name in list(ready) if number % 2 == 0 else reversed(list(ready)):
                ready[name]()
                found[name].append(ready[name].value())
    return found


def whole(task: Task, length: int, names: Sequence[str]) -> dict[str, float]:
    """Seconds from the start of a process to the end of its last round, first compilation included."""
    seconds = {}
    for name in names:
        factory, arguments, env = contenders(task, length - 1)[name]
        began = time.perf_counter()
        contender = Contender(factory, *arguments, env=env)  # which is done once it has run
        contender.finish()
        seconds[name] = time.perf_counter() - began
        contender.close()
    return seconds


def run(clients: int, sampled: int, length: int, repeats: int, whole_rounds: int, seed: int) -> dict[str, Any]:
    """The contest, and the runs from the start."""
    found, busy = data.load("fashion_mnist"), side_by_side.load()
    size = len(found.train_y) // clients * clients
    order = np.random.default_rng(seed).permutation(len(found.train_y))[:size]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(path, x=found.train_x[order], y=found.train_y[order], test_x=found.test_x, test_y=found.test_y)
        task = Task(str(path), clients, sampled, BATCH, RATE, seed)
        results = contest(task, length, repeats)
        seconds = {name: [one["seconds"] for one in runs] for name, runs in results.items()}
        blazefl = side_by_side.fastest(seconds, [name for name in seconds if name.startswith("BlazeFL")])
        rivals = (FLOWER, FEDJAX, blazefl)
        from_start = whole(task, whole_rounds, (OURS, *rivals))
    ratios = {rival: side_by_side.ratio(seconds, OURS, rival) for rival in rivals}
    training = {name: median(runs, "training") for name, runs in results.items() if "training" in runs[0]}
    ours_alone = [a / b for a, b in zip(seconds.pop(ALONE), seconds[OURS], strict=True)]
    return {
        "seconds": seconds,
        "blazefl_best": blazefl,
        "ratios": ratios,
        "from_start": from_start,
        "accuracy": {name: median(results[name], "accuracy") for name in seconds},
        "training": {OURS: statistics.median(ours_alone), **training},
        "load_before": busy,
    }


def median(runs: Sequence[Found], name: str) -> float:
    """The median over runs of something found."""
    return statistics.median(one[name] for one in runs)


def main() -> None:
    """Runs what is missing and reports."""
    side_by_side.require("torch", "flwr", "ray", "blazefl", "fedjax")
    settings = common.command_line(Settings, __doc__)
    if settings.quick:
        settings = dataclasses.replace(settings, **QUICK)
    one = {
        "clients": settings.clients,
        "sampled": settings.sampled,
        "length": settings.length,
        "repeats": settings.rounds,
        "whole_rounds": settings.whole,
        "seed": settings.seed,
    }
    (record,) = common.run_all(settings.out, [one], run)
    found = record["result"]
    rows = []
    for name, seconds in found["seconds"].items():
        ratio = side_by_side.show(found["ratios"][name]) if name in found["ratios"] else ""
        start = f"{found['from_start'][name]:.1f}" if name in found["from_start"] else ""
        share = f"{100 * found['training'][name]:.0f} %" if name in found["training"] else ""
        right, rate = f"{100 * found['accuracy'][name]:.1f}", f"{1 / statistics.median(seconds):.2f}"
        rows.append([name, rate, ratio, share, right, start])
    header = ["", "rounds per second", "ours is faster by", "training", "accuracy, %", f"{settings.whole} rounds, s"]
    text = (
        f"{settings.clients} clients, {settings.sampled} of them in a round; accuracy after {settings.length + 1}.\n\n"
    )
    summary = {
        "vs_flower": found["ratios"][FLOWER]["median"],
        "vs_blazefl": found["ratios"][found["blazefl_best"]]["median"],
        "vs_fedjax": found["ratios"][FEDJAX]["median"],
        "rounds_per_second": {name: 1 / statistics.median(seconds) for name, seconds in found["seconds"].items()},
        "training": found["training"],
        "accuracy": found["accuracy"],
        "seconds_from_start": found["from_start"],
        "python": sys.version.split()[0],
        "load_before": found["load_before"],
    }
    common.report(settings.out, text + common.markdown_table(header, rows), summary)


if __name__ == "__main__":
    main()
