"""Local training of many clients: `federate.train_clients` against PyTorch on CPU, side by side.

LeNet on 28×28×1 and the paper's CNN on 32×32×3, on random examples of those shapes (speed does not depend on values).
One epoch of SGD with momentum at batch 64 for each client, from a common start, everything compiled and warmed up.
PyTorch's best arrangement counts: one thread, all threads, or one process per core, each with a share of the clients.
Ours is in a process per core, too, at 32 clients, for comparison: that is no strategy of the library, as docs/scale.md
says.
"""

import dataclasses
import os
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks import side_by_side
from experiments.benchmarks.side_by_side import Contender, Team
from experiments.lib import common
from fedfisher_jax import LocalTraining, categorical, cohort, federate, models
from fedfisher_jax.federate import _map_clients as map_clients

BATCH, POOL = 64, 2048
SHAPES = {"lenet": (28, 28, 1), "cnn": (32, 32, 3)}
STEPS = {"lenet": 8, "cnn": 4}  # of a client's epoch
# Multiplications per example: first convolution; second convolution; dense layers.
PRODUCTS = {
    "lenet": (24 * 24 * 6 * 25, 8 * 8 * 16 * 150, 256 * 120 + 120 * 84 + 84 * 10),
    "cnn": (28 * 28 * 32 * 75, 10 * 10 * 64 * 800, 1600 * 512 + 512 * 128 + 128 * 10),
}
TORCH = {"1 thread": "torch, 1 thread", "threads": "torch, all threads", "processes": "torch, a process per core"}
GREYS = dict(zip(TORCH.values(), ("0.7", "0.45", "0.0"), strict=True))
PROCESSES = "ours, a process per core"


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        rounds: Alternating runs of every contender.
        clients: Cohort sizes; 8 with --quick.
    """

    rounds: int = 5
    clients: tuple[int, ...] = (1, 8, 32, 128)


def ours(network: str, rows: np.ndarray, strategy: str, seed: int, core: int | None = None) -> Callable[[], str]:
    """Contender: one epoch for each client; with `core` on that one alone."""
    if core is not None:
        os.sched_setaffinity(0, {core})  # before JAX counts the cores for its threads, at its first array
    net = models.build(network, SHAPES[network], 10)
    keys = jax.random.split(jax.random.key(seed), 4)
    x = jax.random.normal(keys[0], (POOL, *SHAPES[network]))
    y = jax.random.randint(keys[1], (POOL,), 0, 10)
    start, who = net.init(keys[2]), cohort(x, y, list(rows))
    training = LocalTraining(net.apply, categorical(), optax.sgd(0.01, momentum=0.9), epochs=1, batch_size=BATCH)
    return lambda: federate.train_clients(training, start, who, keys[3], strategy=strategy)[1].strategy


def flop_per_step(network: str) -> int:
    """Operations of a training step: forward, gradients of weights and of inputs, the first layer's input not."""
    first, *rest = PRODUCTS[network]
    return 2 * BATCH * (2 * first + 3 * sum(rest))


def run(network: str, clients: int, rounds: int, steps: int, strategies: list[str], seed: int) -> dict[str, Any]:
    """One network at one cohort size."""
    cores = side_by_side.cores()
    rows = np.random.default_rng(seed).integers(POOL, size=(clients, steps * BATCH))
    devices = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={cores}"}

    def theirs(part: np.ndarray, threads: int) -> Contender:
        env = side_by_side.ONE_THREAD if threads == 1 else None
        arguments = (network, SHAPES[network], POOL, part, BATCH, threads, seed)
        return Contender("torch_side:train", *arguments, env=env)

    contenders: dict[str, Contender | Team] = {
        f"ours, {strategy}": Contender(
            "training:ours", network, rows, strategy, seed, env=devices if strategy in ("devices", "pmap") else None
        )
        for strategy in strategies
    }
    contenders[TORCH["1 thread"]] = theirs(rows, 1)
    if cores > 1:
        contenders[TORCH["threads"]] = theirs(rows, cores)
        parts = np.array_split(rows, min(cores, clients))
        contenders[TORCH["processes"]] = Team([theirs(part, 1) for part in parts])
        if len(strategies) > 1 and hasattr(os, "sched_setaffinity"):
            each = zip(parts, sorted(os.sched_getaffinity(0)), strict=False)
            team = [Contender("training:ours", network, part, "sequential", seed, core) for part, core in each]
            contenders[PROCESSES] = Team(team)
    contenders["peak"] = Contender("side_by_side:matrix_product")
    busy = side_by_side.load()
    with side_by_side.ready(contenders):
        seconds = side_by_side.alternate(contenders, rounds)
    best = side_by_side.fastest(seconds, [name for name in seconds if name.startswith("torch")])
    default = f"ours, {strategies[0]}"
    peak = side_by_side.PEAK_FLOP / min(seconds.pop("peak"))
    rate = {name: clients * steps / statistics.median(times) for name, times in seconds.items()}
    return {
        "steps_per_second": rate,
        "torch_best": best,
        "ratio": side_by_side.ratio(seconds, default, best),
        "peak_gflops": peak / 1e9,
        "share_of_peak": rate[default] * flop_per_step(network) / peak,
        "seconds": seconds,
        "load_before": busy,
    }


def main() -> None:
    """Runs what is missing and reports."""
    side_by_side.require("torch")
    settings = common.command_line(Settings, __doc__)
    sizes, rounds = ((8,), 2) if settings.quick else (settings.clients, settings.rounds)
    default = map_clients.default_strategy()
    others = [s for s in map_clients.STRATEGIES if s != default]
    grid = [
        {
            "network": network,
            "clients": clients,
            "rounds": rounds,
            "steps": 2 if settings.quick else STEPS[network],
            "strategies": [default, *others] if clients == 32 or settings.quick else [default],
            "seed": settings.seed,
        }
        for network in SHAPES
        for clients in sizes
    ]
    records = common.run_all(settings.out, grid, run)

    names = [*(f"ours, {s}" for s in (default, *others)), PROCESSES, *TORCH.values()]
    rows, fig_axes = [], common.figure(1, len(SHAPES), height=3.4)
    for record in records:
        who, found = record["settings"], record["result"]
        rates = found["steps_per_second"]
        cells = [f"{rates[name]:.0f}" if name in rates else "" for name in names]
        share = f"{100 * found['share_of_peak']:.0f} %"
        rows.append([who["network"], who["clients"], *cells, side_by_side.show(found["ratio"]), share])
    for axis, network in zip(fig_axes[1][0], SHAPES, strict=True):
        mine = [r for r in records if r["settings"]["network"] == network]
        for name in names:
            points = [
                (r["settings"]["clients"], r["result"]["steps_per_second"][name])
                for r in mine
                if name in r["result"]["steps_per_second"]
            ]
            if points:
                style = {"fmt": "o-"} if name.startswith("ours") else {"fmt": "s--", "color": GREYS[name]}
                axis.errorbar(*zip(*points, strict=True), label=name, **style)
        axis.set(title=network, xlabel="clients", ylabel="client-steps per second", ylim=(0, None))
        axis.set_xscale("log", base=2)
    fig_axes[0].legend(*fig_axes[1][0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    text = f"Client-steps of batch {BATCH} per second; ratio to PyTorch's best with its range over rounds.\n\n"
    text += common.markdown_table(["network", "clients", *names, "ratio", "share of peak"], rows)
    headline = 32 if 32 in sizes else max(sizes)
    at = {r["settings"]["network"]: r["result"] for r in records if r["settings"]["clients"] == headline}
    summary = {
        **{f"{network}_{headline}_clients_vs_torch": found["ratio"]["median"] for network, found in at.items()},
        "share_of_peak": {network: found["share_of_peak"] for network, found in at.items()},
        "peak_gflops": {network: found["peak_gflops"] for network, found in at.items()},
        "load_before": {network: found["load_before"] for network, found in at.items()},
    }
    common.report(settings.out, text, summary, fig_axes[0])


if __name__ == "__main__":
    main()
