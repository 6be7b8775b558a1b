"""Training, Fishers and the server's solve on this machine's accelerator, and PyTorch's training on the same one.

Every run is a process of its own. Clients train one epoch of a few steps of batch 64 from a common start, all in one
program by vmap (group 0) or in groups of so many; "fisher" is Monte-Carlo K-FAC of 64 examples a client; "solve" merges
five clients' K-FAC payloads by the default solver. PyTorch, where it is installed, trains one client after the other,
and all at once by `torch.func` and vmap. Compilation is what the first run takes longer than the median of the others;
memory is the device's own count, where it has one, else the most that the process held. A run that fails, for want of
memory say, is a line that says why. On a machine without accelerator it runs on the processor: then take a small size.
"""

import dataclasses
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import side_by_side
from experiments.benchmarks.growth import peak_bytes
from experiments.lib import common
from fedfisher_jax import LocalTraining, Update, categorical, cohort, federate, fedfisher, models, solve
from fedfisher_jax._trees import stack

BATCH, POOL, SILOS = 64, 2048, 5
SHAPES = {"lenet": (28, 28, 1), "cnn": (32, 32, 3), "resnet18": (32, 32, 3)}
KINDS = ("training", "fisher", "solve", "torch, one by one", "torch, vmap")
TORCH = ("lenet", "cnn")  # the networks that the other side has


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        rounds: Runs after the first one.
        networks: Which of lenet, cnn and resnet18.
        clients: Numbers of clients.
        groups: How many clients train at once; 0 for all of them.
        steps: Training steps of a client.
        dtype: float32, or bfloat16 for parameters and inputs (PyTorch stays at float32).
    """

    rounds: int = 3
    networks: tuple[str, ...] = ("lenet", "cnn", "resnet18")
    clients: tuple[int, ...] = (32, 128, 512)
    groups: tuple[int, ...] = (0, 32)
    steps: int = 8
    dtype: str = "float32"


QUICK = {"rounds": 1, "networks": ("lenet",), "clients": (2,), "groups": (0,), "steps": 1}


def prepared(kind: str, network: str, clients: int, group: int, steps: int, dtype: str, seed: int) -> Callable:
    """Make what is timed: a function without arguments, which waits for its result."""
    net, keys = models.build(network, SHAPES[network], 10), jax.random.split(jax.random.key(seed), 4)
    x = jax.random.normal(keys[0], (POOL, *SHAPES[network]), dtype)
    y = jax.random.randint(keys[1], (POOL,), 0, 10)
    start = jax.tree.map(lambda leaf: leaf.astype(dtype), net.init(keys[2]))
    rows = np.random.default_rng(seed).integers(POOL, size=(clients, BATCH * (steps if kind == "training" else 1)))
    who, how = cohort(x, y, list(rows)), {"strategy": "vectorised", "group": group or clients}
    if kind == "training":
        training = LocalTraining(net.apply, categorical(), optax.sgd(0.01, momentum=0.9), epochs=1, batch_size=BATCH)
        return lambda: jax.block_until_ready(federate.train_clients(training, start, who, keys[3], **how)[0])
    rule = fedfisher(net.apply, categorical(), kind="monte_carlo")
    moved = [jax.tree.map(lambda leaf, by=client: leaf * (1 + 0.01 * by), start) for client in range(clients)]
    update = Update(stack(moved))

    def measure() -> Any:
        return jax.block_until_ready(federate.measure_clients(rule.measure, update, who, keys[3], **how)[0])

    if kind == "fisher":
        return measure
    sent, solver = measure(), solve.conjugate_gradients()
    program = jax.jit(lambda fishers, models, weights: solver(solve.objective(fishers, models, weights)).params)
    return lambda: jax.block_until_ready(program(sent.statistics, sent.params, sent.weight))


def flop_per_step(network: str) -> float | None:
    """Operations of a training step by the compiler's count, for the share of the peak; None where it has none."""
    net = models.build(network, SHAPES[network], 10)
    x, y = jnp.zeros((BATCH, *SHAPES[network])), jnp.zeros(BATCH, jnp.int32)

    def loss(params: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y).mean()

    counted = jax.jit(jax.grad(loss)).lower(jax.eval_shape(net.init, jax.random.key(0))).cost_analysis()
    return None if counted is None else counted.get("flops")


def work(kind: str, rounds: int, **what: Any) -> dict[str, Any]:
    """One run, in this process."""
    if kind.startswith("torch"):
        from experiments.benchmarks import torch_side

        rows = np.random.default_rng(what["seed"]).integers(POOL, size=(what["clients"], BATCH * what["steps"]))
        arguments = (what["network"], SHAPES[what["network"]], POOL, rows, BATCH, kind.endswith("vmap"), what["seed"])
        run, memory = torch_side.train_on_device(*arguments)
        device = torch_side.device_name()
    else:
        run, device = prepared(kind, **what), jax.devices()[0].device_kind
        memory = lambda: (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")  # noqa: E731
    seconds = []
    for _ in range(1 + rounds):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    found = {"first_seconds": seconds[0], "seconds": seconds[1:], "device": device}
    on_device = memory()
    return {**found, "peak_bytes": on_device or peak_bytes(), "memory_of": "device" if on_device else "process"}


def run(kind: str, network: str, **rest: Any) -> dict[str, Any]:
    """One line of the table."""
    if kind == "peak":
        return {"seconds": side_by_side.alternate({"peak": side_by_side.matrix_product()}, rest["rounds"] + 1)["peak"]}
    try:
        return side_by_side.worker("accelerator", {"kind": kind, "network": network, **rest})
    except RuntimeError as error:
        return {"failed": str(error).strip().splitlines()[-1][:300]}


def grid_of(settings: Settings, torch: bool) -> list[dict[str, Any]]:
    """All runs; PyTorch's only where it is there and has the network."""
    grid = [{"kind": "peak", "network": "", "rounds": settings.rounds}]
    for network in settings.networks:
        for kind in KINDS if torch and network in TORCH else KINDS[:3]:
            for clients in settings.clients if kind != "solve" else (SILOS,):
                groups = [g for g in settings.groups if g < clients] if kind in ("training", "fisher") else [0]
                fixed = {"kind": kind, "network": network, "clients": clients, "steps": settings.steps}
                fixed |= {"rounds": settings.rounds, "dtype": settings.dtype, "seed": settings.seed}
                grid += [{**fixed, "group": group} for group in groups]
    return grid


def line(record: Mapping[str, Any], peak: float, flop: float | None) -> list[str]:
    """A line of the table."""
    who, found = record["settings"], record["result"]
    name = [who["kind"], who["network"], str(who["clients"]), str(who["group"] or "all")]
    if "failed" in found:
        return [*name, "failed", "", "", "", found["failed"]]
    seconds = statistics.median(found["seconds"])
    trains = who["kind"] not in ("fisher", "solve")
    rate = who["clients"] * who["steps"] / seconds if trains else None
    share = f"{100 * rate * flop / peak:.0f} %" if rate and flop else ""
    compiled = max(found["first_seconds"] - seconds, 0)
    memory = f"{found['peak_bytes'] / 2**20:.0f} ({found['memory_of']})"
    return [*name, f"{seconds:.3f}", f"{rate:.0f}" if rate else "", f"{compiled:.1f}", memory, share]


def ratios(records: list[dict[str, Any]]) -> dict[str, float]:
    """How many times the fastest of our groups trains as fast as PyTorch's faster way, by network and clients."""
    best: dict[tuple[str, bool], float] = {}
    for record in records:
        who, found = record["settings"], record["result"]
        if who["kind"] in ("training", *KINDS[3:]) and "failed" not in found:
            place = (f"{who['network']}_{who['clients']}_clients", who["kind"] == "training")
            best[place] = min(best.get(place, float("inf")), statistics.median(found["seconds"]))
    names = dict.fromkeys(name for name, _ in best)
    return {
        name: best[name, False] / best[name, True] for name in names if {(name, True), (name, False)} <= best.keys()
    }


def main() -> None:
    """Runs what is missing and reports; with --worker one run."""
    if "--worker" in sys.argv:
        one = json.loads(sys.argv[sys.argv.index("--worker") + 1])
        print(json.dumps(work(**one)))
        return
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    torch = importlib.util.find_spec("torch") is not None
    first, *records = common.run_all(settings.out, grid_of(settings, torch), run)
    peak = side_by_side.PEAK_FLOP / min(first["result"]["seconds"])
    flop = {network: flop_per_step(network) for network in settings.networks}
    devices = dict.fromkeys(r["result"]["device"] for r in records if "device" in r["result"])
    header = ["what", "network", "clients", "at once", "seconds", "client-steps/s", "compile s", "MiB", "share of peak"]
    text = f"On {', '.join(devices)}; {settings.dtype}; the peak is {peak / 1e12:.2f} Tflop/s, a float32 product.\n\n"
    text += common.markdown_table(header, [line(r, peak, flop[r["settings"]["network"]]) for r in records])
    summary = {"device": list(devices), "peak_gflops": peak / 1e9, "vs_torch": ratios(records)}
    common.report(settings.out, text, summary)


if __name__ == "__main__":
    main()
