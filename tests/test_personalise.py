"""Fine-tuning on each client's own part is what one would do by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax import models

NETWORK = models.build("mlp", (6,), 3, hidden=(5,))
TRAIN = ff.LocalTraining(NETWORK.apply, ff.categorical(), optax.sgd(0.1), epochs=3, batch_size=4)
RNG = np.random.default_rng(0)
X, Y = jnp.asarray(RNG.normal(size=(40, 6))), jnp.asarray(RNG.integers(0, 3, 40))
MINE, TEST = [np.arange(0, 12), np.arange(12, 17)], [np.arange(17, 30), np.arange(30, 40)]
START = jax.tree.map(lambda leaf: leaf.astype(float), NETWORK.init(jax.random.key(0)))


@pytest.mark.slow
@pytest.mark.parametrize("shots", [None, 3])
def test_scores_are_those_of_each_clients_own_model(shots):
    training, test = ff.cohort(X, Y, MINE), ff.cohort(X, Y, TEST)
    found = ff.personalise(TRAIN, START, training, test, jax.random.key(1), shots=shots, strategy="sequential")
    for number, (mine, theirs) in enumerate(zip(MINE, TEST, strict=True)):
        key = jax.random.fold_in(jax.random.key(1), number)
        rows = jnp.asarray(mine[:shots])
        data = ff.Examples(X, Y, rows, jnp.asarray(len(mine[:shots])))
        tuned = ff.train(TRAIN, START, data, key).params
        for params, loss, accuracy in (
            (START, found.loss_before, found.accuracy_before),
            (tuned, found.loss, found.accuracy),
        ):
            expected = ff.evaluate(NETWORK.apply, ff.categorical(), params, X[theirs], Y[theirs])
            np.testing.assert_allclose([loss[number], accuracy[number]], expected, rtol=1e-9)


def test_no_epochs_change_nothing():
    still = dataclasses.replace(TRAIN, epochs=0)
    found = ff.personalise(still, START, ff.cohort(X, Y, MINE), ff.cohort(X, Y, TEST), jax.random.key(0))
    np.testing.assert_array_equal(found.loss, found.loss_before)


def test_refusals():
    both = ff.cohort(X, Y, MINE), ff.cohort(X, Y, TEST)
    with pytest.raises(ValueError, match="shots: got 0"):
        ff.personalise(TRAIN, START, *both, jax.random.key(0), shots=0)
    with pytest.raises(ValueError, match="test: got 1 clients"):
        ff.personalise(TRAIN, START, both[0], ff.cohort(X, Y, TEST[:1]), jax.random.key(0))
