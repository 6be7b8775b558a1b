"""Robust rules that keep something from round to round."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax._trees import stack
from fedfisher_jax.merge import robust


def over_rounds(name):
    """A rule of a linear model that keeps past rounds, and the payloads of six clients at one and one far away."""
    model, past, draw = (lambda w, x: x @ w, ff.gaussian()), ff.merge.PastFishers(rho=0.0), np.random.default_rng(0)
    rule = ff.fipa(*model, rank=1, past=past) if name == "fipa" else ff.fedfish(*model)
    ends = [1 + 0.01 * draw.normal(size=(3, 1)) for _ in range(6)] + [np.full((3, 1), -500.0)]
    data = [ff.examples(jnp.asarray(draw.normal(size=(8, 3)))) for _ in ends]
    start = jnp.zeros((3, 1))
    updates = [ff.Update(jnp.asarray(end), start) for end in ends]
    found = [rule.measure(update, one, jax.random.key(0)) for update, one in zip(updates, data, strict=True)]
    rule = rule if name == "fipa" else ff.merge.with_past(rule, past, found[0].statistics)
    return rule, stack(found), start


@pytest.mark.parametrize("name", ["fipa", "fedfish"])
def test_who_is_far_away_is_left_out_over_rounds_as_in_one(name):
    rule, found, start = over_rounds(name)
    made = robust(rule, "outliers", faulty=1)
    merged, kept = made.carry.solve(found, start, made.carry.init(start))
    again, _ = made.carry.solve(found, start, kept)
    for one in (merged, again, made.solve(found, start)):
        np.testing.assert_allclose(one.params, 1, atol=0.2)
        np.testing.assert_allclose(one.diagnostics["effective_clients"], 6)


@pytest.mark.slow
def test_rounds_of_a_robust_rule_that_remembers_leave_a_far_client_out():
    rule, _, start = over_rounds("fipa")
    x, y = np.eye(3)[np.arange(42) % 3], np.ones((42, 1))
    y[36:] = -500.0
    cohort = ff.cohort(jnp.asarray(x), jnp.asarray(y), np.split(np.arange(42), 7))
    training = ff.LocalTraining(lambda w, x: x @ w, ff.gaussian(), optax.sgd(0.5), 10, 6)
    ends = [
        ff.rounds.scan(plan, ff.rounds.init(plan, start, 7, jax.random.key(0)), cohort, 2)[0].params
        for plan in (ff.Federation(training, one, 7) for one in (rule, robust(rule, "outliers", faulty=1)))
    ]
    assert np.abs(ends[0] - 1).max() > 10 and np.abs(ends[1] - 1).max() < 0.2
