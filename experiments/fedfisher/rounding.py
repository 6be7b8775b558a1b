"""How far rounding alone moves a merge: the same federation from starts that differ in the seventh digit.

Many epochs of training carry a difference of rounding on, as other compilers, machines and batch orders make it. So a
difference between two rules, or two versions of one, that is smaller than this says nothing at one seed.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.lib import cells, common
from fedfisher_jax import categorical, cohort, data
from fedfisher_jax.federate import _one_shot as one_shot
from fedfisher_jax.merge import catalogue


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list`.
        alpha: Concentration of the Dirichlet split over clients' mixtures of classes.
        clients: Number of clients.
        epochs: Local epochs.
        starts: How many starts.
        relative: Standard deviation of their relative differences.
        rules: Names of `fedfisher list`.
    """

    dataset: str = "fashion_mnist"
    alpha: float = 0.1
    clients: int = 5
    epochs: int = 30
    starts: int = 5
    relative: float = 1e-7
    rules: tuple[str, ...] = ("fedavg", "fedfisher-kfac", "regmean")


QUICK = {"dataset": "digits", "epochs": 2, "starts": 2, "rules": ("fedavg", "fedfisher-kfac")}


def run(
    dataset: str, alpha: float, clients: int, epochs: int, relative: float, rules: list[str], start: int, seed: int
) -> dict[str, Any]:
    """Accuracy of every rule and reference, from one of the starts; the first is the seed's own."""
    began, here = time.perf_counter(), cells.world(dataset, cells.model_of(dataset))
    parts = data.split("dirichlet-client", here.dataset.train_y, clients, seed=seed, alpha=alpha)
    x, y, *_ = here.arrays
    simulated = cells.simulation(here, epochs, seed, cohort(x, y, parts, length=len(here.dataset.train_y)))
    flat, tree = ravel_pytree(simulated.start)
    noise = relative * jax.random.normal(jax.random.key(start), flat.shape) if start else 0.0
    simulated = dataclasses.replace(simulated, start=tree(flat * (1 + noise)))
    offers = {"captured": here.captured}
    named = {n: catalogue.named_rule(n, here.network.apply, categorical(), offers=offers) for n in rules}
    found = {
        one.name: one.value["accuracy"]
        for one in one_shot.compare(simulated, named, one_shot.run_keys(seed))
        if one.kind in ("rule", "reference")
    }
    return {"accuracy": found, "seconds": time.perf_counter() - began}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    fixed = {name: getattr(settings, name) for name in ("dataset", "alpha", "clients", "epochs", "relative", "seed")}
    grid = [{**fixed, "rules": list(settings.rules), "start": start} for start in range(settings.starts)]
    found = [record["result"]["accuracy"] for record in common.run_all(settings.out, grid, run)]
    accuracy = {name: [100 * one[name] for one in found] for name in found[0]}
    rows = [[name, *(f"{v:.1f}" for v in values), common.mean_std(values)] for name, values in accuracy.items()]
    gains = {f"{name} − fedavg": np.subtract(accuracy[name], accuracy["fedavg"]) for name in settings.rules[1:]}
    rows += [[name, *(f"{v:.1f}" for v in values), common.mean_std(values)] for name, values in gains.items()]
    header = ["test accuracy, %", *(f"start {number}" for number in range(settings.starts)), "mean ± spread"]
    text = f"Seed {settings.seed} of {settings.dataset}; starts differ by {settings.relative:g} of each parameter.\n\n"
    spread = {name: float(np.std(values)) for name, values in accuracy.items()}
    common.report(settings.out, text + common.markdown_table(header, rows), {"accuracy": accuracy, "spread": spread})


if __name__ == "__main__":
    main()
