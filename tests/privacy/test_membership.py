"""Who was there, and of which classes: guesses are guesses where nothing was learned, and right where all was."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree

import fedfisher_jax as ff
from fedfisher_jax.curvature import Gram, Subspace
from fedfisher_jax.merge import regmean_kron
from fedfisher_jax.privacy import attacks
from fedfisher_jax.privacy.attacks import labels, membership

LIKELIHOOD = ff.categorical()
DATA = ff.data.load("digits")
X, Y = jnp.asarray(DATA.train_x), jnp.asarray(DATA.train_y)
NETWORK = ff.models.build("mlp", (8, 8, 1), 10, True, hidden=(64,))
START = NETWORK.init(jax.random.key(0))
CAPTURED = ff.capture(NETWORK.apply, START, X)
MINE, OTHERS = slice(0, 200), slice(200, 1400)


def fitted(x, y, epochs):
    training = ff.LocalTraining(NETWORK.apply, LIKELIHOOD, optax.sgd(0.1, 0.9), epochs, batch_size=32)
    return jax.jit(lambda p: ff.train(training, p, ff.examples(x, y), jax.random.key(1)))(START).params


def measured(params, data, **options):
    return jax.jit(lambda p: ff.fisher(NETWORK.apply, LIKELIHOOD, p, data, captured=CAPTURED, **options))(params)


@pytest.fixture(scope="module")
def overfitted():
    """Trained on 200 images whose labels are random: all that is learned is by heart."""
    noise = jnp.asarray(np.random.default_rng(0).integers(0, 10, len(Y)), jnp.int32)
    return fitted(X[MINE], noise[MINE], 60), noise


def loss_auc(params, y):
    scores = [attacks.loss_scores(NETWORK.apply, LIKELIHOOD, params, X[s], y[s]) for s in (MINE, OTHERS)]
    return float(attacks.auc(*scores))


def test_an_untrained_network_tells_nothing():
    assert loss_auc(START, Y) == pytest.approx(0.5, abs=0.06)
    diagonal = measured(START, ff.examples(X, Y), structure="diagonal")
    scores = [attacks.fisher_scores(NETWORK.apply, LIKELIHOOD, START, diagonal, X[s], Y[s]) for s in (MINE, OTHERS)]
    assert float(attacks.auc(*scores)) == pytest.approx(0.5, abs=0.06)


def test_what_was_learned_by_heart_is_told(overfitted):
    params, noise = overfitted
    assert loss_auc(params, noise) > 0.95
    one = attacks.loss_scores(NETWORK.apply, LIKELIHOOD, params, X[:7], noise[:7], batch_size=3)
    expected = [-LIKELIHOOD.nll(NETWORK.apply(params, X[n : n + 1])[0], noise[n]) for n in range(7)]
    np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_scores_of_gradients(overfitted, structure):
    params, noise = overfitted
    data = ff.examples(X[MINE], noise[MINE])
    fisher = measured(params, data, structure=structure)
    scores = [attacks.fisher_scores(NETWORK.apply, LIKELIHOOD, params, fisher, X[s], noise[s]) for s in (MINE, OTHERS)]
    assert float(attacks.auc(*scores)) > 0.95


def test_leverage_tells_members_of_small_clients_without_any_training():
    """With fewer examples than pixels, members alone lie in the span of A; with many, one does not weigh."""
    found = {}
    for size in (30, 200, 1000):
        gram = (
            regmean_kron(NETWORK.apply, LIKELIHOOD)
            .measure(ff.Update(START), ff.examples(X[:size]), jax.random.key(0))
            .statistics
        )
        moment = attacks.input_moment(gram, CAPTURED.layers[0])
        scores = [
            attacks.leverage_scores(CAPTURED, (0,), START, [moment], X[s]) for s in (slice(0, size), slice(1100, 1400))
        ]
        found[size] = float(attacks.auc(*scores))
    assert found[30] > 0.99 and found[30] > found[200] > found[1000] and found[1000] < 0.6


def test_leverage_against_the_formula():
    rows = np.concatenate([X[:300].reshape(300, -1), np.ones((300, 1))], axis=1).astype(float)
    moment = rows.T @ rows / 300
    damped = np.linalg.inv(moment + 1e-3 * np.trace(moment) / 65 * np.eye(65))
    got = attacks.leverage_scores(CAPTURED, (0,), START, [jnp.asarray(moment, jnp.float32)], X[:5], batch_size=2)
    np.testing.assert_allclose(got, [-row @ damped @ row for row in rows[:5]], rtol=2e-3)


SMALL = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(4, 5))), "v": jnp.ones((5, 3)) / 3}


def small(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


@pytest.mark.slow
def test_inverse_quadratics_against_dense_matrices():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(30, 4)))
    data, damping = ff.examples(x, jnp.zeros(30, int)), 0.1
    structures = ("diagonal", "kronecker", "full")
    fishers = jax.jit(lambda p: ff.fishers(small, LIKELIHOOD, p, data, structures=structures))(SMALL)
    options = {"structure": "low_rank", "key": jax.random.key(0), "subspace": Subspace(6, oversampling=4)}
    fishers["low_rank"] = jax.jit(lambda p: ff.fisher(small, LIKELIHOOD, p, data, **options))(SMALL)
    v = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size * 1.0)).reshape(leaf.shape), SMALL)
    flat = np.asarray(ravel_pytree(v)[0])
    for name, fisher in fishers.items():
        dense = np.asarray(fisher.to_dense())
        damped = dense + damping * np.trace(dense) / len(dense) * np.eye(len(dense))
        if name == "kronecker":  # leaves are in the order of their names: v before w
            own = lambda m: np.asarray(m) + damping * np.trace(m) / len(m) * np.eye(len(m))  # noqa: E731
            sides = [(own(a), own(g)) for a, g in zip(fisher.inputs, fisher.outputs, strict=True)]
            order = np.argsort([layer.weight for layer in fisher.layers])
            damped = scipy.linalg.block_diag(*[np.kron(*sides[n]) for n in order])
        expected = flat @ np.linalg.solve(damped, flat)
        assert float(membership.inverse_quadratic(fisher, damping)(v)) == pytest.approx(expected, rel=1e-7), name
    first = fishers["kronecker"].layers[:1]
    moment, shapes = x.T @ x / len(x), tuple(leaf.shape for leaf in jax.tree.leaves(SMALL))
    one = Gram((moment,), first, shapes, jax.tree.structure(SMALL))  # knows nothing of the second layer
    inside = np.linalg.inv(np.asarray(moment) + damping * np.trace(moment) / 4 * np.eye(4))
    expected = float(jnp.sum(v["w"] * (inside @ v["w"]))) / (1 + damping)  # the identity is damped, too
    assert float(membership.inverse_quadratic(one, damping)(v)) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="fisher: got NoneType"):
        membership.inverse_quadratic(None, damping)


def test_shares():
    np.testing.assert_allclose(labels.shares_of(jnp.array([1.0, -2.0, 3.0])), [0.25, 0, 0.75])
    np.testing.assert_allclose(labels.shares_of(jnp.zeros(4)), 0.25)


def test_a_trained_client_gives_its_classes_away():
    chosen = np.flatnonzero(np.isin(DATA.train_y, [2, 5, 9]))
    chosen = np.delete(chosen, np.flatnonzero(DATA.train_y[chosen] == 5)[::2])  # fewer fives
    x, y = X[chosen], Y[chosen]
    params = fitted(x, y, 5)
    truth = jnp.asarray(np.bincount(y, minlength=10) / len(y))
    kronecker = measured(params, ff.examples(x, y), structure="kronecker")
    last = CAPTURED.layers[-1]
    inputs = attacks.inputs_of(kronecker, last, jnp.ones(64))
    guesses = {
        "update": labels.of_update(START, params, last),
        "gradients": labels.of_output_moment(attacks.output_moment(kronecker, last)),
        "inputs": labels.of_last_inputs(LIKELIHOOD.mean, params, last, inputs, jax.random.key(0)),
    }
    uniform = float(attacks.total_variation_distance(jnp.full(10, 0.1), truth))
    for name, guess in guesses.items():
        assert float(jnp.sum(guess)) == pytest.approx(1, abs=1e-5), name
        assert float(attacks.total_variation_distance(guess.astype(truth.dtype), truth)) < 0.6 * uniform, name
    assert float(attacks.total_variation_distance(guesses["inputs"].astype(truth.dtype), truth)) < 0.2 * uniform
