"""FedFish against FedAvg on images as local epochs grow (2311.10291), each with the server optimiser that is its best.

Many clients, a few sampled a round. A tenth of the clients is held out: the final model is fine-tuned on each one's
training half and scored on its test half. The server optimisers were chosen on seeds 20 to 22 and no other ones.
"""

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib import cells, common, over_rounds
from fedfisher_jax import Federation, LocalTraining, categorical, cohort, data, evaluate, personalise, rounds
from fedfisher_jax.merge import catalogue


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list` (emnist, cifar100, fashion_mnist, …), or a path to an .npz file.
        examples: Training examples that are drawn anew for each seed and dealt to the clients; 0 takes all.
        clients: All clients; a tenth of them is held out for personalisation.
        sampled: Clients in a round.
        alpha: Concentration of the Dirichlet split.
        epochs: Numbers of local epochs to compare.
        rounds: Of each federation, one number for each number of epochs.
        rules: FedAvg first, then what is compared with it, by the names of `fedfisher list`.
        server: "best": the server optimiser that a search found for each rule and number of epochs; or one for all:
            plain, sgd-RATE, sgd-RATE-MOMENTUM, adam-RATE.
        learning_rate: Of local SGD, without momentum.
        seeds: Each draws examples, split, start, sampling and training.
    """

    dataset: str = "fashion_mnist"
    examples: int = 12_000
    clients: int = 100
    sampled: int = 10
    alpha: float = 0.1
    epochs: tuple[int, ...] = (1, 4, 16)
    rounds: tuple[int, ...] = (20, 12, 10)
    rules: tuple[str, ...] = ("fedavg", "fedfish")
    server: str = "best"
    learning_rate: float = 0.05
    seed: int = 30
    seeds: int = 5


QUICK = {
    "dataset": "digits",
    "examples": 0,
    "clients": 20,
    "sampled": 5,
    "epochs": (1, 4),
    "rounds": (8, 8),
    "seeds": 2,
}
BATCH, TUNED_EPOCHS, SHOTS, EVERY, LAST = 32, 3, 10, 5, 5
TUNING = optax.sgd(0.01)
NAMES = {"fedavg": "FedAvg", "fedfish": "FedFish", "fedfish-kfac": "FedFish, K-FAC"} | {
    "fedfish,scale=mean": "FedFish, by mean",
    "fedfish,estimator=squares": "FedFish, squared gradients",
}
FOUND = {("fedavg", 1): "adam-0.005"}  # by the search on seeds 20 to 22; elsewhere the next line
ELSEWHERE = "adam-0.01"


def server_of(settings: Settings, rule: str, epochs: int) -> str:
    """The server optimiser of a run."""
    return FOUND.get((rule, epochs), ELSEWHERE) if settings.server == "best" else settings.server


@cache
def federation_of(dataset: str, rule: str, epochs: int, sampled: int, server: str, learning_rate: float) -> Federation:
    """One object for all seeds, so that it is compiled once."""
    here = cells.world(dataset, cells.model_of(dataset))
    apply, likelihood = here.network.apply, categorical()
    training = LocalTraining(apply, likelihood, optax.sgd(learning_rate), epochs, BATCH)
    named = catalogue.named_rule(rule, apply, likelihood, offers={"captured": here.captured})
    return Federation(training, named, sampled, over_rounds.server(server), barrier=True)


def run(rule: str, epochs: int, num_rounds: int, server: str, seed: int, **world: Any) -> dict[str, Any]:
    """One federation and its personalisation."""
    dataset, clients = world["dataset"], world["clients"]
    here = cells.world(dataset, cells.model_of(dataset))
    apply, (x, y, test_x, test_y) = here.network.apply, here.arrays
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(y))[: world["examples"] or len(y)]
    split = data.split("dirichlet-client", here.dataset.train_y[drawn], clients, seed=seed, alpha=world["alpha"])
    held = clients // 10
    parts = [drawn[split[i]] for i in rng.permutation(clients)]  # the last ones are held out
    everyone = cohort(x, y, parts, length=len(drawn))  # rows of one length: every seed runs the same programs
    who = everyone.sample(np.arange(clients - held))
    federation = federation_of(dataset, rule, epochs, world["sampled"], server, world["learning_rate"])
    init_key, key, tune_key = jax.random.split(jax.random.key(seed), 3)
    state = rounds.init(federation, here.network.init(init_key), clients - held, key)
    score = lambda params: float(evaluate(apply, categorical(), params, test_x, test_y).accuracy)  # noqa: E731
    state, found = over_rounds.follow(federation, state, who, num_rounds, score, EVERY, LAST)
    halves = [np.array_split(rng.permutation(part), 2) for part in parts[clients - held :] if len(part) >= 2]
    mine, theirs = (cohort(x, y, [pair[side] for pair in halves], length=len(drawn)) for side in (0, 1))
    tuning = LocalTraining(apply, categorical(), TUNING, TUNED_EPOCHS, BATCH)
    result: dict[str, Any] = dict(found)
    for name, shots in (("all", None), ("few", SHOTS)):
        scores = personalise(tuning, state.params, mine, theirs, tune_key, shots=shots)
        result[f"personal_before_{name}"] = float(jnp.mean(scores.accuracy_before))
        result[f"personal_{name}"] = float(jnp.mean(scores.accuracy))
    return result


def main() -> None:
    """Runs what is missing and reports.

    Raises:
        ValueError: not one number of rounds for each number of epochs.
    """
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    if len(settings.rounds) != len(settings.epochs):
        raise ValueError(f"rounds: got {len(settings.rounds)} numbers, expected {len(settings.epochs)}, as of epochs")
    names = ("dataset", "examples", "clients", "sampled", "alpha", "learning_rate")
    fixed = {name: getattr(settings, name) for name in names}
    pairs = [(rule, *both) for both in zip(settings.epochs, settings.rounds, strict=True) for rule in settings.rules]
    grid = [
        {"rule": r, "epochs": e, "num_rounds": n, "server": server_of(settings, r, e), "seed": s, **fixed}
        for s in range(settings.seed, settings.seed + settings.seeds)
        for r, e, n in pairs
    ]
    records = common.run_all(settings.out, grid, run)

    def last(name: str, scale: float) -> Any:
        return lambda **where: scale * common.column(records, name, **where)[:, -LAST:].mean(1)

    columns = {
        "accuracy (%)": last("accuracy", 100),
        "barrier, all rounds": lambda **w: common.column(records, "barrier_loss", **w).mean(1),
        "held out, before (%)": lambda **w: 100 * common.column(records, "personal_before_all", **w),
        "held out, tuned (%)": lambda **w: 100 * common.column(records, "personal_all", **w),
        f"held out, {SHOTS} shots (%)": lambda **w: 100 * common.column(records, "personal_few", **w),
    }
    base, others = settings.rules[0], settings.rules[1:]
    rows, gains, differences = [], {}, {}
    for rule, epochs, count in pairs:
        server = server_of(settings, rule, epochs)
        cells_ = [common.mean_std(get(rule=rule, epochs=epochs), 2) for get in columns.values()]
        rows.append([f"{epochs} epochs, {count} rounds: {NAMES.get(rule, rule)}, {server}", *cells_])
    for rule in others:
        for epochs in settings.epochs:
            mine, theirs = ({name: get(rule=r, epochs=epochs) for name, get in columns.items()} for r in (rule, base))
            found = {name: mine[name] - theirs[name] for name in columns}
            gains.setdefault(rule, {})[str(epochs)] = {name: value.mean() for name, value in found.items()}
            differences.setdefault(rule, {})[str(epochs)] = found["accuracy (%)"]
            rows.append(
                [f"{epochs} epochs: {NAMES.get(rule, rule)} − {NAMES[base]}", over_rounds.paired(found["accuracy (%)"])]
                + [common.mean_std(found[name], 2) for name in list(columns)[1:]]
            )
    how = "the best of each by a search on seeds 20 to 22" if settings.server == "best" else "the same for all"
    text = (
        f"{settings.dataset}, {settings.examples or 'all'} examples, {settings.clients} clients, a tenth of them held "
        f"out, α = {settings.alpha:g}, {settings.sampled} sampled a round; server optimiser: {how}. Accuracy: mean of "
        f"the last {LAST} rounds; mean ± std over seeds {settings.seed} to {settings.seed + settings.seeds - 1} "
        "(examples, split, start, sampling, training). Differences are paired: mean ± std, in brackets the mean's 95 % "
        "interval by Student's t, then the seeds on which it is above zero. Barriers: lower is better. FedFish's "
        "Fisher is the exact one unless said.\n\n" + common.markdown_table(["", *columns], rows)
    )
    summary: dict[str, Any] = {"seeds": settings.seeds, "first_seed": settings.seed, "gains": gains}
    if others:
        first = others[0]
        by_epochs = differences[first]
        summary |= {
            "gain_by_epochs": {e: float(d.mean()) for e, d in by_epochs.items()},
            "barrier_by_epochs": {e: g["barrier, all rounds"] for e, g in gains[first].items()},
            "seeds_better_by_epochs": {e: int((d > 0).sum()) for e, d in by_epochs.items()},
            "interval_by_epochs": {e: over_rounds.interval(d) for e, d in by_epochs.items()},
            "differences": differences,
        }
    common.report(settings.out, text, summary, _figure(settings, records, columns))


def _figure(settings: Settings, records: Any, columns: Any) -> Any:
    fig, axes = common.figure(1, 3, width=3.6)
    for rule, colour in zip(settings.rules, common.COLOURS, strict=False):
        for axis, name in zip(axes[0], ("accuracy (%)", "barrier, all rounds"), strict=False):
            points = [columns[name](rule=rule, epochs=e) for e in settings.epochs]
            spread = [p.std(ddof=1) if len(p) > 1 else 0 for p in points]
            label = NAMES.get(rule, rule)
            axis.errorbar(settings.epochs, [p.mean() for p in points], spread, fmt="o-", color=colour, label=label)
            axis.set(xlabel="local epochs", ylabel=name, xscale="log", xticks=settings.epochs)
            axis.set_xticklabels([str(e) for e in settings.epochs])
            axis.minorticks_off()
        for epochs, style in zip(settings.epochs, ("-", "--", ":", "-."), strict=False):
            curve = 100 * common.column(records, "accuracy", rule=rule, epochs=epochs).mean(0)
            scored = common.column(records, "scored", rule=rule, epochs=epochs)[0]
            axes[0, 2].plot(scored, curve, style, color=colour, label=f"{NAMES.get(rule, rule)}, {epochs}")
    axes[0, 2].set(xlabel="rounds", ylabel="accuracy (%)")
    for axis in (axes[0, 0], axes[0, 2]):
        axis.legend()
    return fig


if __name__ == "__main__":
    main()
