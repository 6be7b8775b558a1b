"""Silos that merges with privacy of every example are tried on: digits, promises, training and what they send."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedfisher_jax as ff
from fedfisher_jax.curvature import capture
from fedfisher_jax.federate import merge_clients, run_keys
from fedfisher_jax.federate._private import Private
from fedfisher_jax.merge import (
    Draws,
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
from fedfisher_jax.privacy._example_parts import Clips, MeasureParts

DELTA, BATCH, PLACES, CLIP = 1e-5, 64, 160, 1e-3
RATE, MOMENTUM, CLIP_GRADIENTS = 0.01, 0.9, 1.0
INPUTS, DRAWS = 8.0, Draws()  # norm of an input; how the server trains on pseudo-data
STEPS, OF_STEPS = ("gradient", "length"), Clips(fisher=65.0, gradients=1.0)


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
    rules |= {"pseudo-data": pseudo_data(*model, low=low, high=high, draws=DRAWS, **captured)}
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
