"""FedBEns's merged modes made one model: is a client that trains from two starts worth more than one that trains once?

Every client trains from two starts that all share, and sends both models with their K-FACs; the server finds a mode of
the product of posteriors from each start. Their ensemble is what FedBEns predicts by. One model is made of it in four
ways: the mode of the common start alone; the mean of the modes; a head in closed form on one mode's features, a second
exchange; and training on draws from class Gaussians (the moments that `pseudo-data` sends), labelled by the ensemble.
Rows below them are rules of one local model on the same clients.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.lib import cells, common
from fedfisher_jax import Rule, Update, categorical, cohort, data, evaluate, federate
from fedfisher_jax.federate import _one_shot as one_shot
from fedfisher_jax.federate import run_keys
from fedfisher_jax.merge import Draws, fedbens, fedfisher, pseudo_data, recalibrate
from fedfisher_jax.merge._pseudo_data import gaussians, train_on_draws
from fedfisher_jax.tracing._convolution import for_loops

PyTree = Any
ALPHA, CLIENTS = 0.1, 5
DRAWS, COEFFICIENTS = Draws(), 100  # the library's settings
ROWS = {
    "modes": "FedBEns: both modes' ensemble (no one model)",
    "first": "the mode of the common start",
    "second": "the mode of the other start",
    "mean": "the mean of the modes",
    "first, recalibrated": "the mode of the common start, recalibrated",
    "second, recalibrated": "the mode of the other start, recalibrated",
    "mean, recalibrated": "the mean of the modes, recalibrated",
    "distilled": "distilled on draws from class Gaussians",
    "distilled, recalibrated": "distilled, recalibrated",
    "kfac": "fedfisher-kfac",
    "kfac, recalibrated": "fedfisher-kfac, recalibrated",
    "pseudo-data": "pseudo-data",
    "pseudo-data, recalibrated": "pseudo-data, recalibrated",
}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        datasets: Names of `fedfisher list`.
        seeds: Seeds of each data set, of split, start and training.
        epochs: Local epochs.
    """

    datasets: tuple[str, ...] = ("digits", "fashion_mnist")
    seeds: tuple[int, ...] = (5, 2)
    epochs: int = 30


def run(dataset: str, epochs: int, seed: int) -> dict[str, float]:
    """Test accuracies of every model of one federation, as shares."""
    here = cells.world(dataset, cells.model_of(dataset))
    parts = data.split("dirichlet-client", here.dataset.train_y, CLIENTS, seed=seed, alpha=ALPHA)
    who = cohort(*here.arrays[:2], parts, length=len(here.dataset.train_y))
    federation, key = cells.simulation(here, epochs, seed, who), run_keys(seed)
    trained, _ = federate.train_clients(federation.training, federation.start, who, key.train)
    apply, model = here.network.apply, (here.network.apply, categorical())
    offered: dict[str, Any] = {"captured": here.captured}
    both = one_shot.offers(here.network.init, federation.training, here.captured, seed)

    def exchange(rule: Rule, update: Update, start: PyTree) -> tuple[Any, Any]:
        payloads, _ = federate.measure_clients(rule.measure, update, who, key.measure)
        return payloads, federate.merge_clients(rule, payloads, start)

    def recalibrated(merged: PyTree) -> PyTree:
        return exchange(recalibrate(*model, **offered), Update(None, merged), merged)[1].params

    def accuracy(params: PyTree, by: Callable = apply) -> float:
        return float(evaluate(by, categorical(), params, *here.arrays[2:]).accuracy)

    update = Update(trained.params, federation.start)
    _, merged = exchange(fedbens(*model, **both), update, federation.start)
    first, second = merged.params
    payloads, drawn = exchange(pseudo_data(*model, **offered), update, federation.start)
    plain = exchange(fedfisher(*model, **offered), update, federation.start)[1].params
    shares = payloads.weight / jnp.sum(payloads.weight)
    source = gaussians(payloads.statistics, shares, COEFFICIENTS)
    found = {
        "first": first,
        "second": second,
        "mean": jax.tree.map(lambda a, b: (a + b) / 2, first, second),
        "distilled": distilled(for_loops(apply), lambda x: merged.apply(merged.params, x), source, first),
        "kfac": plain,
        "pseudo-data": drawn.params,
    }
    result = {"modes": accuracy(merged.params, merged.apply)}
    for name, params in found.items():
        result[name] = accuracy(params)
        result[f"{name}, recalibrated"] = accuracy(recalibrated(params))
    return result


def distilled(apply: Callable, teacher: Callable, source: Any, params: PyTree) -> PyTree:
    """Train a model on draws with the teacher's probabilities, by the steps and rate of `pseudo-data`."""

    def loss(params: PyTree, x: Any, classes: Any) -> jax.Array:
        del classes  # the teacher says what it sees
        return optax.softmax_cross_entropy(apply(params, x), jax.nn.softmax(teacher(x))).mean()

    return jax.jit(lambda first: train_on_draws(loss, optax.tree.zeros_like, source, DRAWS, first))(params)[0]


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"datasets": ("digits",), "seeds": (1,), "epochs": 2})
    grid = [
        {"dataset": dataset, "epochs": settings.epochs, "seed": settings.seed + number}
        for dataset, seeds in zip(settings.datasets, settings.seeds, strict=True)
        for number in range(seeds)
    ]
    records = common.run_all(settings.out, grid, run)
    columns = {d: [r for r in records if r["settings"]["dataset"] == d] for d in settings.datasets}
    rows = [
        [title, *(common.mean_std(common.column(each, name), scale=100) for each in columns.values())]
        for name, title in ROWS.items()
    ]
    header = ["", *(f"{name}, {len(each)} seeds" for name, each in columns.items())]
    text = f"Test accuracy in %, {CLIENTS} clients, α = {ALPHA:g}, mean ± std over seeds of split and training.\n\n"
    text += common.markdown_table(header, rows)
    summary: Mapping[str, Any] = {
        dataset: {name: float(common.column(each, name).mean()) for name in ROWS} for dataset, each in columns.items()
    }
    common.report(settings.out, text, summary)


if __name__ == "__main__":
    main()
