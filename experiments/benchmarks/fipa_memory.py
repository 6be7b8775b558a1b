"""Peak memory of a FIPA round on a network of a million parameters with 20 clients, in a process of its own.

Clients of random images train an MLP for a few steps, find the top eigenpairs of their Fisher information and are
stacked: 20 · 10 vectors of a million numbers are 0.8 GB. The server takes its step from all of them.
"""

import dataclasses
import json
import sys
import time
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks import side_by_side
from experiments.benchmarks.growth import peak_bytes
from experiments.lib import common
from fedfisher_jax import Federation, LocalTraining, categorical, cohort, models, rounds
from fedfisher_jax.merge import fipa

SHAPE, CLASSES, HIDDEN = (28, 28, 1), 10, (1024, 200)
LIMIT = 4e9  # bytes


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        clients: How many, all in one round.
        examples: Number of a client's examples.
        worker: For the processes that the script starts: settings of one run, as JSON.
    """

    clients: int = 20
    examples: int = 32
    worker: str = ""


def work(clients: int, examples: int, rank: int, hidden: list[int], seed: int) -> dict[str, Any]:
    """One round, in this process."""
    net = models.build("mlp", SHAPE, CLASSES, hidden=hidden)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(clients * examples, *SHAPE)).astype(np.float32)
    y = rng.integers(CLASSES, size=clients * examples).astype(np.int32)
    likelihood = categorical()
    training = LocalTraining(net.apply, likelihood, optax.sgd(0.01), epochs=1, batch_size=examples)
    federation = Federation(training, fipa(net.apply, likelihood, rank=rank), clients)
    who = cohort(x, y, np.split(np.arange(len(x)), clients))
    state = rounds.init(federation, net.init(jax.random.key(seed)), clients, jax.random.key(seed + 1))
    jax.block_until_ready(state.params)
    idle, began = peak_bytes(), time.perf_counter()
    state, report = jax.block_until_ready(rounds.step(federation, state, who, strategy="sequential"))
    return {
        "seconds": time.perf_counter() - began,
        "peak_bytes": peak_bytes(),
        "idle_bytes": idle,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "joint_rank": int(report.diagnostics["joint_rank"]),
        "moved": float(report.moved),
    }


def run(**one: Any) -> dict[str, Any]:
    """One run, in a process of its own."""
    return side_by_side.worker("fipa_memory", one)


def main() -> None:
    """Runs what is missing and reports; with --worker one run."""
    if "--worker" in sys.argv:
        print(json.dumps(work(**json.loads(sys.argv[sys.argv.index("--worker") + 1]))))
        return
    settings = common.command_line(Settings, __doc__, quick={"clients": 3, "examples": 8})
    ranks, hidden = ((1, 2), (16,)) if settings.quick else ((1, 5, 10), HIDDEN)
    one = {"clients": settings.clients, "examples": settings.examples, "hidden": list(hidden), "seed": settings.seed}
    records = common.run_all(settings.out, [one | {"rank": rank} for rank in ranks], run)
    rows, stacks = [], []
    for record in records:
        who, found = record["settings"], record["result"]
        stacks.append(4 * who["clients"] * who["rank"] * found["parameters"])
        sizes = [stacks[-1], found["idle_bytes"], found["peak_bytes"]]
        cells = [who["clients"], found["parameters"], *[f"{size / 1e9:.2f}" for size in sizes]]
        rows.append([who["rank"], *cells, f"{found['seconds']:.1f}", found["joint_rank"]])
    text = "One round of FIPA, a process of its own for each rank; memory in GB (10⁹ bytes); compilation included.\n\n"
    header = ["rank", "clients", "parameters", "clients' vectors", "idle", "peak", "seconds", "joint rank"]
    text += common.markdown_table(header, rows)
    fig, axes = common.figure()
    axes[0, 0].plot(ranks, [r["result"]["peak_bytes"] / 1e9 for r in records], "o-", label="peak")
    axes[0, 0].plot(ranks, np.array(stacks) / 1e9, "s--", label="clients' vectors")
    axes[0, 0].set(xlabel="rank", ylabel="GB", ylim=(0, None))
    axes[0, 0].legend()
    peak = records[-1]["result"]["peak_bytes"]
    summary = {"peak_gb": peak / 1e9, "within_4_gb": peak < LIMIT, "rank": ranks[-1]}
    common.report(settings.out, text, summary | {"parameters": records[-1]["result"]["parameters"]}, fig)


if __name__ == "__main__":
    main()
