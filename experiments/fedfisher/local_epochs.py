"""More and more local epochs before the one round (2403.12329).

Training follows the same order at every number of epochs, so a point is the same clients trained for longer.
"""

import dataclasses

from experiments.fedfisher import cell_tables
from experiments.lib import cells, common


@dataclasses.dataclass(frozen=True)
class Settings(cells.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list`, or the path of an .npz file.
        epochs: Numbers of local epochs.
        alpha: Concentration of the Dirichlet split.
        clients: Number of clients.
        model: By default LeNet for MNIST-like images, an MLP for digits, elsewhere the paper's CNN.
    """

    rules: tuple[str, ...] = cells.ALPHA_RULES
    dataset: str = "fashion_mnist"
    epochs: tuple[int, ...] = (1, 3, 10, 30, 100)
    alpha: float = 0.1
    clients: int = 5
    model: str | None = None


QUICK = {"dataset": "digits", "epochs": (1, 3, 10, 30), "seeds": 2}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    fixed = {
        "dataset": settings.dataset,
        "model": settings.model or cells.MODELS.get(settings.dataset, cells.ELSEWHERE),
        "clients": settings.clients,
        "alpha": settings.alpha,
    }
    grids = {
        epochs: [{**fixed, "epochs": epochs, **seeds} for seeds in cells.seed_pairs(settings)]
        for epochs in settings.epochs
    }
    title = f"{settings.dataset}, {settings.clients} clients, α={settings.alpha:g}"
    cell_tables.report_curves(settings, grids, "local epochs", title)


if __name__ == "__main__":
    main()
