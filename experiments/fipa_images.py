"""FIPA as a refinement of FedAvg, FedProx and SCAFFOLD on images: many clients, few of them in a round (2601.13608).

Each client optimiser runs alone, and with FIPA as the server's rule in the last rounds: on the last layer's Fisher, the
other layers averaged, or on the whole model's. Outside of the clients' span FIPA averages. Accuracy against rounds and
against bits that one client sends.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import cells
import common
import jax
import numpy as np
import optax
from fields import BITS

from fedfisher_jax import data, rounds, simulate
from fedfisher_jax.curvature import Subspace
from fedfisher_jax.likelihood import categorical
from fedfisher_jax.merge import every_round, fedavg, fipa
from fedfisher_jax.metrics import evaluate
from fedfisher_jax.variants import Variant, fedprox, scaffold


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list` (fashion_mnist, cifar10, cifar100, …), or a path to an .npz file.
        clients: All clients.
        participation: Share of them in a round.
        alpha: Concentration of the Dirichlet split.
        rounds: Of each federation.
        warm_up: Rounds before FIPA begins.
        epochs: Local epochs of SGD.
        learning_rate: Of local SGD, without momentum.
        mu: Of FedProx.
        rank: Eigenpairs of a client.
        oversampling: Further vectors while they are looked for.
        tau: Damping, relative to the largest eigenvalue.
        variants: Client optimisers, of fedavg, fedprox, scaffold.
        refinements: Of none, last (layer), whole (model).
        seeds: Each draws split, start, sampling and training.
    """

    dataset: str = "fashion_mnist"
    clients: int = 100
    participation: float = 0.05
    alpha: float = 0.1
    rounds: int = 24
    warm_up: int = 16
    epochs: int = 1
    learning_rate: float = 0.05
    mu: float = 0.01
    rank: int = 10
    oversampling: int = 5
    tau: float = 0.1
    variants: tuple[str, ...] = ("fedavg", "fedprox", "scaffold")
    refinements: tuple[str, ...] = ("none", "last", "whole")
    seeds: int = 3


QUICK = {"dataset": "digits", "clients": 20, "participation": 0.25, "rounds": 12, "warm_up": 8, "seeds": 2}
BATCH = 32
VARIANTS = {"fedavg": "FedAvg", "fedprox": "FedProx", "scaffold": "SCAFFOLD"}
REFINEMENTS = {"none": "", "last": " + FIPA, last layer", "whole": " + FIPA, whole model"}
FIXED = ("dataset", "clients", "participation", "alpha", "rounds", "warm_up", "epochs", "learning_rate", "mu")
FIPA_ONLY = ("rank", "oversampling", "tau")


def last_layer(params: Any) -> str:
    """How the paths of the last layer's parameters begin; layers are in the order of their names."""
    path = [path for path, _ in jax.tree.leaves_with_path(params)][-1]
    return jax.tree_util.keystr(path[:1])


def begins(start: str, path: str) -> bool:
    """Whether a parameter is in a layer."""
    return path.startswith(start)


def variant_of(name: str, learning_rate: float, mu: float) -> Variant | None:
    """The client optimiser.

    Raises:
        ValueError: unknown name.
    """
    if name not in VARIANTS:
        raise ValueError(f"variants: got {name!r}, expected one of {', '.join(VARIANTS)}")
    return {"fedavg": None, "fedprox": fedprox(mu), "scaffold": scaffold(learning_rate)}[name]


@cache
def plans(one: Settings, variant: str, refinement: str) -> tuple[rounds.Plan, rounds.Plan]:
    """Of the warm-up and of the rounds after it; the same objects for all seeds, so they are compiled once.

    Raises:
        ValueError: unknown variant or refinement.
    """
    if refinement not in REFINEMENTS:
        raise ValueError(f"refinements: got {refinement!r}, expected one of {', '.join(REFINEMENTS)}")
    network = cells.world(one.dataset, cells.MODELS.get(one.dataset, cells.ELSEWHERE)).network
    apply, likelihood = network.apply, categorical()
    train = simulate.Train(apply, likelihood, optax.sgd(one.learning_rate), one.epochs, BATCH)
    chosen, sampled = variant_of(variant, one.learning_rate, one.mu), rounds.fraction(one.participation, one.clients)
    first = rounds.Plan(train, every_round(fedavg(apply, likelihood)), sampled, variant=chosen)
    if refinement == "none":
        return first, first
    start = last_layer(jax.eval_shape(network.init, jax.random.key(0)))
    where = partial(begins, start) if refinement == "last" else None
    effort = Subspace(one.rank, one.oversampling, where=where)
    options = {"rank": one.rank, "off_span": "fedavg", "tau": one.tau, "subspace": effort, "batch_size": 128}
    return first, dataclasses.replace(first, rule=fipa(apply, likelihood, **options))


def numbers_sent(params: Any, one: Settings, variant: str, refinement: str) -> tuple[int, int]:
    """Numbers that a client sends in a round of the warm-up, and after it."""
    sizes = {jax.tree_util.keystr(path): leaf.size for path, leaf in jax.tree.leaves_with_path(params)}
    d = sum(sizes.values())
    covered = {"none": 0, "whole": d, "last": sum(n for path, n in sizes.items() if begins(last_layer(params), path))}
    first = 2 * d if variant == "scaffold" else d
    more = one.rank * (covered[refinement] + 1) if refinement != "none" else 0
    return first, first + more


def run(variant: str, refinement: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One federation: accuracies and losses [rounds], and bits that a client has sent by then if it is always in."""
    one = Settings(**settings)
    here = cells.world(one.dataset, cells.MODELS.get(one.dataset, cells.ELSEWHERE))
    x, y, test_x, test_y = here.arrays
    parts = data.split("dirichlet-client", here.dataset.train_y, one.clients, seed=seed, alpha=one.alpha)
    who = simulate.clients(parts)
    init_key, key = jax.random.split(jax.random.key(seed))
    first, second = plans(one, variant, refinement)
    state = rounds.init(first, here.network.init(init_key), one.clients, key)
    before, after = numbers_sent(state.params, one, variant, refinement)
    found: dict[str, list[float]] = {"accuracy": [], "loss": [], "joint_rank": []}
    for number in range(one.rounds):
        state, metrics = rounds.step(first if number < one.warm_up else second, state, x, y, who)
        scores = evaluate(here.network.apply, categorical(), state.params, test_x, test_y)
        found["accuracy"].append(float(scores.accuracy))
        found["loss"].append(float(scores.loss))
        found["joint_rank"].append(float(metrics.diagnostics.get("joint_rank", np.nan)))
    sent = np.where(np.arange(one.rounds) < one.warm_up, before, after)
    return {**found, "bits": BITS * np.cumsum(sent)}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    labels = {(v, r): VARIANTS[v] + REFINEMENTS[r] for v in settings.variants for r in settings.refinements}
    grid = []
    for seed in seeds:
        for variant, refinement in labels:
            names = FIXED + (FIPA_ONLY if refinement != "none" else ())
            chosen = {name: getattr(settings, name) for name in names}
            grid.append({"variant": variant, "refinement": refinement, "seed": seed, "settings": chosen})
    records = common.run_all(settings.out, grid, run)

    def curves(variant: str, refinement: str, name: str = "accuracy") -> np.ndarray:
        return common.column(records, name, variant=variant, refinement=refinement)

    rows, summary = [], {}
    fig, axes = common.figure(len(settings.variants), 2, width=4.6)
    for (variant, refinement), label in labels.items():
        accuracy, bits = 100 * curves(variant, refinement), curves(variant, refinement, "bits")[0]
        refined = accuracy[:, settings.warm_up :].mean(axis=1)
        cells_ = [common.mean_std(accuracy[:, settings.warm_up - 1]), common.mean_std(accuracy[:, -1])]
        alone, gain = 100 * curves(variant, "none")[:, settings.warm_up :].mean(axis=1), ""
        if refinement != "none" and len(alone):
            gain = f"{common.mean_std(refined - alone)} ({(refined > alone).sum()}/{len(alone)})"
        rows.append([label, *cells_, common.mean_std(refined), gain, f"{bits[-1] / 8e6:.2f}"])
        spread = accuracy[:, -1].std(ddof=1) if len(accuracy) > 1 else 0.0
        summary[label] = {"final": accuracy[:, -1].mean(), "std": spread, "after_warm_up": refined.mean()}
        place = settings.refinements.index(refinement)
        row = axes[settings.variants.index(variant)]
        row[0].plot(np.arange(1, settings.rounds + 1), accuracy.mean(0), color=common.COLOURS[place], label=label)
        row[1].plot(bits / 8e6, accuracy.mean(0), color=common.COLOURS[place], label=label)
        row[0].set(xlabel="rounds", ylabel="test accuracy (%), mean")
        row[1].set(xlabel="MB sent by a client that is in every round")
        row[0].legend()
    text = f"{settings.dataset}, {settings.clients} clients, {100 * settings.participation:g} % a round, "
    text += f"α = {settings.alpha:g}; test accuracy in %, mean ± std over {settings.seeds} seeds. FIPA (rank "
    text += f"{settings.rank}) from round {settings.warm_up + 1} of {settings.rounds}; gains are paired, over the mean "
    text += "of those rounds.\n\n"
    header = ["", f"round {settings.warm_up}", f"round {settings.rounds}", "mean after warm-up", "gain", "MB up"]
    text += common.markdown_table(header, rows)
    common.report(settings.out, text, {"accuracy": summary}, fig)


if __name__ == "__main__":
    main()
