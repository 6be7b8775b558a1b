"""Pseudo-data: moments of classes' inputs by hand, draws that have them, and what training on them minimises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.fft

import fedfisher_jax as ff
from fedfisher_jax.merge import Draws, pseudo_data
from fedfisher_jax.merge import _pseudo_data as pseudo
from fedfisher_jax.merge._fedfisher import stacked

KEY, RNG = jax.random.key(0), np.random.default_rng(0)
CENTRES = 3 * RNG.normal(size=(3, 5))
Y = RNG.integers(0, 3, 90)
X = jnp.asarray(CENTRES[Y] + RNG.normal(size=(90, 5)))
PARTS = [np.flatnonzero(Y == 0), np.flatnonzero(Y == 1), np.flatnonzero(Y == 2)]  # a class each
LIKELIHOOD = ff.categorical()
SHORT = Draws(steps=200, learning_rate=0.02, batch_size=64)


def apply(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


START = {"v": jnp.asarray(RNG.normal(size=(6, 3))), "w": jnp.asarray(RNG.normal(size=(5, 6)) / 3)}
RULE = pseudo_data(apply, LIKELIHOOD, draws=SHORT)


@pytest.fixture(scope="module")
def sent():
    found = []
    for number, rows in enumerate(PARTS):
        data = ff.examples(X[rows], jnp.asarray(Y[rows]))
        training = ff.LocalTraining(apply, LIKELIHOOD, optax.sgd(0.1), epochs=3, batch_size=8)
        params = ff.train(training, START, data, KEY).params
        found.append(RULE.measure(ff.Update(params, START), data, jax.random.fold_in(KEY, number)))
    return found


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.mark.slow
def test_pooled_moments_are_those_of_each_class(sent):
    payloads = stack(sent)
    source = pseudo.gaussians(payloads.statistics, payloads.weight / payloads.weight.sum(), 100)
    np.testing.assert_allclose(jnp.exp(source.logits), np.bincount(Y) / 90, rtol=1e-12)
    for c in range(3):
        np.testing.assert_allclose(source.mean[c], X[Y == c].mean(0), rtol=1e-9, atol=1e-12)
        covariance = np.cov(np.asarray(X[Y == c]).T, bias=True)
        np.testing.assert_allclose(source.root[c] @ source.root[c].T, covariance, atol=1e-9)
    assert float(source.low) == float(X.min()) and float(source.high) == float(X.max())


@pytest.mark.slow
def test_draws_have_the_moments(sent):
    payloads = stack(sent)
    source = pseudo.gaussians(payloads.statistics, payloads.weight / payloads.weight.sum(), 100)
    wide = source._replace(low=-jnp.inf, high=jnp.inf)
    x, classes = pseudo.draw(wide, 60_000, KEY)
    np.testing.assert_allclose(np.bincount(classes) / 60_000, np.bincount(Y) / 90, atol=0.01)
    for c in range(3):
        np.testing.assert_allclose(x[classes == c].mean(0), source.mean[c], atol=0.05)
        np.testing.assert_allclose(np.cov(x[classes == c].T), source.root[c] @ source.root[c].T, atol=0.1)
    clipped, _ = pseudo.draw(source, 1000, KEY)
    assert float(clipped.min()) >= float(source.low) and float(clipped.max()) <= float(source.high)


def test_images_are_described_by_their_first_cosines():
    image = RNG.normal(size=(8, 8, 2))
    matrix = pseudo.basis((8, 8, 2), 40)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(40), atol=1e-12)
    spectrum = scipy.fft.dctn(image, axes=(0, 1), norm="ortho")
    order = sorted(((i, j) for i in range(8) for j in range(8)), key=lambda ij: (sum(ij), ij))[:20]
    expected = np.stack([spectrum[i, j, c] for c in range(2) for i, j in order])
    np.testing.assert_allclose(matrix @ image.ravel(), expected, atol=1e-12)


@pytest.mark.slow
def test_training_lowers_what_it_is_said_to_minimise(sent):
    """CE on fresh draws plus (λ/2) Q falls from the K-FAC merge to the result; with a huge λ the result stays at it."""
    payloads = stack(sent)
    problem = stacked(payloads._replace(statistics=payloads.statistics.fisher))
    plain = [one._replace(statistics=one.statistics.fisher, kind=None) for one in sent]
    kfac = ff.merge_payloads(ff.fedfisher(apply, LIKELIHOOD), plain).params
    source = pseudo.gaussians(payloads.statistics, payloads.weight / payloads.weight.sum(), 100)
    x, y = pseudo.draw(source, 5000, jax.random.key(99))

    def objective(params, weight):
        return float(ff.evaluate(apply, LIKELIHOOD, params, x, y).loss + weight / 2 * problem.value(params))

    merged = ff.merge_payloads(RULE, sent).params
    assert objective(merged, 3.0) < 0.7 * objective(kfac, 3.0)
    data = X, jnp.asarray(Y)
    assert ff.evaluate(apply, LIKELIHOOD, merged, *data).accuracy > ff.evaluate(apply, LIKELIHOOD, kfac, *data).accuracy
    free = ff.merge_payloads(pseudo_data(apply, LIKELIHOOD, draws=Draws(0.0, 200, 0.02, 64)), sent).params
    assert float(problem.value(free)) > float(problem.value(merged))  # the clients' curvature holds it back


@pytest.mark.slow
def test_order_does_not_matter_beyond_rounding(sent):
    forwards, backwards = ff.merge_payloads(RULE, sent).params, ff.merge_payloads(RULE, sent[::-1]).params
    accuracies = [float(ff.evaluate(apply, LIKELIHOOD, p, X, jnp.asarray(Y)).accuracy) for p in (forwards, backwards)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)


@pytest.mark.slow
def test_a_class_that_nobody_has_is_never_drawn(sent):
    payloads = stack(sent[:2])
    source = pseudo.gaussians(payloads.statistics, payloads.weight / payloads.weight.sum(), 100)
    _, classes = pseudo.draw(source, 2000, KEY)
    assert set(np.unique(classes)) == {0, 1}
    merged = ff.merge_payloads(RULE, sent[:2]).params
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(merged))


def test_padding_counts_for_nothing():
    mask = jnp.arange(90) % 3 != 0
    hidden = ff.examples(jnp.where(mask[:, None], X, jnp.nan), jnp.asarray(Y), mask)
    found = RULE.measure(ff.Update(START, START), hidden, KEY).statistics
    shown = RULE.measure(ff.Update(START, START), ff.examples(X[mask], jnp.asarray(Y)[mask]), KEY).statistics
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(shown), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_what_does_not_work_is_refused():
    with pytest.raises(ValueError, match="likelihood: got gaussian, expected categorical"):
        pseudo_data(apply, ff.gaussian())
    with pytest.raises(ValueError, match="draws, coefficients: got"):
        pseudo_data(apply, LIKELIHOOD, draws=Draws(steps=0))
    with pytest.raises(TypeError, match="option: got 'batchsize'"):
        pseudo_data(apply, LIKELIHOOD, batchsize=3)
    small = pseudo_data(apply, LIKELIHOOD, coefficients=4)
    with pytest.raises(ValueError, match="coefficients: got 4, expected at least the inputs' 5"):
        small.measure(ff.Update(START, START), ff.examples(X, jnp.asarray(Y)), KEY)
