"""Any rule for a few rounds (2403.12329): each round starts from the last one's merged model, some clients take part.

The authors' released script aggregates once, after the loop over rounds; here every round is merged and broadcast.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.lib import cells, common
from fedfisher_jax import Federation, categorical, cohort, data, evaluate, rounds
from fedfisher_jax.federate import _one_shot as one_shot
from fedfisher_jax.federate import run_keys
from fedfisher_jax.merge import catalogue


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        rules: Merge rules by name, or your own as module:function; those that keep the network.
        dataset: A name of `fedfisher list`, or a path to an .npz file.
        alpha: Concentration of the Dirichlet split.
        clients: Number of clients.
        participation: Share of clients that a round samples, above 0, at most 1.
        rounds: Of the federation; every round is scored.
        epochs: Local epochs in each round.
        seeds: Each draws a split and a training.
    """

    rules: tuple[str, ...] = ("fedavg", "fedfisher-kfac")
    dataset: str = "fashion_mnist"
    alpha: float = 0.1
    clients: int = 5
    participation: float = 1.0
    rounds: int = 4
    epochs: int = 10
    seeds: int = 3


QUICK = {"dataset": "digits", "seeds": 2}


def run(
    rule: str, dataset: str, alpha: float, clients: int, participation: float, num_rounds: int, epochs: int, seed: int
) -> dict[str, Any]:
    """Test accuracy and loss after every round."""
    here = cells.world(dataset, cells.MODELS.get(dataset, cells.ELSEWHERE))
    parts = data.split("dirichlet-client", here.dataset.train_y, clients, seed=seed, alpha=alpha)
    train = cells.training(here.network, here.dataset.augment, epochs)
    offers = one_shot.offers(here.network.init, train, here.captured, seed)
    built = catalogue.named_rule(rule, here.network.apply, categorical(), offers=offers)
    federation = Federation(train, built, rounds.fraction(participation, clients))
    key = run_keys(seed)
    x, y, test_x, test_y = here.arrays
    who = cohort(x, y, parts, length=len(here.dataset.train_y))
    state = rounds.init(federation, here.network.init(key.init), clients, key.train)
    found: dict[str, list[float]] = {"accuracy": [], "loss": []}
    for _ in range(num_rounds):
        state, _ = rounds.step(federation, state, who)
        loss, accuracy = evaluate(here.network.apply, categorical(), state.params, test_x, test_y)
        found["accuracy"].append(float(accuracy))
        found["loss"].append(float(loss))
    return found


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    names = ("dataset", "alpha", "clients", "participation", "epochs")
    fixed = {name: getattr(settings, name) for name in names} | {"num_rounds": settings.rounds}
    seeds = range(settings.seed, settings.seed + settings.seeds)
    records = common.run_all(
        settings.out, [{"rule": r, "seed": s, **fixed} for r in settings.rules for s in seeds], run
    )
    curves = {rule: 100 * common.column(records, "accuracy", rule=rule) for rule in settings.rules}  # [seeds, rounds]
    shown = sorted({2**k for k in range(settings.rounds.bit_length()) if 2**k <= settings.rounds} | {settings.rounds})
    rows = [[rule, *[common.mean_std(curve[:, r - 1]) for r in shown]] for rule, curve in curves.items()]
    first = settings.rules[0]
    for rule in settings.rules[1:]:
        rows.append([f"{rule} − {first}", *[common.mean_std((curves[rule] - curves[first])[:, r - 1]) for r in shown]])
    text = (
        f"Test accuracy in % on {settings.dataset}, {settings.clients} clients, α = {settings.alpha:g}, "
        f"{settings.epochs} local epochs a round, participation {settings.participation:g}; mean ± std over "
        f"{settings.seeds} seeds (split and training); differences are paired.\n\n"
    ) + common.markdown_table(["rounds", *[str(r) for r in shown]], rows)
    fig, axes = common.figure()
    for rule, curve in curves.items():
        ticks = np.arange(1, settings.rounds + 1)
        axes[0, 0].errorbar(
            ticks, curve.mean(0), curve.std(0, ddof=1) if len(curve) > 1 else None, fmt="o-", label=rule
        )
    axes[0, 0].set(xlabel="rounds", ylabel="test accuracy (%)", xticks=np.arange(1, settings.rounds + 1))
    axes[0, 0].legend()
    summary = {rule: {str(r): curve[:, r - 1].mean() for r in shown} for rule, curve in curves.items()}
    common.report(settings.out, text, {"accuracy": summary}, fig)


if __name__ == "__main__":
    main()
