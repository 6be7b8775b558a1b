"""The server's step over rounds: its optimisers, how long it may be, and the search along it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_rounds
from small_rounds import FEDAVG, KFAC, LIKELIHOOD, NETWORK, TRAIN, one_round, plan_of

import fedfisher_jax as ff
from fedfisher_jax.federate import _simulate as simulate
from fedfisher_jax.federate import _variants as variants
from fedfisher_jax.federate import clip_to_clients, rounds, server_adam

problem = pytest.fixture(scope="module")(small_rounds.problem)

FISH = ff.fedfish(NETWORK.apply, LIKELIHOOD)
FIPA = ff.fipa(NETWORK.apply, LIKELIHOOD, rank=2)


def test_the_server_optimiser_sees_the_step_back_as_its_gradient(problem):
    merged = one_round(problem, plan_of(FEDAVG))[0].params
    half = one_round(problem, plan_of(FEDAVG, optimizer=optax.sgd(0.5)))[0].params
    chex.assert_trees_all_close(half, jax.tree.map(lambda a, b: (a + b) / 2, merged, problem[0]), rtol=1e-12)
    whole = one_round(problem, plan_of(FEDAVG, optimizer=optax.sgd(1.0)))[0].params
    chex.assert_trees_all_close(whole, merged, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_the_servers_step_is_clipped_to_the_clients_steps(problem):
    """To 0.2 √Σ ‖θ_i − θ‖² exactly, in its direction; a step that is short enough is not touched."""
    start, who = problem
    merged = one_round(problem, plan_of(FEDAVG))[0].params
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 0), 1)
    trained = simulate.train_clients(TRAIN, start, who, key, strategy="sequential")[0].params
    moved = jax.tree.map(lambda end, begin: end - begin, trained, start)
    longest = 0.2 * float(optax.tree.norm(moved))
    whole = optax.tree.sub(merged, start)
    assert longest < float(optax.tree.norm(whole))
    for rule in (FEDAVG, KFAC):
        clipped, told = one_round(problem, plan_of(rule, optimizer=optax.chain(clip_to_clients(0.2), optax.sgd(1.0))))
        np.testing.assert_allclose(told.moved, longest, rtol=1e-9)
        if rule is FEDAVG:
            expected = optax.tree.scale(longest / float(optax.tree.norm(whole)), whole)
            chex.assert_trees_all_close(optax.tree.sub(clipped.params, start), expected, rtol=1e-9, atol=1e-12)
    same = one_round(problem, plan_of(FEDAVG, optimizer=optax.chain(clip_to_clients(), optax.sgd(1.0))))[0].params
    chex.assert_trees_all_close(same, merged, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="times: got 0"):
        clip_to_clients(0.0)


@pytest.mark.parametrize(
    ("rule", "strategy", "factor"),
    [
        (FEDAVG, "sequential", 100.0),
        pytest.param(FISH, "vectorised", 1.0, marks=pytest.mark.slow),
        pytest.param(FIPA, "threads", 1.0, marks=pytest.mark.slow),
        pytest.param(KFAC, "sequential", -1.0, marks=pytest.mark.slow),
    ],
    ids=["fedavg", "fedfish", "fipa", "fedfisher"],
)
def test_the_length_of_least_loss_is_taken(rule, strategy, factor, problem):
    """By losses of all clients' examples in one; a step that is far too long is cut, a wrong one is not taken."""
    start, who = problem
    server, lengths = optax.sgd(factor), (0.0, 0.01, 0.25, 1.0, 2.0)
    whole = optax.tree.sub(one_round(problem, plan_of(rule, optimizer=server), strategy)[0].params, start)
    found, told = one_round(problem, plan_of(rule, optimizer=server, lengths=lengths), strategy)
    trials = [optax.tree.add(start, optax.tree.scale(length, whole)) for length in lengths]
    losses = [float(ff.evaluate(NETWORK.apply, LIKELIHOOD, trial, who.x, who.y).loss) for trial in trials]
    best = int(np.argmin(losses))
    search = told.diagnostics["line_search"]
    np.testing.assert_allclose(search["losses"], losses, rtol=1e-9)
    assert float(search["length"]) == lengths[best] and {100.0: 0 < best < 3, 1.0: best > 1, -1.0: best == 0}[factor]
    chex.assert_trees_all_close(found.params, trials[best], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(told.moved, lengths[best] * float(optax.tree.norm(whole)), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("length", [-1.0, float("nan"), float("inf")])
def test_lengths_are_refused(length):
    with pytest.raises(ValueError, match=f"lengths: got {length}"):
        plan_of(FEDAVG, lengths=(1.0, length))


def test_bits_of_a_round_are_payloads_and_a_loss_for_each_length(problem):
    start, who = problem
    size, few = sum(leaf.size for leaf in jax.tree.leaves(start)), ff.examples(who.x, who.y)
    plan = plan_of(FISH, lengths=(0.5, 1.0), variant=variants.scaffold(0.1))
    assert rounds.bits_up(plan, start, few) == 64 * (2 * size + size + 2)


def test_the_servers_adam_is_the_formula():
    """Two steps by hand, with its own little momentum."""
    made, (rate, b1, b2) = server_adam(), (0.01, 0.5, 0.99)
    slopes, state, found = (jnp.asarray([3.0, -0.5]), jnp.asarray([-1.0, 2.0])), made.init(jnp.zeros(2)), []
    mean, square = np.zeros(2), np.zeros(2)
    for number, slope in enumerate(slopes, start=1):
        step, state = made.update(slope, state)
        mean, square = b1 * mean + (1 - b1) * slope, b2 * square + (1 - b2) * slope**2
        expected = -rate * (mean / (1 - b1**number)) / (np.sqrt(square / (1 - b2**number)) + 1e-8)
        np.testing.assert_allclose(step, expected, rtol=1e-12)
        found.append(step)
    assert abs(float(found[1][0])) < 0.01
