"""Variants of local training against their papers' updates, on quadratics where the answer is known.

Client i's loss is (θ − b_i)²/2 summed over entries: one example b_i, the model is θ itself.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax.federate import _variants as variants
from fedfisher_jax.federate import rounds

RATE, STEPS = 0.1, 5
TARGETS = np.array([[1.0, -2.0], [3.0, 0.5], [-4.0, 1.0]])
START = np.array([0.5, 0.25])


def apply(params, x):
    return jnp.broadcast_to(params, (x.shape[0], 2))


PLAIN = ff.LocalTraining(apply, ff.gaussian(), optax.sgd(RATE), epochs=STEPS, batch_size=1)
RULE = ff.fedavg(apply, ff.gaussian())


def run(variant, count, sampled=3, optimizer=None):
    plan = rounds.Federation(PLAIN, RULE, sampled, optimizer, variant)
    state = rounds.init(plan, jnp.asarray(START), 3, jax.random.key(0))
    who = ff.cohort(jnp.zeros((3, 1)), jnp.asarray(TARGETS), [np.array([0]), np.array([1]), np.array([2])])
    states = [state]
    for _ in range(count):
        states.append(rounds.step(plan, states[-1], who, strategy="sequential")[0])
    return plan, states


def descend(gradient, theta):
    for _ in range(STEPS):
        theta = theta - RATE * gradient(theta)
    return theta


def test_fedprox():
    mu = 0.7
    _, states = run(variants.fedprox(mu), 2)
    theta = START
    for _ in range(2):
        local = [descend(lambda p, b=b, t=theta: p - b + mu * (p - t), theta) for b in TARGETS]
        theta = np.mean(local, axis=0)
    np.testing.assert_allclose(states[-1].params, theta, rtol=1e-12)


def test_fedprox_without_pull_is_plain():
    np.testing.assert_allclose(run(variants.fedprox(0.0), 2)[1][-1].params, run(None, 2)[1][-1].params, rtol=1e-14)


@pytest.mark.parametrize("sampled", [3, 2])
def test_scaffold(sampled):
    plan, states = run(variants.scaffold(RATE), 4, sampled)
    theta, common, own = START, np.zeros(2), np.zeros((3, 2))
    for state, after in zip(states, states[1:], strict=False):
        chosen = np.asarray(rounds.sample(plan, state, 3))
        local, change = [], []
        for i in chosen:
            end = descend(lambda p, i=i, c=common: p - TARGETS[i] - own[i] + c, theta)
            new = own[i] - common + (theta - end) / (STEPS * RATE)
            change.append(new - own[i])
            own[i] = new
            local.append(end)
        theta, common = np.mean(local, axis=0), common + sampled / 3 * np.mean(change, axis=0)
        np.testing.assert_allclose(after.params, theta, rtol=1e-10)
        np.testing.assert_allclose(after.common, common, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(after.own, own, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("sampled", [3, 2])
def test_feddyn(sampled):
    alpha = 0.4
    plan, states = run(variants.feddyn(alpha), 4, sampled)
    theta, common, own = START, np.zeros(2), np.zeros((3, 2))
    for state, after in zip(states, states[1:], strict=False):
        local = []
        for i in np.asarray(rounds.sample(plan, state, 3)):
            end = descend(lambda p, i=i, t=theta: p - TARGETS[i] - own[i] + alpha * (p - t), theta)
            own[i] = own[i] - alpha * (end - theta)
            local.append(end)
        common = common - alpha / 3 * sum(end - theta for end in local)
        theta = np.mean(local, axis=0) - common / alpha
        np.testing.assert_allclose(after.params, theta, rtol=1e-10)
        np.testing.assert_allclose(after.common, common, rtol=1e-10, atol=1e-14)


def test_scaffold_finds_the_minimum_where_unequal_numbers_of_steps_bias_the_plain_average():
    """Curvatures 1 for all, but one client takes many steps and another few: the fixed point of FedAvg is biased."""
    epochs = jnp.array([1, 5, 40])
    who = ff.cohort(jnp.zeros((3, 1)), jnp.asarray(TARGETS), [np.array([0]), np.array([1]), np.array([2])])
    gaps = {}
    for name, variant in (("plain", None), ("scaffold", variants.scaffold(RATE))):
        plan = rounds.Federation(PLAIN, RULE, 3, None, variant)
        state = rounds.init(plan, jnp.asarray(START), 3, jax.random.key(0))
        state, _ = rounds.scan(plan, state, who, 300, epochs=epochs)
        gaps[name] = float(jnp.linalg.norm(state.params - TARGETS.mean(0)))
    assert gaps["scaffold"] < 1e-6 < 0.5 < gaps["plain"]


@pytest.mark.parametrize("make", [lambda: variants.scaffold(RATE), lambda: variants.feddyn(0.4)])
@pytest.mark.parametrize("sampled", [3, 2])
def test_the_minimum_is_that_of_fedavgs_weights_where_sizes_differ(make, sampled):
    """Σ n_i (θ − b_i)² with n = 1, 2, 5: the mean of b_i by examples, as every rule here weighs clients."""
    sizes = np.array([1, 2, 5])
    rows = np.repeat(TARGETS, sizes, axis=0)
    who = ff.cohort(jnp.zeros((8, 1)), jnp.asarray(rows), np.split(np.arange(8), np.cumsum(sizes)[:-1]))
    plan = rounds.Federation(dataclasses.replace(PLAIN, batch_size=8), RULE, sampled, None, make())
    state = rounds.init(plan, jnp.asarray(START), 3, jax.random.key(0))
    state, metrics = rounds.scan(plan, state, who, 600)
    away = np.linalg.norm(rows.mean(0) - TARGETS.mean(0))
    assert np.linalg.norm(state.params - rows.mean(0)) < (1e-6 if sampled == 3 else 0.2) * away


@pytest.mark.parametrize("strategy", ["sequential", "threads"])
def test_a_client_that_does_not_train_remembers_what_it_knew(strategy):
    plan = rounds.Federation(PLAIN, RULE, 3, None, variants.scaffold(RATE))
    state = rounds.init(plan, jnp.asarray(START), 3, jax.random.key(0))
    known = jnp.array([[0.3, 0.1], [0.2, -0.4], [-0.5, 0.3]])
    state = state._replace(common=jnp.array([0.7, -0.2]), own=known)
    who = ff.cohort(jnp.zeros((3, 1)), jnp.asarray(TARGETS), [np.array([0]), np.array([1]), np.array([2])])
    after, metrics = rounds.step(plan, state, who, epochs=jnp.array([0, 2, 3]), strategy=strategy)
    np.testing.assert_array_equal(after.own[0], known[0])
    assert np.abs(after.own[1:] - known[1:]).min() > 1e-3
    assert np.isfinite(metrics.loss)


@pytest.mark.parametrize(
    "make", [lambda: variants.fedprox(-1.0), lambda: variants.scaffold(0.0), lambda: variants.feddyn(0.0)]
)
def test_refusals(make):
    with pytest.raises(ValueError, match="expected a"):
        make()
