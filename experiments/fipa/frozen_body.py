"""A control for FIPA on the last layer (arXiv 2601.13608): after FedAvg's warm-up nothing but that layer is trained.

FIPA on the last layer averages all others, which go on learning. Here they are frozen (`fedfisher_jax.trainable`), so
that clients train, measure and send the last layer alone: what FIPA gains on it is seen without the body's progress.
Clients, warm-up and settings are those of `experiments/fipa/images.toml`; "whole" is FedAvg of all layers from there.
"""

import dataclasses
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import optax

from experiments.lib import cells, common
from experiments.lib.gains import paired
from fedfisher_jax import (
    Cohort,
    Federation,
    LocalTraining,
    Rule,
    categorical,
    cohort,
    data,
    evaluate,
    examples,
    fedavg,
    rounds,
    trainable,
)
from fedfisher_jax.curvature import Subspace
from fedfisher_jax.federate import run_keys
from fedfisher_jax.merge import PastFishers, fipa

PARTS = ("whole", "last")
METHODS = ("fedavg", "fipa", "fipa, memory")


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list`.
        seed: The first seed: of the split, the start, the rounds' clients and their training.
        seeds: How many seeds.
        clients: Number of clients.
        sampled: Clients in a round.
        alpha: Concentration of the Dirichlet split.
        warm_up: Rounds of FedAvg, of all layers.
        rounds: Rounds after them.
        rates: Rates of the server's step.
    """

    dataset: str = "fashion_mnist"
    seed: int = 30
    seeds: int = 5
    clients: int = 100
    sampled: int = 5
    alpha: float = 0.1
    warm_up: int = 200
    rounds: int = 30
    rates: tuple[float, ...] = (1.0, 0.25, 0.1)


class Warm(NamedTuple):
    """What every method goes on from."""

    here: cells.World
    training: LocalTraining
    who: Cohort
    state: rounds.State


@cache
def warm(dataset: str, seed: int, clients: int, sampled: int, alpha: float, count: int) -> Warm:
    """The state after FedAvg's rounds."""
    here = cells.world(dataset, cells.model_of(dataset))
    x, y, *_ = here.arrays
    keys, apply = run_keys(seed), here.network.apply
    parts = data.split("dirichlet-client", here.dataset.train_y, clients, seed=seed, alpha=alpha)
    training = LocalTraining(apply, categorical(), optax.sgd(0.05, 0.0), 1, 32)
    federation = Federation(training, fedavg(apply, categorical()), sampled)
    who = cohort(x, y, parts)
    state = rounds.init(federation, here.network.init(keys.init), clients, keys.train)
    for _ in range(count):
        state, _ = rounds.step(federation, state, who)
    return Warm(here, training, who, state)


def rule_of(method: str, apply: Any) -> Rule:
    """FedAvg, or FIPA with the settings of the table on images."""
    if method == "fedavg":
        return fedavg(apply, categorical())
    past = PastFishers() if method == "fipa, memory" else None
    return fipa(apply, categorical(), subspace=Subspace(oversampling=5), batch_size=128, past=past)


def run(method: str, part: str, rate: float, seed: int, num_rounds: int, **setting: Any) -> dict[str, Any]:
    """One method after the warm-up: test accuracy after every round, and what a client sends in one."""
    found = warm(seed=seed, **setting)
    here, before = found.here, found.state
    last = "/".join(cells.last_layer(here))
    model = trainable(
        here.network.apply, before.params, lambda path: part == "whole" or path.rpartition("/")[0] == last
    )
    training = dataclasses.replace(found.training, apply=model.apply)
    federation = Federation(training, rule_of(method, model.apply), setting["sampled"], optax.sgd(rate))
    state = rounds.init(federation, model.params, len(found.who.sizes), before.key)._replace(round=before.round)
    *_, test_x, test_y = here.arrays
    accuracy, moved = [], []
    for _ in range(num_rounds):
        state, told = rounds.step(federation, state, found.who)
        accuracy.append(float(evaluate(model.apply, categorical(), state.params, test_x, test_y).accuracy))
        moved.append(float(told.moved))
    few = examples(found.who.x[:1], found.who.y[:1])
    return {"accuracy": accuracy, "moved": moved, "bits": rounds.bits_up(federation, model.params, few)}


def main() -> None:
    """Runs what is missing and reports."""
    quick = {"dataset": "digits", "clients": 8, "sampled": 3, "seeds": 2, "warm_up": 2, "rounds": 3, "rates": (0.25,)}
    settings = common.command_line(Settings, __doc__, quick=quick)
    fixed = {name: getattr(settings, name) for name in ("dataset", "clients", "sampled", "alpha")}
    fixed |= {"count": settings.warm_up, "num_rounds": settings.rounds}
    seeds = range(settings.seed, settings.seed + settings.seeds)
    methods = [("fedavg", "whole"), *((method, "last") for method in METHODS)]
    columns = [(method, part, rate) for method, part in methods for rate in settings.rates]
    grid = [{"method": m, "part": p, "rate": r, "seed": s, **fixed} for s in seeds for m, p, r in columns]
    records = common.run_all(settings.out, grid, run)

    def column(name: str, method: str, part: str, rate: float) -> np.ndarray:
        return common.column(records, name, method=method, part=part, rate=rate)

    means = {one: 100 * column("accuracy", *one).mean(1) for one in columns}
    frozen = [one for one in columns if one[1] == "last"]
    best = max((one for one in frozen if one[0] == "fedavg"), key=lambda one: means[one].mean())
    gains = {one: paired(means[one], means[best]) for one in columns}
    rows = []
    for one in columns:
        method, part, rate = one
        gap = common.mean_std(gains[one]["differences"])
        rows.append(
            [
                f"{method}, {'all layers' if part == 'whole' else 'last layer'}, rate {rate:g}",
                common.mean_std(means[one]),
                "the best" if one == best else f"{gap}, {gains[one]['seeds_better']}/{settings.seeds}",
                common.mean_std(column("moved", *one).mean(1), 3),
                f"{column('bits', *one)[0] / 8000:.1f}",
            ]
        )
    text = (
        f"{settings.dataset}, {settings.clients} clients, α = {settings.alpha:g}, {settings.sampled} in a round: test "
        f"accuracy in %, mean over {settings.rounds} rounds after {settings.warm_up} of FedAvg, mean±std over "
        f"{settings.seeds} seeds; then against FedAvg of the last layer at the rate that is best on these seeds. FIPA: "
        "rank 10, τ = 0.01, clipped. Moved: length of the server's step. kB: what a client sends in a round.\n\n"
    )
    header = ["", "accuracy", "over the best FedAvg of the last layer", "moved", "kB"]
    fig, axes = common.figure(1, 1, width=5.5)
    for one in columns:
        method, part, rate = one
        style = {"whole": ":", "last": "-"}[part]
        colour = common.COLOURS[METHODS.index(method) if part == "last" else 6]
        label = f"{method}{', all layers' * (part == 'whole')}, {rate:g}"
        curve, width = 100 * column("accuracy", *one).mean(0), 0.7 + 1.3 * rate
        axes[0, 0].plot(np.arange(1, len(curve) + 1), curve, style, color=colour, linewidth=width, label=label)
    axes[0, 0].set(xlabel="rounds after the warm-up", ylabel="test accuracy (%)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    told = {f"{m}, {p}, {r:g}": {"mean": float(means[m, p, r].mean()), **gains[m, p, r]} for m, p, r in columns}
    summary = {"seeds": settings.seeds, "rival": list(best), "methods": told}
    common.report(settings.out, text + common.markdown_table(header, rows), summary, fig)


if __name__ == "__main__":
    main()
