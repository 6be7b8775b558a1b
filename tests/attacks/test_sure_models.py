"""Losses and empirical Fishers of models that are very sure, in float32, against float64 and exact formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

import fedfisher_jax as ff
from fedfisher_jax import _likelihood as likelihood
from fedfisher_jax import _metrics as metrics
from fedfisher_jax._examples import examples

GAPS = [0.5, 3.0, 12.0, 15.0, 17.0, 20.0, 40.0, 80.0]


def single(value):
    return jnp.asarray(value, jnp.float32)


def scaled(params, x):
    return x * params["s"]


@pytest.mark.parametrize("gap", [*GAPS, 200.0, 3e4])
@pytest.mark.parametrize("family", [likelihood.bernoulli(), likelihood.categorical()], ids=lambda f: f.name)
def test_an_ensemble_of_one_model_has_its_loss(family, gap):
    model, target = (single([[gap]]), [[0]]) if family.name == "bernoulli" else (single([[gap, 0.0]]), [1])
    stacked = {"s": jnp.ones(1, jnp.float32)}
    for weights in (None, single([3.0])):
        found = metrics.ensemble(scaled, family, stacked, model, jnp.asarray(target), weights=weights)
        np.testing.assert_allclose(found.loss, np.logaddexp(gap, 0), rtol=1e-6)
        assert found.loss.dtype == jnp.float32


def test_an_ensemble_that_disagrees_with_itself():
    """Bernoulli: (σ(90) + 2 σ(−90)) / 3 against log-space float64; the target that almost all rule out still counts."""
    x, stacked, weights = single([[90.0]]), {"s": single([1.0, -1.0])}, single([1.0, 2.0])
    for target, sign in ((0, -1), (1, 1)):
        found = metrics.ensemble(scaled, likelihood.bernoulli(), stacked, x, jnp.asarray([[target]]), weights=weights)
        logs = [-np.logaddexp(0, -sign * z) for z in (90.0, -90.0)]
        np.testing.assert_allclose(found.loss, -logsumexp(logs, b=[1 / 3, 2 / 3]), rtol=1e-6)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("kind", ["sure and right", "sure and wrong"])
def test_the_empirical_fisher_keeps_its_digits(gap, kind):
    """The squared gradient of each output: σ(∓gap)² for both classes, and for a binary output."""
    target = int(kind == "sure and wrong")
    truth = 1 / (1 + np.exp(-gap if target else gap)) ** 2
    one = examples(jnp.ones((1, 1), jnp.float32), jnp.asarray([target]))
    params = single([[gap, 0.0]])
    found = ff.fisher(lambda p, x: x @ p, likelihood.categorical(), params, one, kind="empirical").diagonal()
    np.testing.assert_allclose(found, [[truth, truth]], rtol=1e-5, atol=1e-37)
    one = examples(jnp.ones((1, 1), jnp.float32), jnp.asarray([[1 - target]]))
    params = single([[gap]])
    found = ff.fisher(lambda p, x: x @ p, likelihood.bernoulli(), params, one, kind="empirical").diagonal()
    np.testing.assert_allclose(found, [[truth]], rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("gap", GAPS)
def test_small_losses_are_not_zero(gap):
    categorical, bernoulli = likelihood.categorical(), likelihood.bernoulli()
    truth = np.log1p(2 * np.exp(-gap))
    np.testing.assert_allclose(categorical.nll(single([0.0, gap, 0.0]), jnp.asarray(1)), truth, rtol=1e-5)
    truth = np.log1p(np.exp(-gap))
    np.testing.assert_allclose(bernoulli.nll(single([gap, -gap]), jnp.asarray([1, 0])), 2 * truth, rtol=1e-5)


def test_classes_that_a_model_rules_out_by_minus_infinity():
    nll = likelihood.categorical().nll
    value, gradient = jax.value_and_grad(nll)(single([1.0, -np.inf]), jnp.asarray(0))
    assert value == 0 and (gradient == 0).all()
    assert nll(single([1.0, -np.inf]), jnp.asarray(1)) == np.inf
    assert jax.grad(nll)(single([7.0]), jnp.asarray(0)) == 0
