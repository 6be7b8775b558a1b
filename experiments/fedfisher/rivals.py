"""Natural-gradient steps against FedAvg, FedProx and SCAFFOLD over rounds, at equal exchanges and at equal bits.

All begin at the same start, for LeNet the designed one. A round of the rivals is one exchange, of the parameters, or of
twice as much for SCAFFOLD. Their learning rate and number of local epochs, and FedProx's strength at FedAvg's best of
these, are those of the best validation accuracy after the last round on tuning seeds, by a part of the training
examples that nobody trains on there; then they are fixed. Natural-gradient steps have the library's settings, which
were chosen likewise before. Only what clients send is counted.
"""

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.ticker import MaxNLocator

from experiments.fedfisher import natural_gradient
from experiments.lib import cells, common
from fedfisher_jax import Cohort, Federation, LocalTraining, categorical, cohort, data, evaluate, models, rounds
from fedfisher_jax.federate import fedprox, run_keys, scaffold
from fedfisher_jax.merge import fedavg

BATCH, HELD = 64, 1 / 6  # of the training examples, where settings are chosen
OURS, RIVALS = "natural gradient", {"FedAvg": 1, "FedProx": 1, "SCAFFOLD": 2}  # times FedAvg's bits
STRENGTHS = (0.01, 0.1, 1.0)  # FedProx's μ


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list`.
        examples: Training examples that are drawn for all clients together; 0 takes all.
        alpha: Concentration of the Dirichlet split.
        clients: Number of clients.
        steps: Natural-gradient steps, of two exchanges each, after the head.
        rates: Learning rates of the rivals' SGD that are chosen among.
        epochs: Numbers of local epochs that are chosen among.
        seeds: Each draws examples, a split, a start and training.
        tuning: Seeds of the choice, from 100 on.
    """

    dataset: str = "fashion_mnist"
    examples: int = 0
    alpha: float = 0.1
    clients: int = 5
    steps: int = 4
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    epochs: tuple[int, ...] = (1, 5)
    seeds: int = 3
    tuning: int = 2


QUICK = {"dataset": "digits", "steps": 1, "rates": (0.1,), "seeds": 1, "tuning": 1}
FIRST_CHOICE = 100


def dealt(here: cells.World, examples: int, clients: int, alpha: float, seed: int, held: bool) -> tuple[Cohort, Any]:
    """The clients of a seed, and the examples that models are judged by."""
    x, y, *test = here.arrays
    order = np.random.default_rng(seed).permutation(len(y))
    aside = order[: round(HELD * len(y))]
    pool = (order[len(aside) :] if held else order)[: examples or len(order)]
    parts = data.split("dirichlet-client", here.dataset.train_y[pool], clients, seed=seed, alpha=alpha)
    who = cohort(x, y, [pool[part] for part in parts], length=len(pool))
    return who, (x[aside], y[aside]) if held else tuple(test)


@cache
def federation_of(dataset: str, method: str, clients: int, rate: float, epochs: int, mu: float) -> Federation:
    """One object for all seeds, so that it is compiled once."""
    here = cells.world(dataset, cells.model_of(dataset))
    training = LocalTraining(here.network.apply, categorical(), optax.sgd(rate), epochs, BATCH)
    variant = {"FedAvg": None, "FedProx": fedprox(mu), "SCAFFOLD": scaffold(rate)}[method]
    return Federation(training, fedavg(here.network.apply, categorical()), clients, variant=variant)


def run(method: str, world: dict[str, Any], seed: int, held: bool, many: int, **chosen: Any) -> dict[str, Any]:
    """Accuracy and bits a client has sent, after every exchange; `many` are steps of ours, or rounds."""
    dataset, clients = world["dataset"], world["clients"]
    here = cells.world(dataset, cells.model_of(dataset))
    who, judged = dealt(here, world["examples"], clients, world["alpha"], seed, held)
    if method == OURS:
        return natural_gradient.columns(natural_gradient.followed(here, seed, who, judged, many, {}))
    federation, key = federation_of(dataset, method, clients, **chosen), run_keys(seed)
    start = here.network.init(key.init)
    start = models.designed(start) if "conv1" in start else start
    state, found = rounds.init(federation, start, clients, key.train), []
    for number in range(many):
        try:
            state, _ = rounds.step(federation, state, who)
        except ValueError as error:
            if "NaN or infinity" not in str(error):
                raise
            found += [0.0] * (many - number)  # it diverged
            break
        found.append(float(evaluate(here.network.apply, categorical(), state.params, *judged).accuracy))
    size = 32 * sum(leaf.size for leaf in jax.tree.leaves(start)) * RIVALS[method]
    return {"accuracy": found, "bits": [size * (number + 1) for number in range(many)]}


def chosen_by_validation(settings: Settings, fixed: dict[str, Any], method: str, many: int, best: Any) -> Any:
    """The candidate of the best mean accuracy after the last round, and all candidates' accuracies."""
    if method == "FedProx":
        candidates = [best | {"mu": mu} for mu in STRENGTHS]
    else:
        candidates = [{"rate": r, "epochs": e, "mu": 0.0} for e in settings.epochs for r in settings.rates]
    seeds = range(FIRST_CHOICE, FIRST_CHOICE + settings.tuning)
    grid = [
        fixed | {"method": method, "seed": s, "held": True, "many": many} | one for one in candidates for s in seeds
    ]
    records = common.run_all(settings.out, grid, run, f"choosing for {method}")
    last = [100 * record["result"]["accuracy"][-1] for record in records]
    found = np.reshape(last, (len(candidates), settings.tuning)).mean(1)
    return candidates[int(np.argmax(found))], list(zip(candidates, found, strict=True))


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    fixed = {"world": {name: getattr(settings, name) for name in ("dataset", "examples", "alpha", "clients")}}
    seeds = range(settings.seed, settings.seed + settings.seeds)
    ours = [fixed | {"method": OURS, "seed": seed, "held": False, "many": settings.steps} for seed in seeds]
    records = {OURS: common.run_all(settings.out, ours, run, OURS)}
    bits = np.asarray(records[OURS][0]["result"]["bits"])
    here = cells.world(settings.dataset, cells.model_of(settings.dataset))
    size = 32 * sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(here.network.init, jax.random.key(0))))
    best, choices = None, {}
    for method, times in RIVALS.items():
        many = max(len(bits), int(bits[-1] // (times * size)))
        best_here, choices[method] = chosen_by_validation(settings, fixed, method, many, best)
        best = best or best_here
        grid = [fixed | {"method": method, "seed": s, "held": False, "many": many} | best_here for s in seeds]
        records[method] = common.run_all(settings.out, grid, run, method)
    curves = {
        method: [np.asarray([r["result"][name] for r in found]) for name in ("accuracy", "bits")]
        for method, found in records.items()
    }
    shown = range(0, len(bits), 2)  # of our exchanges: the model changes in every second one
    text = describe(settings) + table(
        "exchanges",
        [str(n + 1) for n in shown],
        {method: [(100 * accuracy[:, n], sent[0, n]) for n in shown] for method, (accuracy, sent) in curves.items()},
    )
    within = {
        method: [_last_within(accuracy, sent, bits[n]) for n in shown] for method, (accuracy, sent) in curves.items()
    }
    text += "\n" + table("at most, MB", [f"{bits[n] / 8e6:.2f}" for n in shown], within)
    for method, found in choices.items():
        words = [f"{one['rate']:g}, {one['epochs']}, {one['mu']:g}: {accuracy:.1f}" for one, accuracy in found]
        about = "validation accuracy in % by rate, local epochs, μ (0 where it diverged)"
        text += f"\n{method}, {about}: {'; '.join(words)}.\n"
    summary: dict[str, Any] = {}
    for method, (accuracy, _) in curves.items():
        by_bits = {f"{bits[n] / 8e6:.2f}": one[0].mean() for n, one in zip(shown, within[method], strict=True) if one}
        by_exchanges = {str(n + 1): 100 * accuracy[:, n].mean() for n in shown}
        summary[method] = {"by_exchanges": by_exchanges, "within_megabytes": by_bits}
    common.report(settings.out, text, {"accuracy": summary}, figure(curves, shown))


def _last_within(accuracy: np.ndarray, sent: np.ndarray, room: float) -> Any:
    """Accuracies after as many exchanges as fit, and their bits; None where none does."""
    fit = int((sent[0] <= room).sum())
    return (100 * accuracy[:, fit - 1], sent[0, fit - 1]) if fit else None


def describe(settings: Settings) -> str:
    """What the numbers are of."""
    return (
        f"Test accuracy in % on {settings.dataset}, {settings.examples or 'all'} training examples, {settings.clients} "
        f"clients, α = {settings.alpha:g}, mean ± std over {settings.seeds} seeds; in brackets the megabytes that a "
        f"client has sent. Choices by {settings.tuning} tuning seed{'s' * (settings.tuning > 1)}, {HELD:.0%} of the "
        "training examples held out.\n\n"
    )


def table(corner: str, header: Sequence[str], rows: dict[str, Any]) -> str:
    """Accuracies with megabytes."""
    said = lambda one: f"{common.mean_std(one[0])} ({one[1] / 8e6:.2f})" if one else "–"  # noqa: E731
    return common.markdown_table([corner, *header], [[name, *map(said, found)] for name, found in rows.items()])


def figure(curves: dict[str, Any], shown: Sequence[int]) -> Any:
    """Accuracy against exchanges, and against megabytes."""
    fig, axes = common.figure(1, 2)
    own = common.rule_colours(curves, {OURS: "natural-gradient", "FedAvg": "fedavg"})
    for method, (accuracy, sent) in curves.items():
        places = list(shown) if method == OURS else range(accuracy.shape[1])
        for axis, x in zip(axes[0], ([n + 1 for n in places], [sent[0, n] / 8e6 for n in places]), strict=True):
            axis.errorbar(x, [100 * accuracy[:, n].mean() for n in places], fmt="o-", color=own[method], label=method)
    axes[0, 0].set(xlabel="exchanges", ylabel="test accuracy (%)")
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 1].set(xlabel="megabytes that a client has sent")
    axes[0, 0].legend()
    return fig


if __name__ == "__main__":
    main()
