"""One round, every rule: data sets × α × seeds (2403.12329), with what a merge must beat.

A rule of your own: --rules fedavg fedfisher-kfac my_module:my_rule, where my_rule(apply, likelihood) returns a `Rule`.
"""

import dataclasses

from experiments.fedfisher import cell_tables
from experiments.lib import cells, common


@dataclasses.dataclass(frozen=True)
class Settings(cells.Settings):
    """Flags.

    Attributes:
        datasets: Names of `fedfisher list`, or paths of .npz files.
        alphas: Concentrations of the Dirichlet split over clients' mixtures of classes.
        clients: Number of clients.
        epochs: Local epochs.
        model: The network; by default LeNet for MNIST-like images, the paper's CNN for others, else an MLP.
    """

    datasets: tuple[str, ...] = ("fashion_mnist",)
    alphas: tuple[float, ...] = (0.05, 0.1, 0.2)
    clients: int = 5
    epochs: int = 30
    model: str | None = None


QUICK = {"datasets": ("digits",), "alphas": (0.1,), "epochs": 20, "seeds": 2}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    columns = {}
    for dataset in settings.datasets:
        model = settings.model or cells.model_of(dataset)
        for alpha in settings.alphas:
            fixed = {"dataset": dataset, "model": model, "clients": settings.clients, "alpha": alpha}
            grid = [{**fixed, "epochs": settings.epochs, **seeds} for seeds in cells.seed_pairs(settings)]
            columns[f"{dataset} α={alpha:g}"] = grid
    outcomes = iter(cells.run_cells(settings.out, [cell for grid in columns.values() for cell in grid], settings.rules))
    found = {name: [next(outcomes) for _ in grid] for name, grid in columns.items()}
    rules = settings.rules
    text = cell_tables.accuracy_table(found, rules, settings) + cell_tables.difference_table(found, rules, settings)
    text += cell_tables.cost_table(found, rules)
    fig, axes = common.figure(1, len(found), height=0.28 * (len(rules) + 3) + 0.9)
    for axis, (name, outcomes_) in zip(axes[0], found.items(), strict=True):
        cell_tables.dots(axis, outcomes_, rules)
        axis.set_title(name)
    common.report(settings.out, text, cell_tables.summary(found, rules, settings), fig)


if __name__ == "__main__":
    main()
