"""Merges with privacy of every example for all that clients send: models, and statistics beside them.

Digits, an MLP, clients of a Dirichlet split; each seed with a split, a start, training and noise of its own. Clients
train by DP-SGD, measure at their own models and add all of the noise themselves; "recalibrated" is FedAvg, then sums of
the last layer's inputs at its model, with noise by each client or divided among all of them inside a secure sum. Every
cell keeps one promise about one example that is added or removed, composed over all that its silo sends: FedAvg spends
it on training alone, others three quarters of it (`dp_training.Beside`), and the analytic head, for which nothing is
trained, all of it on its sums. Norms are clipped far below those of most
examples, which depends on no data: clips that merges do not depend on the scale of. Nothing was tuned.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedfisher_jax as ff
from experiments.lib import common
from fedfisher_jax.curvature import capture
from fedfisher_jax.federate import merge_clients, run_keys
from fedfisher_jax.federate._private import Private
from fedfisher_jax.merge import Payload, Rule, Update, analytic, recalibrate, regmean
from fedfisher_jax.privacy import dp_training, example_noise

EPSILONS, DELTA, BATCH, PLACES, CLIP = (0.5, 1.0, 2.0, 8.0), 1e-5, 64, 160, 1e-3
RATE, MOMENTUM, CLIP_GRADIENTS = 0.01, 0.9, 1.0
RULES = ("fedfisher-diag", "regmean", "fedfisher-kfac")
HEADS = {"fedavg, recalibrated": 1, "fedavg, recalibrated, divided noise": 0}  # how often all of the noise is added
ROWS = ("fedavg", *RULES, *HEADS, "analytic head")


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: How many, each of a split, a start, training and noise.
        clients: Their number.
        alphas: Concentrations of the Dirichlet splits.
        epochs: Local epochs.
    """

    seeds: int = 5
    clients: int = 5
    alphas: tuple[float, ...] = (10.0, 0.5)
    epochs: int = 30


@cache
def world() -> tuple[Any, Any, dict[str, Rule]]:
    """The data, the network and the rules."""
    found = ff.data.load("digits")
    network = ff.models.build("mlp", found.train_x.shape[1:], found.num_classes, hidden=(32,))
    model = network.apply, ff.categorical()
    captured: dict[str, Any] = {"captured": capture(network.apply, network.init(jax.random.key(0)), found.train_x)}
    rules = {"fedavg": ff.fedavg(*model), "regmean": regmean(*model, **captured)}
    rules |= {"head": recalibrate(*model, **captured), "analytic head": analytic(*model, **captured)}
    named = {"fedfisher-diag": "diagonal", "fedfisher-kfac": "kronecker"}
    return found, network, rules | {n: ff.fedfisher(*model, structure=s, **captured) for n, s in named.items()}


@cache
def promised_for(epsilon: float, size: int, epochs: int, beside: bool) -> dp_training.Promise:
    """What a client of this size promises."""
    asked = {"batch_size": BATCH, "epochs": epochs, "clip_gradients": CLIP_GRADIENTS}
    more = dp_training.Beside(clip_fisher=CLIP, clip_features=CLIP) if beside else None
    found = dp_training.promise(epsilon, DELTA, size, **asked, beside=more)
    if found.places > PLACES:
        raise ValueError(f"places: got {found.places}, expected at most {PLACES}")
    return found


def whole(epsilon: float) -> example_noise.Promise:
    """What a client promises about a head alone: an example that is added moves its sums by one, in their scale."""
    found = example_noise.promise(epsilon, DELTA, clip_features=CLIP)
    return found._replace(noise_multiplier=found.noise_multiplier / example_noise.sensitivity())


@partial(jax.jit, static_argnums=(0, 4))
def trained(epochs: int, start: Any, clients: ff.Examples, noise: Any, private: bool, key: jax.Array) -> Any:
    """Models of all clients, stacked; one program for all seeds and noises."""
    kept = lambda one: Private(CLIP_GRADIENTS, one, PLACES) if private else None  # noqa: E731

    def own(client: Any) -> Any:
        rows, size, one, number = client
        optimizer = optax.sgd(RATE, MOMENTUM)
        training = ff.LocalTraining(world()[1].apply, ff.categorical(), optimizer, epochs, BATCH, private=kept(one))
        mine = clients._replace(indices=rows, size=size)
        return ff.train(training, start, mine, jax.random.fold_in(key, number)).params

    return jax.lax.map(own, (clients.indices, clients.size, noise, jnp.arange(len(noise))))


@cache
def measure_of(name: str, clipped: bool) -> Any:
    """A rule's measure as one program: clips and likelihoods do not depend on seeds."""
    rule = world()[2][name]
    if clipped:
        promised = promised_for(1.0, 1000, 1, True)
        head = example_noise.after_training(promised) if name in ("head", "analytic head") else promised
        rule = example_noise.clipped(rule, head)
    return jax.jit(rule.measure)


def run(seed: int, alpha: float, clients: int, epochs: int, epsilon: float | None, clipped: bool) -> dict[str, float]:
    """Accuracy of every merge, in %."""
    (found, network, rules), key = world(), run_keys(seed)
    parts = ff.data.split("dirichlet-client", found.train_y, clients, seed=seed, alpha=alpha)
    rows, sizes = np.zeros((clients, len(found.train_y)), np.int32), [len(part) for part in parts]
    for row, part in zip(rows, parts, strict=True):
        row[: len(part)] = part
    x, y = jnp.asarray(found.train_x), jnp.asarray(found.train_y)
    everybody = ff.Examples(x, y, jnp.asarray(rows), jnp.asarray(sizes, jnp.int32))
    own = [everybody._replace(indices=everybody.indices[n], size=everybody.size[n]) for n in range(clients)]
    start, draw = network.init(key.init), np.random.default_rng([seed, int(10 * (epsilon or 0))])

    def models(promises: list[Any]) -> Any:
        noise = jnp.asarray([0.0 if one is None else one.noise_multiplier for one in promises])
        return trained(epochs, start, everybody, noise, epsilon is not None, key.train)

    def merged(name: str, sent: list[Payload]) -> Any:
        return merge_clients(rules[name], jax.tree.map(lambda *leaves: jnp.stack(leaves), *sent), start).params

    def score(params: Any) -> float:
        return 100 * float(ff.evaluate(network.apply, ff.categorical(), params, found.test_x, found.test_y).accuracy)

    def averaged(local: Any) -> Any:
        return merged(
            "fedavg", [Payload(jnp.asarray(float(n)), jax.tree.map(lambda a: a[i], local)) for i, n in enumerate(sizes)]
        )

    alone: list[Any] = [None if epsilon is None else promised_for(epsilon, n, epochs, False) for n in sizes]
    beside: list[Any] = [None if epsilon is None else promised_for(epsilon, n, epochs, True) for n in sizes]
    local = models(beside)
    result = {"fedavg": score(averaged(local if epsilon is None else models(alone)))}
    for name in RULES:
        measure, sent = measure_of(name, clipped), []
        for number, promised in enumerate(beside):
            update = Update(jax.tree.map(lambda leaf, n=number: leaf[n], local), start)
            one = measure(update, own[number], jax.random.fold_in(key.measure, number))
            sent.append(one if promised is None else example_noise.noisy(one, promised, lambda s: draw.normal(size=s)))
        result[name] = score(merged(name, sent))
    for name, times in (*HEADS.items(), ("analytic head", 1)):
        rule, model = ("head", averaged(local)) if name in HEADS else (name, start)
        sent = [measure_of(rule, clipped)(Update(None, model), one, key.measure) for one in own]
        if epsilon is not None:
            drawn = lambda shape: draw.normal(size=shape)  # noqa: E731
            how: dict[str, Any] = {} if times else {"trust": "distributed", "sharers": clients}
            kept = [whole(epsilon) if name == rule else example_noise.after_training(one, **how) for one in beside]
            sent = [example_noise.noisy(one, p, drawn) for one, p in zip(sent, kept, strict=True)]
        result[name] = score(ff.merge_payloads(rules[rule], sent, model).params)
    return result


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 1, "alphas": (10.0,), "epochs": 2})
    cells = [(epsilon, True) for epsilon in EPSILONS] + [(None, True), (None, False)]
    grid = [
        {"seed": seed, "alpha": alpha, "clients": settings.clients, "epochs": settings.epochs}
        | {"epsilon": epsilon, "clipped": clipped}
        for alpha in settings.alphas
        for epsilon, clipped in cells
        for seed in range(settings.seed, settings.seed + settings.seeds)
    ]
    records = common.run_all(settings.out, grid, run)
    text = f"Accuracy in %, digits, {settings.clients} clients, δ = {DELTA:g}, one example added or removed; "
    text += f"mean ± std over {settings.seeds} seeds.\n"
    summary: dict[str, float] = {}
    for alpha in settings.alphas:
        rows = []
        for name in ROWS:
            found = [common.column(records, name, alpha=alpha, epsilon=e, clipped=c) for e, c in cells]
            rows.append([name, *map(common.mean_std, found)])
            told = ("no noise" if c else "as it is" if e is None else "" for e, c in cells)
            names = [words if e is None else f"epsilon {e:g}" for (e, _), words in zip(cells, told, strict=True)]
            summary |= {f"alpha {alpha:g}, {name}, {n}": float(v.mean()) for n, v in zip(names, found, strict=True)}
        header = ["merge", *(f"ε = {epsilon:g}" for epsilon in EPSILONS), "clipped, no noise", "neither"]
        text += f"\nα = {alpha:g}\n\n" + common.markdown_table(header, rows)
    common.report(settings.out, text, summary)


if __name__ == "__main__":
    main()
