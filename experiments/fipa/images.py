"""FIPA as a refinement of FedAvg, FedProx and SCAFFOLD on images: many clients, few of them in a round (2601.13608).

Each client optimiser runs alone, and with FIPA as the server's rule in the last rounds: on the last layer's Fisher, the
other layers averaged, or on the whole model's. Outside of the clients' span FIPA averages. After FedAvg come
FIPA of other ranks, FedFisher and FedFish, too. Accuracy against rounds and against bits that one client sends.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.fipa.fields import BITS
from experiments.lib import cells, common
from fedfisher_jax import Examples, Federation, LocalTraining, categorical, cohort, data, evaluate, rounds
from fedfisher_jax.curvature import Subspace
from fedfisher_jax.federate import Variant, crop_and_flip, fedprox, payload_bits, scaffold
from fedfisher_jax.merge import Update, fedavg, fedfish, fedfisher, fipa


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
        further_ranks: Others, on FedAvg's last layer.
        oversampling: Further vectors while they are looked for.
        tau: Damping, relative to the largest eigenvalue.
        variants: Client optimisers, of fedavg, fedprox, scaffold.
        refinements: Of none, last (layer), whole (model).
        rivals: Of fedfisher, fedfish: in FIPA's place, after FedAvg.
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
    further_ranks: tuple[int, ...] = (1, 5, 50)
    oversampling: int = 5
    tau: float = 0.1
    variants: tuple[str, ...] = ("fedavg", "fedprox", "scaffold")
    refinements: tuple[str, ...] = ("none", "last", "whole")
    rivals: tuple[str, ...] = ("fedfisher", "fedfish")
    seeds: int = 3


QUICK = {"dataset": "digits", "clients": 20, "participation": 0.25, "rounds": 12, "warm_up": 8, "seeds": 2}
BATCH = 32
VARIANTS = {"fedavg": "FedAvg", "fedprox": "FedProx", "scaffold": "SCAFFOLD"}
REFINEMENTS = {"none": "", "last": " + FIPA, last layer", "whole": " + FIPA, whole model"}
RIVALS = {"fedfisher": " + FedFisher (K-FAC)", "fedfish": " + FedFish"}
FIXED = ("dataset", "clients", "participation", "alpha", "rounds", "warm_up", "epochs", "learning_rate", "mu")
FIPA_ONLY = ("rank", "oversampling", "tau")


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
def federations(one: Settings, variant: str, refinement: str) -> tuple[Federation, Federation]:
    """The warm-up and the rounds after it; the same objects for all seeds, so they are compiled once.

    Raises:
        ValueError: unknown variant or refinement.
    """
    here = world(one)
    apply, likelihood = here.network.apply, categorical()
    augment = crop_and_flip() if here.dataset.augment else None
    training = LocalTraining(apply, likelihood, optax.sgd(one.learning_rate), one.epochs, BATCH, augment)
    chosen, sampled = variant_of(variant, one.learning_rate, one.mu), rounds.fraction(one.participation, one.clients)
    first = Federation(training, fedavg(apply, likelihood), sampled, variant=chosen)
    if refinement == "none":
        return first, first
    if refinement == "fedfisher":
        rule = fedfisher(apply, likelihood, structure="kronecker", captured=here.captured)
    elif refinement == "fedfish":
        rule = fedfish(apply, likelihood)
    elif refinement in REFINEMENTS:
        layer = "".join(f"['{name}']" for name in cells.last_layer(here))
        effort = Subspace(one.rank, one.oversampling, where=partial(begins, layer) if refinement == "last" else None)
        rule = fipa(apply, likelihood, off_span="fedavg", tau=one.tau, subspace=effort, batch_size=128)
    else:
        raise ValueError(f"refinements: got {refinement!r}, expected one of {', '.join(REFINEMENTS | RIVALS)}")
    return first, dataclasses.replace(first, rule=rule)


def world(one: Settings) -> cells.World:
    """Data and network."""
    return cells.world(one.dataset, cells.MODELS.get(one.dataset, cells.ELSEWHERE))


def bits_sent(federation: Federation, params: Any, here: cells.World) -> int:
    """What a client sends in a round, from the shapes of its payload; SCAFFOLD's control variate is one more model."""
    squares = params if federation.rule.squares else None
    few = Examples(*here.arrays[:2], jnp.zeros(1, jnp.int32), jnp.ones((), jnp.int32))
    payload = jax.eval_shape(federation.rule.measure, Update(params, params, squares, 1), few, jax.random.key(0))
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), payload)
    own = None if federation.variant is None else federation.variant.own(params)
    return payload_bits(stacked) + BITS * sum(leaf.size for leaf in jax.tree.leaves(own))


def run(variant: str, refinement: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One federation: accuracies and losses [rounds], and bits that a client has sent by then if it is always in."""
    one = Settings(**settings)
    here = world(one)
    x, y, test_x, test_y = here.arrays
    parts = data.split("dirichlet-client", here.dataset.train_y, one.clients, seed=seed, alpha=one.alpha)
    who = cohort(x, y, parts)
    init_key, key = jax.random.split(jax.random.key(seed))
    first, second = federations(one, variant, refinement)
    state = rounds.init(first, here.network.init(init_key), one.clients, key)
    before, after = (bits_sent(federation, state.params, here) for federation in (first, second))
    found: dict[str, list[float]] = {"accuracy": [], "loss": [], "joint_rank": []}
    for number in range(one.rounds):
        state, report = rounds.step(first if number < one.warm_up else second, state, who)
        scores = evaluate(here.network.apply, categorical(), state.params, test_x, test_y)
        found["accuracy"].append(float(scores.accuracy))
        found["loss"].append(float(scores.loss))
        found["joint_rank"].append(float(report.diagnostics.get("joint_rank", np.nan)))
    sent = np.where(np.arange(one.rounds) < one.warm_up, before, after)
    return {**found, "bits": np.cumsum(sent)}


Key = tuple[str, str, int]  # variant, refinement, rank


def panels_of(settings: Settings) -> list[dict[Key, str]]:
    """What is compared, with its label: a panel for each client optimiser, and one for what else may follow FedAvg."""
    rank = settings.rank
    panels = [{(v, r, rank): VARIANTS[v] + REFINEMENTS[r] for r in settings.refinements} for v in settings.variants]
    more = {("fedavg", "last", r): f"FedAvg{REFINEMENTS['last']}, rank {r}" for r in settings.further_ranks}
    more |= {("fedavg", rival, rank): f"FedAvg{RIVALS[rival]}" for rival in settings.rivals}
    return panels + ([{("fedavg", "none", rank): "FedAvg", **more}] if more else [])


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    panels = panels_of(settings)
    labels = {key: label for panel in panels for key, label in panel.items()}
    grid = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        for variant, refinement, rank in labels:
            names = FIXED + (FIPA_ONLY if refinement in ("last", "whole") else ())
            chosen = {name: getattr(settings, name) for name in names} | ({"rank": rank} if "rank" in names else {})
            grid.append({"variant": variant, "refinement": refinement, "seed": seed, "settings": chosen})
    records = common.run_all(settings.out, grid, run)
    found = {key: [r["result"] for r in records[place :: len(labels)]] for place, key in enumerate(labels)}
    accuracies = {key: 100 * np.array([result["accuracy"] for result in results]) for key, results in found.items()}
    megabytes = {key: np.array(results[0]["bits"]) / 8e6 for key, results in found.items()}

    rows, summary = [], {}
    for key, label in labels.items():
        alone, mine = accuracies.get((key[0], "none", settings.rank)), accuracies[key]
        means = [values[:, settings.warm_up :].mean(axis=1) for values in (mine, mine if alone is None else alone)]
        gains = ["", ""]
        if alone is not None and key[1] != "none":
            gains = [gain(means[0] - means[1]), gain(mine[:, -1] - alone[:, -1])]
        columns = (mine[:, settings.warm_up - 1], means[0], mine[:, -1])
        rows.append([label, *[common.mean_std(values) for values in columns], *gains, f"{megabytes[key][-1]:.2f}"])
        spread = mine[:, -1].std(ddof=1) if len(mine) > 1 else 0.0
        summary[label] = {"final": mine[:, -1].mean(), "std": spread, "after_warm_up": means[0].mean()}
    after = f"mean of {settings.warm_up + 1}–{settings.rounds}"
    last = f"round {settings.rounds}"
    header = ["", f"round {settings.warm_up}", after, last, f"gain, {after}", f"gain, {last}", "MB up"]
    text = f"{settings.dataset}, {settings.clients} clients, {100 * settings.participation:g} % a round, "
    text += f"α = {settings.alpha:g}; test accuracy in %, mean ± std over {settings.seeds} seeds. After a + stands the "
    text += f"server's rule from round {settings.warm_up + 1} on; FIPA of rank {settings.rank} unless said. Gains are "
    text += "paired; in brackets the seeds on which there is one.\n\n"
    text += common.markdown_table(header, rows)

    fig, axes = common.figure(len(panels), 2, width=4.6)
    for (left, right), panel in zip(axes, panels, strict=True):
        for key, label in panel.items():
            left.plot(np.arange(1, settings.rounds + 1), accuracies[key].mean(0), label=label)
            right.plot(megabytes[key], accuracies[key].mean(0), label=label)
        left.set(xlabel="rounds", ylabel="test accuracy (%), mean")
        right.set(xlabel="MB sent by a client that is in every round")
        left.legend()
    common.report(settings.out, text, {"accuracy": summary}, fig)


def gain(differences: np.ndarray) -> str:
    """Mean, spread, and how many of the paired differences are above zero."""
    return f"{common.mean_std(differences)} ({(differences > 0).sum()}/{len(differences)})"


if __name__ == "__main__":
    main()
