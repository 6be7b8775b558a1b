"""A client's result does not depend on strategy, order, groups, padding or device count."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import chex
import devices
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax import models
from fedfisher_jax.federate import _map_clients as cohort
from fedfisher_jax.federate import _simulate as simulate

SIZES = [17, 1, 3, 15, 9]


@pytest.fixture(scope="module")
def federation():
    """Ragged clients of a small convolution-free classification problem."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(sum(SIZES), 6)).astype(np.float32), rng.integers(0, 3, sum(SIZES)).astype(np.int32)
    parts = np.split(rng.permutation(sum(SIZES)), np.cumsum(SIZES)[:-1])
    network = models.build("mlp", (6,), 3, hidden=(5,))
    train = ff.LocalTraining(network.apply, ff.categorical(), optax.sgd(0.1, 0.9), epochs=3, batch_size=4)
    return train, network.init(jax.random.key(0)), ff.cohort(x, y, parts)


def run(federation, who=None, **how):
    train, start, everyone = federation
    return simulate.train_clients(train, start, who or everyone, jax.random.key(1), **how)


@pytest.fixture(scope="module")
def expected(federation):
    return run(federation, strategy="sequential")[0]


@pytest.mark.parametrize(
    "how",
    [
        {"strategy": "threads"},
        {"strategy": "vectorised", "group": 1},
        {"strategy": "vectorised", "group": 2},
        {"strategy": "vectorised", "group": 64},
        {"strategy": "devices"},
        {"strategy": "pmap"},
    ],
    ids=str,
)
# jax's own note that pmap is now shard_map
@pytest.mark.filterwarnings("ignore:.*pmap.*:DeprecationWarning")
def test_strategies_agree(federation, expected, how):
    result, report = run(federation, **how)
    chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-6)
    assert report.strategy == how["strategy"]


def test_order_and_padding_change_nothing(federation, expected):
    everyone = federation[-1]
    order = np.array([3, 0, 4, 2, 1])
    who = dataclasses.replace(everyone.sample(order), lengths=(24,))
    result, _ = run(federation, who, strategy="vectorised", group=3)
    chex.assert_trees_all_close(result, jax.tree.map(lambda leaf: leaf[order], expected), rtol=1e-5, atol=1e-6)


def test_one_client_alone(federation, expected):
    who = federation[-1].sample(np.array([2]))
    result, _ = run(federation, who)
    chex.assert_trees_all_close(result, jax.tree.map(lambda leaf: leaf[2:3], expected), rtol=1e-5, atol=1e-6)


def test_waste_counts_padded_steps():
    assert cohort.padding_waste([4, 4, 2, 2], 2) == 0
    assert cohort.padding_waste([4, 2], 2) == pytest.approx(0.25)
    assert cohort.padding_waste([4, 4, 4], 2) == pytest.approx(0.25)  # the last group runs one copy


def test_vectorised_groups_clients_of_like_length(federation):
    _, report = run(federation, strategy="vectorised", group=2)
    steps = np.sort([3 * -(-size // 4) for size in SIZES])[::-1]
    assert report.waste == pytest.approx(cohort.padding_waste(steps, 2))
    assert report.waste < cohort.padding_waste([3 * -(-size // 4) for size in SIZES], 2)


def test_progress_counts_every_client_and_epoch(federation):
    epochs, finished = [], []
    train, start, who = federation
    noisy = ff.LocalTraining(**{**vars(train), "on_epoch": lambda: epochs.append(1)})
    simulate.train_clients(noisy, start, who, jax.random.key(1), strategy="threads", done=finished.append)
    jax.effects_barrier()
    assert len(epochs) == 3 * len(SIZES) and sum(finished) == len(SIZES)


@pytest.mark.parametrize(
    ("how", "words"),
    [({"strategy": "magic"}, "strategy: got 'magic'"), ({"group": 0}, "group: expected at least 1 client, got 0")],
)
def test_refusals(federation, how, words):
    with pytest.raises(ValueError, match=words):
        run(federation, **how)


def test_no_clients():
    with pytest.raises(ValueError, match="clients: expected at least one"):
        ff.map_clients(lambda shared, client: client, None, jnp.zeros((0, 2)))


def test_clients_whose_leaves_do_not_match():
    """Clipped indices would repeat or drop clients without a word."""
    with pytest.raises(ValueError, match="clients: got leaves for 3 and for 5 clients"):
        ff.map_clients(lambda shared, client: client[0] + client[1], None, (jnp.arange(5.0), jnp.arange(3.0)))


@pytest.mark.parametrize("strategy", ["sequential", "vectorised", "devices"])
def test_nothing_to_do_wastes_nothing(strategy):
    _, report = ff.map_clients(lambda _, client: client, None, jnp.arange(3.0), steps=[0, 0, 0], strategy=strategy)
    assert report.waste == 0


def test_divergence_names_the_client(federation):
    train, start, who = federation
    first = who.rows[who.members.start[3]]
    spoilt = dataclasses.replace(who, x=who.x.at[first].set(jnp.nan))
    with pytest.raises(ValueError, match=r"client \d: NaN or infinity in its parameters"):
        simulate.train_clients(train, start, spoilt, jax.random.key(1))
    only = spoilt.sample(np.array([3]))
    with pytest.raises(ValueError, match="client 3: NaN or infinity in its parameters"):
        simulate.train_clients(train, start, only, jax.random.key(1))


FOUR_DEVICES = """
import jax, numpy as np, jax.numpy as jnp
from fedfisher_jax import map_clients
assert jax.device_count() == 4
function = lambda shared, client: jnp.sin(shared * client).sum()
clients = jnp.arange(42.0).reshape(7, 6)
expected, _ = map_clients(function, jnp.arange(6.0), clients, strategy="sequential")
for strategy in ("devices", "pmap"):
    result, report = map_clients(function, jnp.arange(6.0), clients, strategy=strategy, steps=[3, 1, 4, 1, 5, 9, 2])
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert report.workers == 4
assert map_clients(function, jnp.arange(6.0), clients)[1].strategy == "devices"

import optax
import fedfisher_jax as ff
from fedfisher_jax.federate import Simulation, compare, run_keys
x, y = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32), np.arange(8) % 2
apply = lambda params, x: x @ params
cohort, model = ff.cohort(x, y, np.split(np.arange(8), 4)), (apply, ff.categorical())
training = ff.LocalTraining(*model, optax.sgd(0.1), 1, 2)
simulation = Simulation(training, jnp.ones((3, 2)), cohort, x, y)
rules = {"diag": ff.fedfisher(*model, structure="diagonal"), "fedfish": ff.fedfish(*model)}
losses = {}
for strategy in ("sequential", "threads", "vectorised", "devices", "pmap"):
    found = compare(simulation, rules, run_keys(0), strategy=strategy)
    losses[strategy] = [one.value["loss"] for one in found if one.kind in ("rule", "client")]
    np.testing.assert_allclose(losses[strategy], losses["sequential"], rtol=1e-5)
print("same")
"""


@pytest.mark.slow
def test_four_devices():
    environment = devices.environment(4)
    done = subprocess.run(
        [sys.executable, "-c", FOUR_DEVICES], env=environment, capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.parametrize("strategy", ["sequential", "threads", "vectorised", "devices", "pmap"])
def test_a_second_call_of_the_same_shapes_traces_nothing(federation, strategy):
    traced = []

    def function(shared, client):
        traced.append(1)
        return shared * client

    first = ff.map_clients(function, jnp.ones(3), jnp.arange(4.0), strategy=strategy)[0]
    seen = len(traced)
    again = ff.map_clients(function, 2 * jnp.ones(3), jnp.arange(4.0), strategy=strategy)[0]
    assert len(traced) == seen
    np.testing.assert_array_equal(again, 2 * first)
