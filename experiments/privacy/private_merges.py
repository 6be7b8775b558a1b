"""Merges with privacy of every example for all that clients send: models, and statistics beside them.

Digits, an MLP, clients of a Dirichlet split; each seed with a split, a start, training and noise of its own. Clients
train by DP-SGD, measure at their own models and add all of the noise themselves; "recalibrated" is FedAvg, then sums of
the last layer's inputs at its model, with noise by each client or divided among all of them inside a secure sum. Every
cell keeps one promise about one example that is added or removed, composed over all that its silo sends: FedAvg spends
it on training alone, others three quarters of it (`dp_training.Beside`), and the analytic head, for which nothing is
trained, all of it on its sums; a natural-gradient step after it has two more exchanges, of three in all. Norms are
clipped far below those of most examples, which depends on no data: clips that merges do not depend on the scale of.
Class moments and steps have units, and there clips are what standardised inputs have on average: √64 for an input, 65
for its square and a constant's; 1 for a gradient, as for residuals of one-hot targets. Nothing was tuned.
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedfisher_jax as ff
from experiments.lib import common
from fedfisher_jax.curvature import capture
from fedfisher_jax.federate import merge_clients, run_keys
from fedfisher_jax.federate._private import Private
from fedfisher_jax.merge import (
    Payload,
    Rule,
    Update,
    analytic,
    exchanges,
    natural_gradient,
    pseudo_data,
    recalibrate,
    regmean,
)
from fedfisher_jax.privacy import dp_training, example_noise
from fedfisher_jax.privacy._example_parts import Clips, MeasureParts, Noise
from fedfisher_jax.privacy._noisy_parts import mended, private_parts, with_noise

EPSILONS, DELTA, BATCH, PLACES, CLIP = (0.5, 1.0, 2.0, 8.0), 1e-5, 64, 160, 1e-3
RATE, MOMENTUM, CLIP_GRADIENTS = 0.01, 0.9, 1.0
RULES = ("fedfisher-diag", "regmean", "fedfisher-kfac")
HEADS = {"fedavg, recalibrated": 1, "fedavg, recalibrated, divided noise": 0}  # how often all of the noise is added
ROWS = ("fedavg", *RULES, *HEADS, "analytic head")
MORE_EPSILONS, EXCHANGES, INPUTS = (1.0, 2.0, 8.0), 3, 8.0  # of a head and a step after it; norm of an input
STEPS, OF_STEPS = ("gradient", "length"), Clips(fisher=65.0, gradients=1.0)
STEPPED: dict[str, example_noise.Trust] = {
    "analytic head, stepped": "local",
    "analytic head, stepped, noise on sums": "central",
}


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
    low, high = float(found.train_x.min()), float(found.train_x.max())  # of pixels without and full of ink
    rules |= {"pseudo-data": pseudo_data(*model, low=low, high=high, **captured)}
    rules |= dict(zip(STEPS, exchanges(natural_gradient(*model, **captured)), strict=True))
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


def whole(epsilon: float, **how: Any) -> example_noise.Promise:
    """What a client promises about a head alone: an example that is added moves its sums by one, in their scale."""
    found = example_noise.promise(epsilon, DELTA, clip_features=CLIP, **how)
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
    if clipped and name in STEPS:
        return jax.jit(MeasureParts(rule.measure, OF_STEPS))
    if clipped:
        promised = promised_for(1.0, 1000, 1, True)
        head = example_noise.after_training(promised) if name in ("head", "analytic head") else promised
        rule = example_noise.clipped(rule, with_inputs(promised) if name == "pseudo-data" else head)
    return jax.jit(rule.measure)


def with_inputs(promised: Any) -> Any:
    """The same promise where inputs are clipped as `INPUTS` says: the noise follows the clip."""
    return None if promised is None else promised._replace(clip_features=INPUTS)


class Federation(NamedTuple):
    """A split, a start and what is done with them."""

    everybody: ff.Examples
    own: list[ff.Examples]
    start: Any
    key: Any

    @property
    def sizes(self) -> list[int]:
        """The clients' numbers of examples."""
        return [int(one.size) for one in self.own]

    def models(self, epochs: int, promises: list[Any]) -> Any:
        """The clients' models, trained as each promises, stacked."""
        noise = jnp.asarray([0.0 if one is None else one.noise_multiplier for one in promises])
        return trained(epochs, self.start, self.everybody, noise, promises[0] is not None, self.key.train)

    def merged(self, rule: str, sent: list[Payload]) -> Any:
        """The parameters that a rule of models makes of payloads."""
        return merge_clients(
            world()[2][rule], jax.tree.map(lambda *leaves: jnp.stack(leaves), *sent), self.start
        ).params

    def measured(self, rule: str, local: Any, clipped: bool, promises: list[Any], draw: Callable) -> list[Payload]:
        """What clients send of their models, with noise where they promise something."""
        measure, sent = measure_of(rule, clipped), []
        for number, promised in enumerate(promises):
            update = Update(jax.tree.map(lambda leaf, n=number: leaf[n], local), self.start)
            one = measure(update, self.own[number], jax.random.fold_in(self.key.measure, number))
            sent.append(one if promised is None else example_noise.noisy(one, promised, draw))
        return sent


def federation(seed: int, alpha: float, clients: int) -> Federation:
    """The clients of a seed."""
    (found, network, _), key = world(), run_keys(seed)
    parts = ff.data.split("dirichlet-client", found.train_y, clients, seed=seed, alpha=alpha)
    rows, sizes = np.zeros((clients, len(found.train_y)), np.int32), [len(part) for part in parts]
    for row, part in zip(rows, parts, strict=True):
        row[: len(part)] = part
    x, y = jnp.asarray(found.train_x), jnp.asarray(found.train_y)
    everybody = ff.Examples(x, y, jnp.asarray(rows), jnp.asarray(sizes, jnp.int32))
    own = [everybody._replace(indices=everybody.indices[n], size=everybody.size[n]) for n in range(clients)]
    return Federation(everybody, own, network.init(key.init), key)


def score(params: Any) -> float:
    """Accuracy on the test examples, in %."""
    found, network, _ = world()
    return 100 * float(ff.evaluate(network.apply, ff.categorical(), params, found.test_x, found.test_y).accuracy)


def run(
    seed: int, alpha: float, clients: int, epochs: int, epsilon: float | None, clipped: bool, more: bool = False
) -> dict[str, float]:
    """Accuracy of every merge, in %: of `ROWS`, or of pseudo-data and steps after a head."""
    here, draws = federation(seed, alpha, clients), np.random.default_rng([seed, int(10 * (epsilon or 0)), *[1] * more])
    draw = lambda shape: draws.normal(size=shape)  # noqa: E731
    beside: list[Any] = [None if epsilon is None else promised_for(epsilon, n, epochs, True) for n in here.sizes]
    local = here.models(epochs, beside)
    if more:
        sent = here.measured("pseudo-data", local, clipped, list(map(with_inputs, beside)), draw)
        result = {"pseudo-data": score(here.merged("pseudo-data", sent))}
        return result | {name: score(stepped(here, epsilon, clipped, how, draw)) for name, how in STEPPED.items()}
    rules, key = world()[2], here.key

    def averaged(local: Any) -> Any:
        sizes = enumerate(here.sizes)
        models = [(n, jax.tree.map(lambda leaf, i=i: leaf[i], local)) for i, n in sizes]
        return here.merged("fedavg", [Payload(jnp.asarray(float(n)), model) for n, model in models])

    alone: list[Any] = [None if epsilon is None else promised_for(epsilon, n, epochs, False) for n in here.sizes]
    result = {"fedavg": score(averaged(local if epsilon is None else here.models(epochs, alone)))}
    for name in RULES:
        result[name] = score(here.merged(name, here.measured(name, local, clipped, beside, draw)))
    for name, times in (*HEADS.items(), ("analytic head", 1)):
        rule, model = ("head", averaged(local)) if name in HEADS else (name, here.start)
        sent = [measure_of(rule, clipped)(Update(None, model), one, key.measure) for one in here.own]
        if epsilon is not None:
            how: dict[str, Any] = {} if times else {"trust": "distributed", "sharers": clients}
            kept = [whole(epsilon) if name == rule else example_noise.after_training(one, **how) for one in beside]
            sent = [example_noise.noisy(one, p, draw) for one, p in zip(sent, kept, strict=True)]
        result[name] = score(ff.merge_payloads(rules[rule], sent, model).params)
    return result


def stepped(here: Federation, epsilon: float | None, clipped: bool, trust: example_noise.Trust, draw: Callable) -> Any:
    """The model of an analytic head and a natural-gradient step after it, with noise by each client or on sums."""

    def measured(name: str, model: Any) -> list[Payload]:
        keys = jax.random.split(here.key.measure, len(here.own))
        return [measure_of(name, clipped)(Update(None, model), one, k) for one, k in zip(here.own, keys, strict=True)]

    rules, sent = world()[2], measured("analytic head", here.start)
    if epsilon is not None:
        how: dict[str, Any] = {} if trust == "local" else {"trust": "distributed", "sharers": len(here.own)}
        sent = [example_noise.noisy(one, whole(epsilon, releases=EXCHANGES, **how), draw) for one in sent]
    model = ff.merge_payloads(rules["analytic head"], sent, here.start).params
    for name in STEPS:
        rule, sent = rules[name], measured(name, model)
        if epsilon is not None:
            multiplier = example_noise.promise(epsilon, DELTA, releases=EXCHANGES).noise_multiplier
            noise = Noise(multiplier, OF_STEPS, replaced=False)
            if trust == "local":
                sent = [mended(with_noise(one, noise, draw), noise) for one in sent]
            else:
                rule = private_parts(rule, noise, trust, draw)
        model = ff.merge_payloads(rule, sent, model).params
    return model


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 1, "alphas": (10.0,), "epochs": 2})
    cells = [(epsilon, True) for epsilon in EPSILONS] + [(None, True), (None, False)]
    shared = {"clients": settings.clients, "epochs": settings.epochs}
    grid = [
        {"seed": seed, "alpha": alpha, **shared, "epsilon": epsilon, "clipped": clipped, **more}
        for more in ({}, {"more": True})
        for alpha in settings.alphas
        for epsilon, clipped in cells
        for seed in range(settings.seed, settings.seed + settings.seeds)
        if not more or epsilon in (*MORE_EPSILONS, None)
    ]
    records = common.run_all(settings.out, grid, run)
    text = f"Accuracy in %, digits, {settings.clients} clients, δ = {DELTA:g}, one example added or removed; "
    text += f"mean ± std over {settings.seeds} seeds.\n"
    summary: dict[str, float] = {}
    for alpha in settings.alphas:
        rows = []
        for name in (*ROWS, "pseudo-data", *STEPPED):
            more = None if name in ROWS else True
            found = [common.column(records, name, alpha=alpha, epsilon=e, clipped=c, more=more) for e, c in cells]
            rows.append([name, *(common.mean_std(one) if one.size else "–" for one in found)])
            told = ("no noise" if c else "as it is" if e is None else "" for e, c in cells)
            names = [words if e is None else f"epsilon {e:g}" for (e, _), words in zip(cells, told, strict=True)]
            summary |= {
                f"alpha {alpha:g}, {name}, {n}": float(v.mean()) for n, v in zip(names, found, strict=True) if v.size
            }
        header = ["merge", *(f"ε = {epsilon:g}" for epsilon in EPSILONS), "clipped, no noise", "neither"]
        text += f"\nα = {alpha:g}\n\n" + common.markdown_table(header, rows)
    common.report(settings.out, text, summary)


if __name__ == "__main__":
    main()
