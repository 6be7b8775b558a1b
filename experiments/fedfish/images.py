"""FedFish against FedAvg on images as local epochs grow (2311.10291): accuracy, Client-Server Barrier, personalisation.

Many clients, a few sampled a round, the same number of rounds for every number of local epochs. A tenth of the clients
is held out: the final model is fine-tuned on each one's training half and scored on its test half.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib import cells, common
from fedfisher_jax import Federation, LocalTraining, categorical, cohort, data, evaluate, personalise, rounds
from fedfisher_jax.merge import Rule, fedavg, fedfish


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list` (emnist, cifar100, fashion_mnist, …), or a path to an .npz file.
        clients: All clients; a tenth of them is held out for personalisation.
        sampled: Clients in a round.
        alpha: Concentration of the Dirichlet split.
        rounds: Of each federation.
        epochs: Numbers of local epochs to compare.
        methods: Of fedavg, fedfish (squared minibatch gradients), fedfish-exact, fedfish-kfac.
        server: The server's optimiser: "plain" takes the merged model; "adam" at rate 0.01, as the paper's.
        learning_rate: Of local SGD, without momentum.
        seeds: Each draws split, start, sampling and training.
    """

    dataset: str = "fashion_mnist"
    clients: int = 100
    sampled: int = 10
    alpha: float = 0.1
    rounds: int = 10
    epochs: tuple[int, ...] = (1, 4, 16)
    methods: tuple[str, ...] = ("fedavg", "fedfish")
    server: Literal["plain", "adam"] = "plain"
    learning_rate: float = 0.05
    seeds: int = 3


QUICK = {"dataset": "digits", "clients": 20, "sampled": 5, "rounds": 8, "epochs": (1, 4), "seeds": 2}
BATCH, TUNED_EPOCHS, SHOTS = 32, 3, 10
TUNING = optax.sgd(0.01)
NAMES = {"fedavg": "FedAvg", "fedfish": "FedFish", "fedfish-exact": "FedFish, exact", "fedfish-kfac": "FedFish, K-FAC"}


def rule_of(method: str, apply: Any) -> Rule:
    """The rule of a method.

    Raises:
        ValueError: unknown method.
    """
    if method == "fedavg":
        return fedavg(apply, categorical())
    options = {"fedfish": {}, "fedfish-exact": {"estimator": "exact"}}
    options["fedfish-kfac"] = {"estimator": "exact", "structure": "kronecker"}
    if method not in options:
        raise ValueError(f"methods: got {method!r}, expected one of {', '.join(NAMES)}")
    return fedfish(apply, categorical(), **options[method])


def run(
    method: str,
    epochs: int,
    seed: int,
    dataset: str,
    clients: int,
    sampled: int,
    alpha: float,
    num_rounds: int,
    server: str,
    learning_rate: float,
) -> dict[str, Any]:
    """One federation and its personalisation."""
    here = cells.world(dataset, cells.MODELS.get(dataset, cells.ELSEWHERE))
    apply, (x, y, test_x, test_y) = here.network.apply, here.arrays
    parts = data.split("dirichlet-client", here.dataset.train_y, clients, seed=seed, alpha=alpha)
    order = np.random.default_rng(seed).permutation(clients)
    held, taking_part = order[: clients // 10], order[clients // 10 :]
    longest = max(map(len, parts))
    who = cohort(x, y, [parts[i] for i in taking_part], length=longest)
    training = LocalTraining(apply, categorical(), optax.sgd(learning_rate), epochs, BATCH)
    optimizer = optax.adam(0.01) if server == "adam" else None
    federation = Federation(training, rule_of(method, apply), sampled, optimizer, barrier=True)
    init_key, key, tune_key, split_key = jax.random.split(jax.random.key(seed), 4)
    state = rounds.init(federation, here.network.init(init_key), len(who.sizes), key)
    found: dict[str, list[float]] = {"accuracy": [], "barrier_loss": [], "barrier_accuracy": []}
    for _ in range(num_rounds):
        state, report = rounds.step(federation, state, who)
        found["accuracy"].append(float(evaluate(apply, categorical(), state.params, test_x, test_y).accuracy))
        for name in ("barrier_loss", "barrier_accuracy"):
            found[name].append(float(getattr(report, name)))
    shuffle = np.random.default_rng(int(jax.random.randint(split_key, (), 0, 2**31 - 1)))
    halves = [np.array_split(shuffle.permutation(parts[i]), 2) for i in held if len(parts[i]) >= 2]
    mine, theirs = (cohort(x, y, [pair[side] for pair in halves], length=longest) for side in (0, 1))
    tuning = LocalTraining(apply, categorical(), TUNING, TUNED_EPOCHS, BATCH)
    result: dict[str, Any] = dict(found)
    for name, shots in (("all", None), ("few", SHOTS)):
        scores = personalise(tuning, state.params, mine, theirs, tune_key, shots=shots)
        result[f"personal_before_{name}"] = float(jnp.mean(scores.accuracy_before))
        result[f"personal_{name}"] = float(jnp.mean(scores.accuracy))
    return result


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    for method in settings.methods:
        rule_of(method, lambda params, x: x)
    names = ("dataset", "clients", "sampled", "alpha", "server", "learning_rate")
    fixed = {name: getattr(settings, name) for name in names} | {"num_rounds": settings.rounds}
    seeds = range(settings.seed, settings.seed + settings.seeds)
    grid = [
        {"method": m, "epochs": e, "seed": s, **fixed} for s in seeds for e in settings.epochs for m in settings.methods
    ]
    records = common.run_all(settings.out, grid, run)

    def last(name: str, **where: Any) -> np.ndarray:
        """Mean over the last fifth of the rounds, per seed."""
        curve = common.column(records, name, **where)
        return curve[:, -max(1, settings.rounds // 5) :].mean(1)

    columns = {
        "accuracy (%)": lambda **w: 100 * last("accuracy", **w),
        "barrier, loss": lambda **w: last("barrier_loss", **w),
        "barrier, accuracy (%)": lambda **w: 100 * last("barrier_accuracy", **w),
        "held out, before (%)": lambda **w: 100 * common.column(records, "personal_before_all", **w),
        "held out, tuned (%)": lambda **w: 100 * common.column(records, "personal_all", **w),
        f"held out, {SHOTS} shots (%)": lambda **w: 100 * common.column(records, "personal_few", **w),
    }
    rows, gains = [], {}
    for epochs in settings.epochs:
        for method in settings.methods:
            cells_ = [common.mean_std(get(method=method, epochs=epochs), 2) for get in columns.values()]
            rows.append([f"{NAMES[method]}, {epochs} epochs", *cells_])
        for method in settings.methods[1:]:
            pairs = [
                get(method=method, epochs=epochs) - get(method=settings.methods[0], epochs=epochs)
                for get in columns.values()
            ]
            gains[f"{method}, {epochs} epochs"] = {name: pair.mean() for name, pair in zip(columns, pairs, strict=True)}
            rows.append(
                [f"{NAMES[method]} − {NAMES[settings.methods[0]]}, {epochs}", *[common.mean_std(p, 2) for p in pairs]]
            )
    # The authors' open question: does the barrier (early in training) predict the final accuracy, over runs?
    barrier = np.array([np.mean(r["result"]["barrier_loss"][: max(1, settings.rounds // 2)]) for r in records])
    final = np.array([np.mean(r["result"]["accuracy"][-max(1, settings.rounds // 5) :]) for r in records])
    correlation = {"all runs": float(np.corrcoef(barrier, final)[0, 1])}
    for epochs in settings.epochs:
        chosen = np.array([r["settings"]["epochs"] == epochs for r in records])
        correlation[f"{epochs} epochs"] = float(np.corrcoef(barrier[chosen], final[chosen])[0, 1])
    text = (
        f"{settings.dataset}, {settings.clients} clients, α = {settings.alpha:g}, {settings.sampled} sampled a round, "
        f"{settings.rounds} rounds, server {settings.server}; means over the last fifth of the rounds; mean ± std "
        f"over {settings.seeds} seeds (split, start, sampling, training); differences are paired. Barriers: lower is "
        "better.\n\n"
        + common.markdown_table(["", *columns], rows)
        + "\nCorrelation of the barrier (loss, first half of the rounds) with the final accuracy: "
        + "; ".join(f"{name}: {value:.2f}" for name, value in correlation.items())
        + f" ({len(records)} runs).\n"
    )
    fig, axes = common.figure(1, 4, width=3.4)
    for method, colour in zip(settings.methods, common.COLOURS, strict=False):
        for axis, name in zip(axes[0], ("accuracy (%)", "barrier, loss", "held out, tuned (%)"), strict=False):
            points = [columns[name](method=method, epochs=e) for e in settings.epochs]
            spread = [p.std(ddof=1) if len(p) > 1 else 0 for p in points]
            axis.errorbar(
                settings.epochs, [p.mean() for p in points], spread, fmt="o-", color=colour, label=NAMES[method]
            )
            axis.set(xlabel="local epochs", ylabel=name, xscale="log", xticks=settings.epochs)
            axis.set_xticklabels([str(e) for e in settings.epochs])
            axis.minorticks_off()
        for epochs, style in zip(settings.epochs, ("-", "--", ":", "-."), strict=False):
            curve = 100 * common.column(records, "accuracy", method=method, epochs=epochs).mean(0)
            label = f"{NAMES[method]}, {epochs}"
            axes[0, 3].plot(range(1, settings.rounds + 1), curve, style, color=colour, label=label)
    axes[0, 3].set(xlabel="rounds", ylabel="accuracy (%)")
    for axis in (axes[0, 0], axes[0, 3]):
        axis.legend()
    accuracy = {
        m: {str(e): 100 * last("accuracy", method=m, epochs=e).mean() for e in settings.epochs}
        for m in settings.methods
    }
    common.report(settings.out, text, {"accuracy": accuracy, "gains": gains, "correlation": correlation}, fig)


if __name__ == "__main__":
    main()
