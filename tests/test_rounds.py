"""Rounds: what one does is what its rule says, whatever the strategy."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_rounds
from small_rounds import FEDAVG, KFAC, LIKELIHOOD, NETWORK, SIZES, TRAIN, begun, one_round, plan_of

import fedfisher_jax as ff
from fedfisher_jax.federate import _simulate as simulate
from fedfisher_jax.federate import _variants as variants
from fedfisher_jax.federate import rounds

problem = pytest.fixture(scope="module")(small_rounds.problem)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "kronecker"])
def test_a_round_is_the_one_shot_merge(problem, name):
    start, who = problem
    rule = ff.fedavg(NETWORK.apply, LIKELIHOOD) if name == "fedavg" else ff.fedfisher(NETWORK.apply, LIKELIHOOD)
    plan = plan_of(rule)
    state = begun(problem, plan)
    after, metrics = rounds.step(plan, state, who, strategy="sequential")
    key = jax.random.fold_in(jax.random.fold_in(state.key, 0), 1)
    trained, _ = simulate.train_clients(TRAIN, start, who, key, strategy="sequential")
    payloads, _ = simulate.measure_clients(
        rule.measure, ff.Update(trained.params, start), who, key, strategy="sequential"
    )
    chex.assert_trees_all_close(after.params, simulate.merge_clients(rule, payloads).params, rtol=1e-9)
    np.testing.assert_allclose(metrics.loss, trained.loss.mean(), rtol=1e-9)
    assert int(after.round) == 1


@pytest.mark.slow
@pytest.mark.parametrize("rule", [FEDAVG, KFAC], ids=lambda rule: rule.name)
@pytest.mark.parametrize("strategy", ["vectorised", "threads", "devices"])
def test_strategies_agree(problem, rule, strategy):
    plan = plan_of(rule, sampled=3, variant=variants.scaffold(0.1), barrier=True, optimizer=optax.adam(0.1))
    expected, result = one_round(problem, plan), one_round(problem, plan, strategy)
    chex.assert_trees_all_close(result[0]._replace(key=0), expected[0]._replace(key=0), rtol=1e-7, atol=1e-9)
    chex.assert_trees_all_close(result[1][:4], expected[1][:4], rtol=1e-7, atol=1e-9)


def test_scan_is_step_after_step(problem):
    _, who = problem
    plan = plan_of(FEDAVG, sampled=2, optimizer=optax.sgd(0.5, 0.9))
    first = begun(problem, plan, seed=2)
    state, losses = first, []
    for _ in range(3):
        state, metrics = rounds.step(plan, state, who, strategy="sequential")
        losses.append(float(metrics.loss))
    scanned, metrics = rounds.scan(plan, first, who, 3)
    chex.assert_trees_all_close(scanned._replace(key=0), state._replace(key=0), rtol=1e-9)
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-9)


def test_samples_differ_between_rounds_and_hold_nobody_twice(problem):
    plan = plan_of(FEDAVG, sampled=3)
    state = begun(problem, plan, seed=0)
    draws = [np.asarray(rounds.sample(plan, state._replace(round=jnp.asarray(r)), 5)) for r in range(40)]
    assert all(len(set(draw)) == 3 for draw in draws)
    assert np.bincount(np.concatenate(draws), minlength=5).min() > 10


@pytest.mark.slow
def test_every_client_may_have_its_own_epochs(problem):
    start, who = problem
    epochs = jnp.array([0, 1, 4, 0, 2])
    after = one_round(problem, plan_of(FEDAVG), epochs=epochs)[0].params
    shares = np.array(SIZES) / sum(SIZES)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 0), 1)
    mean = jax.tree.map(jnp.zeros_like, start)
    for number, share in enumerate(shares):
        train = simulate.TrainClient(dataclasses.replace(TRAIN, epochs=int(epochs[number])))
        mine = jax.tree.map(lambda leaf, n=number: leaf[n], who.members)
        model = train(simulate.Shared(who.shared, key, start), mine).params
        mean = jax.tree.map(lambda a, b, s=share: a + s * b, mean, model)
    chex.assert_trees_all_close(after, mean, rtol=1e-9)


@pytest.mark.parametrize("strategy", ["sequential", "vectorised", "threads"])
def test_only_models_that_diverge_are_refused(problem, strategy):
    """A Gaussian has no accuracy and an untrained client no loss: both are NaN, and no fault."""
    _, who = problem
    targets = jnp.stack([who.x[:, 0], who.x[:, 1], who.x[:, 2]], axis=1)
    who = dataclasses.replace(who, y=targets)
    train = dataclasses.replace(TRAIN, likelihood=ff.gaussian())
    plan = rounds.Federation(train, ff.fedavg(NETWORK.apply, ff.gaussian()), len(SIZES), barrier=True)
    state = begun(problem, plan)
    epochs = jnp.array([0, 1, 2, 1, 0])
    after, metrics = rounds.step(plan, state, who, epochs=epochs, strategy=strategy)
    chex.assert_tree_all_finite(after.params)
    assert np.isfinite(metrics.loss) and np.isfinite(metrics.barrier_loss) and np.isnan(metrics.barrier_accuracy)
    if strategy == "threads":
        far = dataclasses.replace(plan, training=dataclasses.replace(train, optimizer=optax.sgd(1e200)))
        with pytest.raises(ValueError, match=r"client [123]: NaN or infinity in its round's training"):
            rounds.step(far, state, who, epochs=epochs, strategy=strategy)


@pytest.mark.slow
def test_barrier_is_the_difference_of_losses_on_the_clients_data(problem):
    start, who = problem
    plan = plan_of(FEDAVG, barrier=True)
    after, metrics = one_round(problem, plan)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 0), 1)
    trained, _ = simulate.train_clients(TRAIN, start, who, key, strategy="sequential")
    gaps = []
    for number, size in enumerate(SIZES):
        rows = who.rows[who.members.start[number] :][:size]
        own = jax.tree.map(lambda leaf, n=number: leaf[n], trained.params)
        new, old = (ff.evaluate(NETWORK.apply, LIKELIHOOD, p, who.x[rows], who.y[rows]) for p in (after.params, own))
        gaps.append([float(new.loss - old.loss), float(old.accuracy - new.accuracy)])
    expected = np.mean(gaps, axis=0)
    np.testing.assert_allclose([metrics.barrier_loss, metrics.barrier_accuracy], expected, rtol=1e-9, atol=1e-12)


def test_rules_that_change_the_network_cannot_be_repeated(problem):
    grown = ff.Rule(
        "grown", ff.fedavg(NETWORK.apply, LIKELIHOOD).measure, lambda p, start: p,
        lambda s, start: ff.Merged(jax.tree.map(lambda leaf: leaf[0], s.params), {}, NETWORK.apply), "stack", jit=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="grown changes the network"):
        one_round(problem, plan_of(grown))
    with pytest.raises(ValueError, match="sampled"):
        rounds.init(plan_of(FEDAVG, sampled=6), problem[0], 5, jax.random.key(0))
    with pytest.raises(ValueError, match="participation"):
        rounds.fraction(0.0, 5)
    with pytest.raises(ValueError, match="strategy"):
        plan, (start, who) = plan_of(FEDAVG), problem
        rounds.scan(plan, rounds.init(plan, start, 5, jax.random.key(0)), who, 2, strategy="threads")


def test_memory_follows_the_sampled_clients_not_the_registered_ones(problem):
    """What the compiled round needs beside its arguments, with 60 and with 600 registered clients, 50 sampled."""
    start, who = problem
    x, y = who.x, who.y

    def temporary(registered):
        plan = plan_of(FEDAVG, sampled=50)
        who = ff.cohort(x, y, [np.arange(4) + n % 40 for n in range(registered)])
        state = rounds.init(plan, start, registered, jax.random.key(0))
        program = rounds._one_program.lower(plan, "vectorised", state, who, None).compile()
        return program.memory_analysis().temp_size_in_bytes

    few, many = temporary(60), temporary(600)
    assert many - few < 50 * 600  # the draw itself looks at every number
    assert few > 50 * 8 * sum(leaf.size for leaf in jax.tree.leaves(start))


def test_a_client_that_diverges_is_named_by_its_number(problem):
    _, who = problem
    numbered = ff.cohort(who.x, who.y, [np.arange(4), np.arange(4, 9)], numbers=[10, 20])
    far = dataclasses.replace(TRAIN, optimizer=optax.sgd(1e200))
    plan = dataclasses.replace(plan_of(FEDAVG), training=far, sampled=2)
    state = rounds.init(plan, begun(problem, plan).params, 2, jax.random.key(0))
    with pytest.raises(ValueError, match="client 10"):
        rounds.step(plan, state, numbered, strategy="threads")
