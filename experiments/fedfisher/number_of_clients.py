"""The same examples over more and more clients (2403.12329), one round."""

import dataclasses

from experiments.fedfisher import cell_tables
from experiments.lib import cells, common


@dataclasses.dataclass(frozen=True)
class Settings(cells.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list`, or the path of an .npz file.
        clients: Numbers of clients.
        alpha: Concentration of the Dirichlet split.
        epochs: Local epochs.
        model: By default LeNet for MNIST-like images, an MLP for digits, elsewhere the paper's CNN.
    """

    rules: tuple[str, ...] = cells.ALPHA_RULES
    dataset: str = "fashion_mnist"
    clients: tuple[int, ...] = (5, 10, 20, 50, 100)
    alpha: float = 0.1
    epochs: int = 30
    model: str | None = None


QUICK = {"dataset": "digits", "clients": (5, 20, 100), "epochs": 20, "seeds": 2}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    fixed = {
        "dataset": settings.dataset,
        "model": settings.model or cells.MODELS.get(settings.dataset, cells.ELSEWHERE),
        "alpha": settings.alpha,
        "epochs": settings.epochs,
    }
    grids = {
        count: [{**fixed, "clients": count, **seeds} for seeds in cells.seed_pairs(settings)]
        for count in settings.clients
    }
    title = f"{settings.dataset}, α={settings.alpha:g}, {settings.epochs} epochs"
    cell_tables.report_curves(settings, grids, "clients", title)


if __name__ == "__main__":
    main()
