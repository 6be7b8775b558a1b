"""Private training over rounds as a rival of private heads: accuracy against ε, one example replaced as heads promise.

The data and networks of `privacy.heads`. "one shot" and "rounds" are FedAvg of clients that train by DP-SGD, each with
all of the noise, as nobody is trusted; ε is composed over all rounds. "a sum a step" is DP-SGD whose every step is a
secure sum of all clients' clipped gradients with the noise divided among them: the computation of one client with
everybody's examples, and hundreds of secure sums where a head needs one or two. Dirichlet splits have α = 10, which
favours averages; heads do not depend on the split. DP-SGD's own promise is about an example that is added or removed; a
replaced one is both, so it is kept for ε/2 and δ/(1 + e^(ε/2)). Rounds, local epochs, clip and learning rate are chosen
for every method and ε, by accuracy on a fifth of the training examples, with two seeds (`--tuning`) that the table does
not have; the choice itself is not paid for, which favours these rivals. Where examples are many (`--dataset
fashion_mnist`), a pass over them is many steps and takes minutes: `--passes 4` fixes how many there are.
"""

import dataclasses
import math
from functools import cache, partial
from itertools import product
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedfisher_jax as ff
from experiments.lib import common
from experiments.privacy.heads import MODELS
from fedfisher_jax.federate import run_keys
from fedfisher_jax.federate._private import Private
from fedfisher_jax.privacy import dp_training

EPSILONS, DELTA, ALPHA, BATCH = (0.5, 1.0, 2.0, 8.0), 1e-5, 10.0, 64
CLIPS, RATES, MOMENTUM = (0.1, 0.3), (0.03, 0.1, 0.3, 1.0), 0.9  # what steps depend on is mostly their product
Schedules = tuple[tuple[int, int], ...]  # to choose from: rounds and local epochs
HOW: dict[str, tuple[int, Schedules]] = {  # method → clients that train, schedules
    "one shot": (5, ((1, 3), (1, 10), (1, 30))),
    "rounds": (5, ((10, 1), (30, 1), (10, 3), (30, 3))),
    "a sum a step": (1, ((1, 10), (1, 30), (1, 100))),
}
CHOSEN: tuple[str, ...] = ("rounds", "epochs", "clip", "rate")
TUNING = 1000  # the first seed of split, start and training to choose with


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        dataset: digits (MLP) or fashion_mnist (LeNet).
        seeds: How many seeds, each of a split, a start and training.
        epsilons: The promise's ε, one or several.
        clips: To choose from.
        rates: Learning rates to choose from.
        batch: Mean number of examples in a step of DP-SGD.
        passes: Epochs in all of the schedules to choose from, in the place of those above: rounds of one epoch, or one
            training of so many.
        tuning: How many seeds of their own settings are chosen with; where there is nothing to choose, nothing is run.
        methods: Those to run, as the table names them; by default all.
    """

    dataset: str = "digits"
    seeds: int = 5
    epsilons: tuple[float, ...] = EPSILONS
    clips: tuple[float, ...] = CLIPS
    rates: tuple[float, ...] = RATES
    batch: int = BATCH
    passes: tuple[int, ...] = ()
    tuning: int = 2
    methods: tuple[Literal["one shot", "rounds", "a sum a step"], ...] = ()


@cache
def world_of(dataset: str) -> tuple[Any, Any]:
    """The data and the network."""
    found = ff.data.load(dataset)
    return found, ff.models.build(MODELS[dataset], found.train_x.shape[1:], found.num_classes)


@cache
def noise_for(epsilon: float, sizes: tuple[int, ...], rounds: int, epochs: int, batch: int = BATCH) -> float:
    """The noise multiplier of all steps, for the client that needs most."""
    asked = {"batch_size": batch, "epochs": epochs, "releases": rounds, "clip_gradients": 1.0}
    return promised(epsilon, sizes, **asked).noise_multiplier


def promised(epsilon: float, sizes: int | tuple[int, ...], **asked: Any) -> dp_training.Promise:
    """What keeps (ε, `DELTA`) for an example that is replaced: that is one removed, and another one added."""
    found = dp_training.promise(epsilon / 2, DELTA / (1 + math.exp(epsilon / 2)), sizes, **asked)
    if found.places > places(asked["batch_size"]):
        raise ValueError(f"places: got {found.places}, expected at most {places(asked['batch_size'])}")
    return found


def places(batch: int) -> int:
    """Room for a step's sample, so that one program serves all noises."""
    return 2 * batch + 32


@partial(jax.jit, static_argnums=(0, 1))
def federated(
    network: Any,
    batch: int,
    start: Any,
    clients: ff.Examples,
    schedule: Any,
    noise: Any,
    clip: Any,
    rate: Any,
    key: jax.Array,
) -> Any:
    """Rounds of FedAvg over private training, one program for all settings.

    Args:
        network: the network.
        batch: mean number of examples in a step.
        start: the common model.
        clients: `indices` and `size` with a leading axis of clients.
        schedule: rounds and local epochs.
        noise: each client's noise multiplier; None: training without clips and noise.
        clip: largest norm of an example's gradient.
        rate: learning rate.
        key: random key.
    """
    optimizer, (rounds, epochs) = optax.sgd(rate, MOMENTUM), schedule
    weights = clients.size / jnp.sum(clients.size)

    def one(number: Any, params: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(key, number), len(weights))

        def own(client: Any) -> Any:
            indices, size, own_key, multiplier = client
            kept = None if multiplier is None else Private(clip, multiplier, places(batch))
            training = ff.LocalTraining(network.apply, ff.categorical(), optimizer, epochs, batch, private=kept)
            return ff.train(training, params, clients._replace(indices=indices, size=size), own_key).params

        sent = jax.lax.map(own, (clients.indices, clients.size, keys, noise))
        return jax.tree.map(lambda leaf: jnp.tensordot(weights.astype(leaf.dtype), leaf, 1), sent)

    return jax.lax.fori_loop(0, rounds, one, start)


def accuracy(
    dataset: str, how: str, epsilon: float, seed: int, inside: np.ndarray, chosen: dict[str, Any], test: Any
) -> float:
    """Accuracy on the test examples of clients that have the training examples `inside`."""
    (_, network), key = world_of(dataset), run_keys(seed)
    clients, sizes = split(dataset, inside, HOW[how][0], seed, ALPHA)
    schedule, batch = (chosen["rounds"], chosen["epochs"]), chosen.get("batch", BATCH)
    noise = jnp.full(len(sizes), noise_for(epsilon, sizes, *schedule, batch))
    start, rest = network.init(key.init), (chosen["clip"], chosen["rate"], key.train)
    model = federated(network, batch, start, clients, schedule, noise, *rest)
    return float(ff.evaluate(network.apply, ff.categorical(), model, *test).accuracy)


def split(dataset: str, inside: np.ndarray, count: int, seed: int, alpha: float) -> tuple[ff.Examples, tuple[int, ...]]:
    """Clients of a Dirichlet split of the training examples `inside`, stacked, and their sizes."""
    found, _ = world_of(dataset)
    parts = [inside]
    if count > 1:
        parts = ff.data.split("dirichlet-client", found.train_y[inside], count, seed=seed, alpha=alpha)
        parts = [inside[part] for part in parts]
    rows, sizes = np.zeros((count, len(found.train_y)), np.int32), tuple(map(len, parts))
    for row, part in zip(rows, parts, strict=True):
        row[: len(part)] = part
    x, y = jnp.asarray(found.train_x), jnp.asarray(found.train_y)
    return ff.Examples(x, y, jnp.asarray(rows), jnp.asarray(sizes, jnp.int32)), sizes


def choose(
    dataset: str, how: str, epsilon: float, tuning: list[int], schedules: Any, clips: Any, rates: Any, **fixed: Any
) -> dict[str, Any]:
    """The settings with the best mean accuracy on examples that are held out, and that accuracy."""
    found, _ = world_of(dataset)
    best: dict[str, Any] = {"accuracy": -1.0}
    among = [dict(zip(CHOSEN, (*one[0], *one[1:]), strict=True)) for one in product(schedules, clips, rates)]
    if len(among) == 1:
        return among[0]
    for chosen in among:
        scores = []
        for seed in tuning:
            order = np.random.default_rng(seed).permutation(len(found.train_y))
            out, inside = np.split(order, [len(order) // 5])
            held = found.train_x[out], found.train_y[out]
            scores.append(accuracy(dataset, how, epsilon, seed, np.sort(inside), chosen | fixed, held))
        if np.mean(scores) > best["accuracy"]:
            best = chosen | {"accuracy": float(np.mean(scores))}
    return best


def run(how: str, epsilon: float, dataset: str = "digits", **settings: Any) -> dict[str, Any]:
    """A choice of settings, or the accuracy on the test examples of the settings that were chosen."""
    if "tuning" in settings:
        return choose(dataset, how, epsilon, **settings)
    found, _ = world_of(dataset)
    everybody, test = np.arange(len(found.train_y)), (found.test_x, found.test_y)
    return {"accuracy": accuracy(dataset, how, epsilon, settings["seed"], everybody, settings, test)}


def main() -> None:
    """Runs what is missing and reports."""
    quick = {"seeds": 1, "epsilons": (8.0,), "tuning": 1}
    settings = common.command_line(Settings, __doc__, quick=quick)
    tuning = list(range(TUNING, TUNING + settings.tuning))
    methods = settings.methods or tuple(HOW)
    pairs = list(product(methods, settings.epsilons))
    where: dict[str, Any] = {} if settings.dataset == Settings.dataset else {"dataset": settings.dataset}
    where |= {} if settings.batch == BATCH else {"batch": settings.batch}
    among = {"tuning": tuning, "clips": settings.clips, "rates": settings.rates, **where}
    given = {how: [(n, 1) if how == "rounds" else (1, n) for n in settings.passes] for how in methods}
    asked = [{"how": h, "epsilon": e, "schedules": given[h] or list(HOW[h][1]), **among} for h, e in pairs]
    best = [record["result"] for record in common.run_all(settings.out, asked, run, "choices")]
    chosen = {pair: {name: one[name] for name in CHOSEN} for pair, one in zip(pairs, best, strict=True)}
    seeds = range(settings.seed, settings.seed + settings.seeds)
    grid = [{"how": how, "epsilon": e, "seed": seed, **chosen[how, e], **where} for how, e in pairs for seed in seeds]
    records, rows, summary = common.run_all(settings.out, grid, run), [], {}
    for how in methods:
        found = [common.column(records, "accuracy", how=how, epsilon=e) for e in settings.epsilons]
        rows.append([how, *(common.mean_std(one, scale=100) for one in found)])
        for e, one in zip(settings.epsilons, found, strict=True):
            summary[f"{how}, epsilon {e:g}"] = float(one.mean())
    text = (
        f"Accuracy in %, {settings.dataset}, five clients, δ = {DELTA:g}, replace one example; mean ± std over "
        f"{settings.seeds} seeds.\n\n"
    ) + common.markdown_table(["method", *(f"ε = {e:g}" for e in settings.epsilons)], rows)
    picked = [[how, f"{e:g}", *chosen[how, e].values()] for how, e in pairs]
    some = any(len(settings.clips) * len(settings.rates) * len(one["schedules"]) > 1 for one in asked)
    told = (
        "Chosen on held-out training examples of seeds that the table does not have" if some else "Settings, as given"
    )
    text += f"\n{told}:\n\n"
    text += common.markdown_table(["method", "ε", "rounds", "local epochs", "clip", "learning rate"], picked)
    common.report(settings.out, text, summary)


if __name__ == "__main__":
    main()
