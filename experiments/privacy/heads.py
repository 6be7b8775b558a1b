"""Heads in closed form with privacy of every example: accuracy against ε, by whom the noise is added.

Nothing is trained: the features of the common start are measured once, each example's scaled to one norm (a clip below
all norms, which depends on no data), and noise is added to their sums. The sums of all clients are the same however the
data are split, so "distributed" noise (a secure sum from which nobody drops out) and "central" noise give one row for
any number of clients and any α; with "local" noise it is as many times the variance as there are silos.
"""

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from fedfisher_jax import Payload, Update, categorical, data, examples, models
from fedfisher_jax.curvature import Moments, capture
from fedfisher_jax.merge import analytic, lift
from fedfisher_jax.merge._heads import head_of
from fedfisher_jax.privacy import example_noise

EPSILONS, DELTA, CLIP = (0.5, 1.0, 2.0, 8.0), 1e-5, 1e-3
TRUST = {"distributed": 1, "local, 5 silos": 5, "local, 100 silos": 100}  # how often all of the noise is added
MODELS = {"digits": "mlp", "fashion_mnist": "lenet"}
RIDGE = 1e-4


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: How many, from --seed on; each draws a start, and noise.
        datasets: digits (MLP) and fashion_mnist (LeNet).
    """

    seeds: int = 5
    datasets: tuple[str, ...] = ("digits", "fashion_mnist")


@cache
def measured(dataset: str, start_name: str, seed: int) -> tuple[Payload, Any, np.ndarray, np.ndarray]:
    """All training examples' clipped moments, their rule, and the test examples' features and labels."""
    found = data.load(dataset)
    network, likelihood = models.build(MODELS[dataset], found.train_x.shape[1:], found.num_classes), categorical()
    start = models.STARTS[start_name](network.init(jax.random.key(seed)))
    rule = analytic(
        network.apply, likelihood, ridge=RIDGE, captured=capture(network.apply, start, found.train_x), clip=CLIP
    )
    everything = examples(found.train_x, found.train_y)
    sent = jax.jit(lambda p: rule.measure(Update(None, p), everything, jax.random.key(0)))(start)
    place, _ = rule.measure.place(start, found.test_x)
    leaves = jax.tree.leaves(start)
    rows = jax.lax.map(lambda x: place.rows(leaves, x)[0], jnp.asarray(found.test_x), batch_size=256)
    return sent, rule, np.asarray(rows, np.float64), found.test_y


def run(dataset: str, start: str, seed: int, epsilon: float | None, trust: str) -> dict[str, Any]:
    """Accuracy of one head on the test examples."""
    sent, rule, rows, labels = measured(dataset, start, seed)
    times = 1
    if epsilon is not None:
        promised, times = example_noise.promise(epsilon, DELTA, clip_features=CLIP), TRUST[trust]
        draw = np.random.default_rng([seed, times, int(10 * epsilon)])
        sent = example_noise.noisy(sent, promised, lambda shape: np.sqrt(times) * draw.normal(size=shape))
        scaled = dataclasses.replace(sent.statistics, variances=times * sent.statistics.variances)
        sent = sent._replace(statistics=scaled)
    moments: Moments = lift(rule, sent)["moments"]
    head, ridge = head_of(moments, RIDGE)
    accuracy = float(np.mean(np.argmax(rows @ head, axis=1) == labels))
    size = float(np.trace(np.asarray(moments.second, np.float64))) / len(head)
    return {"accuracy": accuracy, "features": len(head), "ridge_over_mean_diagonal": ridge / size}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 1, "datasets": ("digits",)})
    grid = [
        {"dataset": dataset, "start": start, "seed": seed, "epsilon": epsilon, "trust": trust}
        for dataset in settings.datasets
        for start in (("usual", "designed") if dataset == "fashion_mnist" else ("usual",))
        for seed in range(settings.seed, settings.seed + settings.seeds)
        for epsilon, trust in [(None, "none"), *((e, t) for t in TRUST for e in EPSILONS)]
    ]
    records = common.run_all(settings.out, grid, run)
    cells = list(dict.fromkeys((one["dataset"], one["start"]) for one in grid))
    rows, summary = [], {}
    fig, axes = common.figure(1, len(cells), width=3.6)
    for axis, (dataset, start) in zip(axes[0], cells, strict=True):
        where = {"dataset": dataset, "start": start}
        plain = common.column(records, "accuracy", **where, epsilon=None)
        features = int(common.column(records, "features", **where, epsilon=None)[0])
        axis.axhline(100 * plain.mean(), color="grey", label="no noise")
        lost = {}
        for trust in TRUST:
            found = [common.column(records, "accuracy", **where, epsilon=e, trust=trust) for e in EPSILONS]
            name = f"{dataset}, {MODELS[dataset]}, {start} start, {features} features"
            cells_of = [common.mean_std(one, scale=100) for one in (*found, plain)]
            rows.append([name, trust, *cells_of])
            axis.plot(EPSILONS, [100 * one.mean() for one in found], "o-", label=trust)
            lost[trust] = {f"epsilon_{e:g}": 100 * (plain - one).mean() for e, one in zip(EPSILONS, found, strict=True)}
        axis.set(xscale="log", xlabel="ε of an example", ylabel="accuracy (%)", title=f"{dataset}, {start} start")
        axis.legend()
        summary[f"points_lost_{dataset}_{start}"] = lost
    text = f"Accuracy in %, δ = {DELTA:g}, replace one example; mean ± std over {settings.seeds} seeds.\n\n"
    header = ["data, model, features", "noise", *(f"ε = {e:g}" for e in EPSILONS), "no noise"]
    common.report(settings.out, text + common.markdown_table(header, rows), summary, fig)


if __name__ == "__main__":
    main()
