"""What sums tell exactly, against the clients' own examples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedfisher_jax as ff
from fedfisher_jax.merge import analytic, exchanges, natural_gradient, pseudo_data
from fedfisher_jax.privacy.attacks import sums

RNG = np.random.default_rng(0)
X, Y = jnp.asarray(RNG.normal(size=(20, 5))), jnp.asarray([0] * 12 + [1] * 7 + [3])  # nobody of class 2, one of class 3
DATA, LIKELIHOOD, KEY = ff.examples(X, Y), ff.categorical(), jax.random.key(0)
PARAMS = {"a": jnp.asarray(RNG.normal(size=(5, 6))), "b": jnp.asarray(RNG.normal(size=4))}
PARAMS["c"] = jnp.asarray(RNG.normal(size=(6, 4)))
SHARES = np.asarray([12, 7, 0, 1]) / 20


def apply(params, x):
    return jnp.tanh(x @ params["a"]) @ params["c"] + params["b"]


def class_means(rows):
    return np.stack([rows[Y == c].mean(0) if (Y == c).any() else np.zeros(rows.shape[1]) for c in range(4)])


def test_a_head_shows_class_means_of_its_features():
    sent = analytic(apply, LIKELIHOOD, features=()).measure(ff.Update(None, PARAMS), DATA, KEY)
    told = sums.of_head(sent.statistics)
    np.testing.assert_allclose(told.shares, SHARES, atol=1e-12)
    np.testing.assert_allclose(told.means[:, :6], class_means(np.tanh(X @ PARAMS["a"])), atol=1e-9)
    np.testing.assert_allclose(told.means[3, :6], np.tanh(X[19] @ PARAMS["a"]), atol=1e-9)  # an example itself


def test_class_moments_show_class_means_of_inputs():
    sent = pseudo_data(apply, LIKELIHOOD).measure(ff.Update(PARAMS, PARAMS), DATA, KEY)
    told = sums.of_class_moments(sent.statistics)
    np.testing.assert_allclose(told.shares, SHARES, atol=1e-12)
    np.testing.assert_allclose(told.means, class_means(X), atol=1e-9)


def test_a_gradient_of_squares_with_factors_shows_what_a_head_does():
    rule = exchanges(natural_gradient(apply, LIKELIHOOD))[0]
    sent = rule.measure(ff.Update(None, PARAMS), DATA, KEY)
    layer = ff.capture(apply, PARAMS, X).layers[-1]
    told = sums.of_gradient(sent.statistics, PARAMS, layer)
    np.testing.assert_allclose(told.shares, SHARES, atol=1e-9)
    np.testing.assert_allclose(told.means, class_means(np.tanh(X @ PARAMS["a"])), atol=1e-7)
    with pytest.raises(ValueError, match="layer: expected one without groups, got 2"):
        sums.of_gradient(sent.statistics, PARAMS, dataclasses.replace(layer, groups=2))
    with pytest.raises(ValueError, match="layer: got one without a bias"):
        sums.of_gradient(sent.statistics, PARAMS, dataclasses.replace(layer, bias=None, bias_shape=()))
