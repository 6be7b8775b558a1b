"""A federation of five small clients, of sizes that differ, for the tests of rounds."""

import jax
import numpy as np
import optax

import fedfisher_jax as ff
from fedfisher_jax import models
from fedfisher_jax.federate import rounds

SIZES = [17, 4, 3, 15, 9]
NETWORK = models.build("mlp", (6,), 3, hidden=(5,))
LIKELIHOOD = ff.categorical()
TRAIN = ff.LocalTraining(NETWORK.apply, LIKELIHOOD, optax.sgd(0.1), epochs=2, batch_size=4)
FEDAVG = ff.fedavg(NETWORK.apply, LIKELIHOOD)
KFAC = ff.fedfisher(NETWORK.apply, LIKELIHOOD)


def problem():
    """The start and the clients."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(sum(SIZES), 6)), rng.integers(0, 3, sum(SIZES))
    parts = np.split(rng.permutation(sum(SIZES)), np.cumsum(SIZES)[:-1])
    start = jax.tree.map(lambda leaf: leaf.astype(float), NETWORK.init(jax.random.key(0)))
    return start, ff.cohort(x, y, parts)


def plan_of(rule, sampled=len(SIZES), **settings):
    """Rounds of a rule, all clients in each unless `sampled` says less."""
    return rounds.Federation(TRAIN, rule, sampled, **settings)


def begun(problem, plan, seed=1):
    """The state before the first round."""
    return rounds.init(plan, problem[0], len(SIZES), jax.random.key(seed))


def one_round(problem, plan, strategy="sequential", **how):
    """The state after one round, and its metrics."""
    return rounds.step(plan, begun(problem, plan), problem[1], strategy=strategy, **how)
