import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedfisher_jax as ff
from fedfisher_jax import _likelihood as likelihood
from fedfisher_jax import _metrics as metrics
from fedfisher_jax._ensemble import ensemble_apply
from fedfisher_jax.federate.rounds import client_scores

FAMILIES = [likelihood.categorical(), likelihood.gaussian(0.5), likelihood.bernoulli()]
MEMBERS, N = 3, 23


def apply(params, x):
    return x @ params["w"] + params["b"]


def _problem(family):
    keys = jax.random.split(jax.random.key(0), 4)
    stacked = {"w": jax.random.normal(keys[0], (MEMBERS, 5, 4)), "b": jax.random.normal(keys[1], (MEMBERS, 4))}
    x = jax.random.normal(keys[2], (N, 5))
    params = jax.tree.map(lambda leaf: leaf[0], stacked)
    y = jax.vmap(family.sample)(jax.random.split(keys[3], N), apply(params, x))
    return stacked, params, x, y


def _same(a, b):
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-12)
    if a.accuracy is None:
        assert b.accuracy is None
    else:
        np.testing.assert_allclose(a.accuracy, b.accuracy, rtol=1e-12)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_means_over_examples(family):
    _, params, x, y = _problem(family)
    outputs = apply(params, x)
    result = metrics.evaluate(apply, family, params, x, y)
    np.testing.assert_allclose(result.loss, np.mean([family.nll(o, t) for o, t in zip(outputs, y, strict=True)]))
    if family.correct is None:
        assert result.accuracy is None
    else:
        expected = np.mean([family.correct(o, t) for o, t in zip(outputs, y, strict=True)])
        np.testing.assert_allclose(result.accuracy, expected)
        assert 0 < result.accuracy < 1


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7, 22, 23])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_batch_size_does_not_matter(family, batch_size):
    stacked, params, x, y = _problem(family)
    mask = jnp.arange(N) % 3 > 0
    for options in ({}, {"mask": mask}):
        one = metrics.evaluate(apply, family, params, x, y, **options)
        _same(metrics.evaluate(apply, family, params, x, y, batch_size=batch_size, **options), one)
        one = metrics.ensemble(apply, family, stacked, x, y, **options)
        _same(metrics.ensemble(apply, family, stacked, x, y, batch_size=batch_size, **options), one)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_masked_examples_do_not_count(family):
    _, params, x, y = _problem(family)
    mask = jnp.arange(N) < 20
    kept = metrics.evaluate(apply, family, params, x[:20], y[:20])
    _same(metrics.evaluate(apply, family, params, x.at[20:].set(jnp.nan), y, mask=mask, batch_size=6), kept)


def test_a_mask_may_be_a_list():
    _, params, x, y = _problem(FAMILIES[0])
    kept = metrics.evaluate(apply, FAMILIES[0], params, x[:20], y[:20])
    _same(metrics.evaluate(apply, FAMILIES[0], params, x, y, mask=[n < 20 for n in range(N)]), kept)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_ensemble_of_equal_members_is_the_model(family):
    _, params, x, y = _problem(family)
    model = metrics.evaluate(apply, family, params, x, y)
    for members in (1, 3):
        stacked = jax.tree.map(lambda leaf, m=members: jnp.stack([leaf] * m), params)
        _same(metrics.ensemble(apply, family, stacked, x, y), model)


def test_ensemble_averages_probabilities():
    family = likelihood.categorical()
    stacked, _, x, y = _problem(family)
    p = np.mean([jax.nn.softmax(x @ w + b) for w, b in zip(stacked["w"], stacked["b"], strict=True)], axis=0)
    result = metrics.ensemble(apply, family, stacked, x, y)
    np.testing.assert_allclose(result.loss, -np.mean(np.log(p[np.arange(N), y])))
    np.testing.assert_allclose(result.accuracy, np.mean(p.argmax(-1) == y))
    reverse = jax.tree.map(lambda leaf: leaf[::-1], stacked)
    _same(metrics.ensemble(apply, family, reverse, x, y), result)


def test_weights_of_the_ensemble_are_shares():
    family = likelihood.categorical()
    stacked, _, x, y = _problem(family)
    repeated = jax.tree.map(lambda leaf: leaf[jnp.asarray([0, 1, 1, 1, 2, 2])], stacked)
    weighted = metrics.ensemble(apply, family, stacked, x, y, weights=jnp.asarray([0.1, 0.3, 0.2]))
    _same(weighted, metrics.ensemble(apply, family, repeated, x, y))
    with pytest.raises(ValueError, match=r"weights: got shape \(2,\)"):
        metrics.ensemble(apply, family, stacked, x, y, weights=jnp.ones(2))


def test_sequences_sum_losses_and_average_hits():
    family = likelihood.categorical()
    x, y = jax.random.normal(jax.random.key(0), (6, 4, 3)), jnp.arange(24).reshape(6, 4) % 3

    def shifted(params, x):
        return x + params

    flat = metrics.evaluate(shifted, family, jnp.zeros(3), x.reshape(24, 3), y.reshape(24))
    whole = metrics.evaluate(shifted, family, jnp.zeros(3), x, y, batch_size=4)
    np.testing.assert_allclose(whole.loss, 4 * flat.loss)
    np.testing.assert_allclose(whole.accuracy, flat.accuracy)


def test_bad_lengths_are_named():
    family = likelihood.categorical()
    _, params, x, y = _problem(family)
    for arguments in ((x, y[:-1]), (x[:0], y[:0])):
        with pytest.raises(ValueError, match="x, y, mask: got"):
            metrics.evaluate(apply, family, params, *arguments)
    with pytest.raises(ValueError, match="batch_size: got 0"):
        metrics.evaluate(apply, family, params, x, y, batch_size=0)


def test_an_ensemble_by_class_shares_is_the_formula():
    """p(c|x) ∝ Σ_i (n_ic / n_c) p_i(c|x), in plain numpy; a class that nobody has gets nothing."""
    family = likelihood.categorical()
    stacked, _, x, y = _problem(family)
    counts = np.array([[5.0, 0, 2, 0], [1, 3, 0, 0], [0, 9, 2, 0]])
    joint = ensemble_apply(apply, family, jnp.asarray(counts))
    each = np.stack(
        [jax.nn.softmax(apply(jax.tree.map(lambda leaf, i=i: leaf[i], stacked), x)) for i in range(MEMBERS)]
    )
    shares = counts / np.maximum(counts.sum(0), 1)
    expected = (shares[:, None] * each).sum(0)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(joint(stacked, x)), expected, rtol=1e-12)
    scores = metrics.ensemble(apply, family, stacked, x, jnp.minimum(y, 2), weights=jnp.asarray(counts))
    np.testing.assert_allclose(scores.accuracy, np.mean(expected.argmax(1) == np.minimum(y, 2)))
    loss = -np.log(np.take_along_axis(expected, np.minimum(np.asarray(y), 2)[:, None], 1)).mean()
    np.testing.assert_allclose(scores.loss, loss, rtol=1e-10)


def test_equal_class_shares_are_the_plain_ensemble():
    family = likelihood.categorical()
    stacked, _, x, y = _problem(family)
    plain = metrics.ensemble(apply, family, stacked, x, y)
    _same(metrics.ensemble(apply, family, stacked, x, y, weights=jnp.full((MEMBERS, 4), 7.0)), plain)


def test_class_shares_need_classes():
    stacked, _, x, y = _problem(likelihood.gaussian())
    with pytest.raises(ValueError, match="weights: got one for each class and likelihood gaussian"):
        metrics.ensemble(apply, likelihood.gaussian(), stacked, x, y, weights=jnp.ones((MEMBERS, 4)))
    with pytest.raises(ValueError, match=r"weights: got shape \(2, 4\)"):
        metrics.ensemble(apply, likelihood.categorical(), stacked, x, y, weights=jnp.ones((2, 4)))


def test_scores_are_of_the_outputs_of_16_bits_that_the_model_gives():
    """Their ties are the model's own: a compiled program may not score the wider numbers that it computed them from."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((4000, 20), (20, 10)))
    y = (np.asarray(x, np.float64) @ np.asarray(w, np.float64)).argmax(-1)
    expected = np.mean(np.asarray(x @ w, np.float64).argmax(-1) == y)
    assert 0.9 < expected < 0.999  # where two outputs tie in bfloat16 the first one wins
    linear, data = (lambda w, x: x @ w), (x, jnp.asarray(y))
    np.testing.assert_allclose(ff.evaluate(linear, ff.categorical(), w, *data).accuracy, expected, rtol=1e-6)
    np.testing.assert_allclose(ff.ensemble(linear, ff.categorical(), w[None], *data).accuracy, expected, rtol=1e-6)
    scores = client_scores(linear, ff.categorical(), w, ff.examples(*data))
    np.testing.assert_allclose(scores[1], expected, rtol=1e-6)


def test_scores_of_a_convolutional_model_are_those_of_its_plain_outputs():
    network = ff.models.build("lenet", (28, 28, 1), 10)
    keys = jax.random.split(jax.random.key(0), 3)
    params, x = network.init(keys[0]), jax.random.normal(keys[1], (7, 28, 28, 1))
    y, outputs = jax.random.randint(keys[2], (7,), 0, 10), np.asarray(network.apply(params, x))
    expected = np.mean(np.log(np.exp(outputs).sum(1)) - outputs[np.arange(7), np.asarray(y)])
    scores = ff.evaluate(network.apply, ff.categorical(), params, x, y, batch_size=3)
    np.testing.assert_allclose(scores.loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics.predict(network.apply, params, x, batch_size=3), outputs, rtol=1e-5, atol=1e-8)


def test_an_ensemble_of_equal_weights_and_one_by_size_are_one_program():
    traced, members = [], jnp.stack([jnp.eye(2), 2 * jnp.eye(2)])

    def apply(params, x):
        traced.append(x.shape)
        return x @ params

    counts = []
    for weights in (None, jnp.asarray([0.3, 0.7])):
        ff.ensemble(apply, ff.categorical(), members, jnp.eye(2), jnp.asarray([0, 1]), weights=weights)
        counts.append(len(traced))
    assert counts[0] == counts[1]
