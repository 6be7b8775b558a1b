"""Heads in closed form: one shot without training, and merged models that are recalibrated in a second exchange.

`analytic` reads the common start (--start designed is made for it), `recalibrate` a merged model, `pseudo-data` trains
at the server on draws from class Gaussians. Their settings are the library's and the same for every cell; --choose
measures the candidates on a validation split of the training data, and the report then says how the settings compare.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from experiments.fedfisher import cell_tables
from experiments.lib import cells, common
from fedfisher_jax import Likelihood, Rule, categorical, cohort, data
from fedfisher_jax.curvature import Capture
from fedfisher_jax.federate import compare, run_keys
from fedfisher_jax.merge import Draws, analytic, fedfisher, pseudo_data, recalibrate, then
from fedfisher_jax.merge._heads import RIDGE

WIDE = "recalibrate@fc1,fc2:100"
RULES = (
    "fedavg",
    "fedfisher-kfac",
    "analytic",
    "pseudo-data",
    "fedavg+recalibrate",
    f"fedavg+{WIDE}",
    "fedfisher-kfac+recalibrate",
    "fedfisher-kfac+recalibrate@fc1",
    f"fedfisher-kfac+{WIDE}",
    f"pseudo-data+{WIDE}",
)
VALIDATION = 10_000  # training examples that are held out where settings are chosen
FIRST_CHOICE = 100  # seeds of the choice, which no table has
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2)
WEIGHTS = (1.0, 3.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Settings(cells.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list`, or a path to an .npz file; the rules name layers of LeNet and the CNN.
        alphas: Concentrations of the Dirichlet split over clients' mixtures of classes.
        clients: Numbers of clients.
        epochs: Local epochs.
        start: What clients start from, of `models.STARTS`.
        choose: Only measure the settings' candidates, on a validation split of the training data, with two seeds.
    """

    rules: tuple[str, ...] = RULES
    seeds: int = 5
    dataset: str = "fashion_mnist"
    alphas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    clients: tuple[int, ...] = (5, 20, 100)
    epochs: int = 30
    start: Literal["usual", "designed"] = "usual"
    choose: bool = False


QUICK = {"alphas": (0.1,), "clients": (5,), "epochs": 1, "seeds": 1}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    if settings.choose:
        print(choice_table(choices(settings)))
        return
    columns, model = {}, cells.model_of(settings.dataset)
    for clients in settings.clients:
        for alpha in settings.alphas:
            fixed = {"dataset": settings.dataset, "model": model, "clients": clients, "alpha": alpha}
            fixed |= {} if settings.start == "usual" else {"start": settings.start}
            grid = [{**fixed, "epochs": settings.epochs, **seeds} for seeds in cells.seed_pairs(settings)]
            columns[f"{clients} clients, α={alpha:g}"] = grid
    outcomes = iter(cells.run_cells(settings.out, [cell for grid in columns.values() for cell in grid], settings.rules))
    found = {name: [next(outcomes) for _ in grid] for name, grid in columns.items()}
    rules, here = settings.rules, cells.world(settings.dataset, model)
    exchanges = {rule: cells.count_exchanges(here, rule) for rule in rules}
    text = "\n".join(cell_tables.accuracy_table(each, rules, settings) for each in _by_clients(found, settings))
    text += cell_tables.difference_table(found, rules, settings) + cell_tables.cost_table(found, rules, exchanges)
    records = common.read_results(settings.out / "results.jsonl")
    text += settings_note([record for record in records if "choice" in record["settings"]])
    fig, axes = common.figure(
        len(settings.clients), len(settings.alphas), width=5.0, height=0.32 * (len(rules) + 4) + 0.9
    )
    for axis, (name, each) in zip(axes.ravel(), found.items(), strict=True):
        cell_tables.dots(axis, each, rules)
        axis.set_title(name)
        axis.label_outer()
    common.report(settings.out, text, cell_tables.summary(found, rules, settings), fig)


def settings_note(chosen: list[dict[str, Any]]) -> str:
    """What the settings are, and how they compare by validation, as far as that was measured."""
    text = (
        f"\nSettings are the same in every cell: ridge λ = {RIDGE:g}; features as the rules' names say, for `analytic` "
        "all inputs of fc1 and as many units of it as there is room for, 100; `pseudo-data` with "
        f"λ = {Draws().weight:g}, {Draws().steps} steps of Adam. "
    )
    if not chosen:
        return text + "How they compare on validation examples is not in this folder (`--choose` measures it).\n"
    text += (
        f"By accuracy on {VALIDATION} training examples that nobody trained on, with seeds that no cell has, the best "
    )
    return f"{text}candidate of each kind is {'; '.join(best_candidates(chosen))}.\n\n{choice_table(chosen)}"


def best_candidates(records: list[dict[str, Any]]) -> list[str]:
    """The candidate of highest mean validation accuracy of each kind, which is its name's first word."""
    means = {name: common.column(records, name).mean() for name in records[0]["result"]}
    kinds = dict.fromkeys(name.split()[0] for name in means)
    return [max((name for name in means if name.split()[0] == kind), key=lambda name: means[name]) for kind in kinds]


def _by_clients(found: dict[str, Any], settings: Settings) -> list[dict[str, Any]]:
    """A table for each number of clients."""
    names, width = list(found), len(settings.alphas)
    return [{name: found[name] for name in names[n : n + width]} for n in range(0, len(names), width)]


# ---- the choice of settings ------------------------------------------------------------------------------------------


def choices(settings: Settings) -> list[dict[str, Any]]:
    """Validation accuracies of every candidate, α = 0.1 and five clients, for two seeds."""
    fixed = {"choice": "heads", "dataset": settings.dataset, "epochs": settings.epochs}
    grid = [{**fixed, "seed": FIRST_CHOICE + number} for number in range(1 if settings.quick else 2)]
    return common.run_all(settings.out, grid, _choose)


def choice_table(records: list[dict[str, Any]]) -> str:
    """Mean validation accuracies."""
    names = list(records[0]["result"])
    rows = [[name, common.mean_std(common.column(records, name), scale=100)] for name in names]
    note = f"Validation accuracy in %, {len(records)} seeds, α = 0.1, five clients."
    return f"{note}\n\n" + common.markdown_table(["candidate", "accuracy"], rows)


def candidates(apply: Callable, likelihood: Likelihood, captured: Capture) -> dict[str, Rule]:
    """Rules with every setting that is chosen among."""
    offered = {"captured": captured}
    kfac = fedfisher(apply, likelihood, captured=captured)
    found = {}
    for features in (("fc1",), ("fc1", "fc2:100")):
        for ridge in RIDGES:
            rule = analytic(apply, likelihood, features=features, ridge=ridge, **offered)
            found[f"analytic usual {'+'.join(features)} λ={ridge:g}"] = rule
    for features in ((), ("fc1",), ("fc1", "fc2:100")):
        for ridge in RIDGES if len(features) == 2 else (1e-4,):
            again = recalibrate(apply, likelihood, features=features, ridge=ridge, **offered)
            found[f"kfac+recalibrate {'+'.join(features) or 'fc3'} λ={ridge:g}"] = then(kfac, again)
    for weight in WEIGHTS:
        found[f"pseudo-data λ={weight:g}"] = pseudo_data(
            apply, likelihood, draws=Draws(weight=weight), captured=captured
        )
    return found


def _choose(choice: str, dataset: str, epochs: int, seed: int) -> dict[str, float]:
    del choice
    loaded = data.load(dataset)
    held = np.random.default_rng(seed).permutation(len(loaded.train_y))
    kept, held = np.sort(held[VALIDATION:]), held[:VALIDATION]
    here = cells.world(dataset, cells.model_of(dataset))
    x, y = jnp.asarray(loaded.train_x[kept]), jnp.asarray(loaded.train_y[kept])
    parts = data.split("dirichlet-client", loaded.train_y[kept], 5, seed=seed, alpha=0.1)
    everyone = cohort(x, y, parts, length=len(kept))
    judged = cells.simulation(here, epochs, seed, everyone, (loaded.train_x[held], loaded.train_y[held]))
    rules = candidates(here.network.apply, categorical(), here.captured)
    results = compare(judged, rules, run_keys(seed))
    return {result.name: result.value["accuracy"] for result in results if result.kind == "rule"}


if __name__ == "__main__":
    main()
