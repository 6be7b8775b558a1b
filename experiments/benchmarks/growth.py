"""Time and peak memory against the number of clients and the width of the model, a fresh process for every run.

Clients of 60 Fashion-MNIST examples train LeNet for one epoch, measure their Fisher information and are folded:
`ff.fold_clients`, 64 at a time. "gathered" trains and measures all clients before they are merged, for comparison; "one
large" gives the first client 60,000 examples, a thousand times as many as each of the others. The whole training set
lies in memory in every run, so the process holds the same before it begins ("idle") whatever the number of clients.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import side_by_side
from experiments.lib import common
from fedfisher_jax import LocalTraining, Update, categorical, cohort, data, federate, fold_clients, models
from fedfisher_jax.curvature import capture
from fedfisher_jax.federate import Client
from fedfisher_jax.federate import _simulate as simulate
from fedfisher_jax.federate._simulate import TrainClient
from fedfisher_jax.merge import Rule, catalogue

EXAMPLES, BATCH, GROUP, LARGE = 60, 64, 64, 1000


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        worker: For the processes that the script starts: settings of one run, as JSON.
    """

    worker: str = ""


@dataclasses.dataclass(frozen=True)
class OneShot:
    """The per-client function: train, measure, lift."""

    training: LocalTraining
    rule: Rule

    def __call__(self, shared: simulate.Shared, client: Client) -> Any:
        """One client's contribution to the fold."""
        update = Update(TrainClient(self.training)(shared, client).params)
        payload = simulate.MeasureClient(self.rule.measure)(shared, (client, update))
        return self.rule.lift(payload, shared.start)


def peak_bytes() -> int:
    """The most memory that this process has held; without what a parent held before it was started."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def work(clients: int, width: int, rule: str, how: str, seed: int) -> dict[str, Any]:
    """One run, in this process."""
    dataset = data.load("fashion_mnist")
    net = models.build("lenet", (28, 28, 1), 10, width=width)
    x, y = jnp.asarray(dataset.train_x), jnp.asarray(dataset.train_y)
    rows = list(np.random.default_rng(seed).integers(len(x), size=(clients, EXAMPLES)))
    if how == "one large":
        rows[0] = np.arange(LARGE * EXAMPLES) % len(x)
    init_key, key = jax.random.split(jax.random.key(seed))
    start, who = net.init(init_key), cohort(x, y, rows)
    likelihood = categorical()
    chosen = catalogue.named_rule(rule, net.apply, likelihood, captured=capture(net.apply, start, x))
    training = LocalTraining(net.apply, likelihood, optax.sgd(0.01, momentum=0.9), epochs=1, batch_size=BATCH)
    jax.block_until_ready((x, start))
    idle, began = peak_bytes(), time.perf_counter()
    if how != "gathered":
        shared, each = simulate.Shared(who.shared, key, start), OneShot(training, chosen)
        summary, report = fold_clients(each, shared, who.members, combine=chosen.combine, group=GROUP)
        params = jax.jit(lambda s: chosen.solve(s, start).params)(summary)
    else:
        trained, report = federate.train_clients(training, start, who, key)
        payloads, _ = federate.measure_clients(chosen.measure, Update(trained.params, start), who, key)
        params = federate.merge_clients(chosen, payloads, start).params
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(jax.block_until_ready(params)))
    seconds = time.perf_counter() - began
    found = {"seconds": seconds, "peak_bytes": peak_bytes(), "idle_bytes": idle, "finite": finite}
    return {**found, "strategy": report.strategy, "parameters": sum(leaf.size for leaf in jax.tree.leaves(start))}


def run(**one: Any) -> dict[str, Any]:
    """One run, in a process of its own."""
    return side_by_side.worker("growth", one)


def grid_of(quick: bool, seed: int) -> list[dict[str, Any]]:
    """Runs: numbers of clients, the same gathered, widths, and Kronecker factors."""
    sizes, gathered, widths = (10, 50, 100, 200, 500, 1000, 2000), (10, 50, 200, 500, 1000), (1, 2, 4)
    wide, kronecker, large = 50, (50, 1000), (10, 200, 2000)
    if quick:
        sizes, gathered, widths, wide, kronecker, large = (5, 20), (5, 20), (1, 2), 5, (5,), (5,)
    one = {"width": 1, "rule": "fedfisher-diag", "how": "streamed", "seed": seed}
    grid = [one | {"clients": n} for n in sizes] + [one | {"clients": n, "how": "gathered"} for n in gathered]
    grid += [one | {"clients": n, "how": "one large"} for n in large]
    grid += [one | {"clients": wide, "width": w} for w in widths]
    grid += [one | {"clients": n, "rule": "fedfisher-kfac"} for n in kronecker]
    return [run for place, run in enumerate(grid) if run not in grid[:place]]


def milliseconds_each(found: dict[int, dict[str, Any]]) -> dict[int, float]:
    """What a client costs beyond the smallest run, so without compilation and the large client."""
    few = min(found)
    return {n: 1e3 * (found[n]["seconds"] - found[few]["seconds"]) / (n - few) for n in sorted(found) if n > few}


def main() -> None:
    """Runs what is missing and reports; with --worker one run."""
    if "--worker" in sys.argv:
        print(json.dumps(work(**json.loads(sys.argv[sys.argv.index("--worker") + 1]))))
        return
    settings = common.command_line(Settings, __doc__)
    records = common.run_all(settings.out, grid_of(settings.quick, settings.seed), run)
    mib, rows = 2.0**20, []
    for record in records:
        who, found = record["settings"], record["result"]
        above = found["peak_bytes"] - found["idle_bytes"]
        cells = [who["how"], who["width"], who["clients"], f"{found['seconds']:.1f}"]
        rows.append([who["rule"], *cells, f"{found['peak_bytes'] / mib:.0f}", f"{above / mib:.0f}"])

    fig, axes = common.figure(1, 3, width=3.8)
    series = {
        "streamed": {"rule": "fedfisher-diag", "how": "streamed", "width": 1},
        "gathered": {"rule": "fedfisher-diag", "how": "gathered", "width": 1},
        "one large": {"rule": "fedfisher-diag", "how": "one large", "width": 1},
        "K-FAC, streamed": {"rule": "fedfisher-kfac", "how": "streamed", "width": 1},
    }
    for label, where in series.items():
        chosen = [r for r in records if all(r["settings"][k] == v for k, v in where.items())]
        x = [r["settings"]["clients"] for r in chosen]
        axes[0, 0].plot(x, [r["result"]["seconds"] for r in chosen], "o-", label=label)
        axes[0, 1].plot(x, [r["result"]["peak_bytes"] / mib for r in chosen], "o-", label=label)
    axes[0, 0].set(xscale="log", yscale="log", xlabel="clients", ylabel="seconds, compilation included")
    axes[0, 1].set(xscale="log", xlabel="clients", ylabel="peak memory (MiB)", ylim=(0, None))
    clients = min(r["settings"]["clients"] for r in records if r["settings"]["width"] > 1)
    wide = [
        r
        for r in records
        if r["settings"] | {"width": 1} == {**series["streamed"], "clients": clients, "seed": settings.seed}
    ]
    wide.sort(key=lambda r: r["settings"]["width"])
    parameters = [r["result"]["parameters"] for r in wide]
    axes[0, 2].plot(parameters, [r["result"]["seconds"] for r in wide], "o-", label="seconds")
    axes[0, 2].plot(parameters, [r["result"]["peak_bytes"] / mib for r in wide], "s--", label="peak memory (MiB)")
    axes[0, 2].set(xscale="log", yscale="log", xlabel="parameters", title=f"width, {clients} clients")
    for axis in axes[0]:
        axis.legend()

    text = f"Clients of {EXAMPLES} examples, one epoch; seconds include compilation; memory in MiB.\n\n"
    text += common.markdown_table(["rule", "how", "width", "clients", "seconds", "peak", "above idle"], rows)
    streamed, uneven = (
        {r["settings"]["clients"]: r["result"] for r in records if series[how].items() <= r["settings"].items()}
        for how in ("streamed", "one large")
    )
    each = {how: milliseconds_each(found) for how, found in (("streamed", streamed), ("one large", uneven))}
    for how, found in each.items():
        cells = ", ".join(f"{value:.0f} up to {clients}" for clients, value in found.items())
        text += f"\nMilliseconds for a client more than {min(streamed)}, {how}: {cells}.\n" if found else ""
    few, many = (5, 20) if settings.quick else (50, 1000)
    kronecker = [r for r in records if r["settings"]["rule"] == "fedfisher-kfac"][-1]
    summary = {
        f"memory_ratio_{many}_vs_{few}": streamed[many]["peak_bytes"] / streamed[few]["peak_bytes"],
        "memory_above_idle_ratio": (streamed[many]["peak_bytes"] - streamed[many]["idle_bytes"])
        / (streamed[few]["peak_bytes"] - streamed[few]["idle_bytes"]),
        f"kfac_{kronecker['settings']['clients']}_clients_peak_gib": kronecker["result"]["peak_bytes"] / 2**30,
        "milliseconds_each": each,
        "all_finite": all(r["result"]["finite"] for r in records),
    }
    common.report(settings.out, text, summary, fig)


if __name__ == "__main__":
    main()
