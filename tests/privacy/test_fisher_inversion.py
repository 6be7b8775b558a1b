"""What curvature says of inputs, against the inputs themselves."""

import dataclasses
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax.curvature import LowRank, Subspace
from fedfisher_jax.merge import regmean_kron
from fedfisher_jax.privacy import attacks

LIKELIHOOD = ff.categorical()
RANDOM = np.random.default_rng(3)
X = jnp.asarray(RANDOM.normal([0.5, -1.0, 2.0, 0.0], [1.0, 0.3, 0.5, 0.7], (40, 4)))
Y = jnp.asarray(RANDOM.integers(0, 3, 40))


def apply(params, x):
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"] + params["c"]


PARAMS = {
    "w": jnp.asarray(RANDOM.normal(size=(4, 5))),
    "b": jnp.asarray(RANDOM.normal(size=5)),
    "v": jnp.asarray(RANDOM.normal(size=(5, 3))),
    "c": jnp.zeros(3),
}
CAPTURED = ff.capture(apply, PARAMS, X)
FIRST, LAST = CAPTURED.layers
KINDS = ("diagonal", "kronecker", "full")
FISHERS = jax.jit(lambda p: ff.fishers(apply, LIKELIHOOD, p, ff.examples(X, Y), structures=KINDS))(PARAMS)


@cache
def low_rank(rank):
    options = {"structure": "low_rank", "key": jax.random.key(0), "subspace": Subspace(rank, 0, power_steps=1)}
    return jax.jit(lambda p: ff.fisher(apply, LIKELIHOOD, p, ff.examples(X, Y), **options))(PARAMS)


def explicit(side):
    """Σ_o E[|g_o|² a a'] of the first layer, or Σ_i for its outputs, from one Jacobian per example."""
    jacobian = jax.jit(jax.vmap(lambda x: jax.jacobian(lambda p: apply(p, x[None])[0])(PARAMS)))(X)
    rows = jnp.concatenate([jacobian["w"], jacobian["b"][:, :, None]], axis=2)  # [n, outputs, inputs + 1, hidden]
    factors = jax.vmap(LIKELIHOOD.fisher_factor)(apply(PARAMS, X))
    pulled = jnp.einsum("nkc,ncio->nkio", factors, rows)
    return jnp.einsum("nkio,nkjo->ij" if side == "inputs" else "nkio,nkip->op", pulled, pulled) / len(X)


def test_the_mean_input_is_in_the_factor():
    found = attacks.inputs_of(FISHERS["kronecker"], FIRST, jnp.zeros(4))
    np.testing.assert_allclose(found.mean, X.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(X.T, bias=True), atol=1e-12)
    components = attacks.principal(found, 2)
    values, vectors = np.linalg.eigh(np.cov(np.asarray(X).T, bias=True))
    np.testing.assert_allclose(components.variances, values[:-3:-1], rtol=1e-9)
    cosines = np.abs(np.sum(components.directions * vectors.T[:-3:-1], axis=1))
    np.testing.assert_allclose(cosines, 1, rtol=1e-9)


def test_mean_image_of_digits_in_single_precision():
    data = ff.data.load("digits")
    x, y = (jnp.asarray(part[data.train_y < 2]) for part in (data.train_x, data.train_y))
    network = ff.models.build("mlp", (8, 8, 1), 10, True)
    params = network.init(jax.random.key(0))
    for rule in (ff.fedfisher(network.apply, LIKELIHOOD), regmean_kron(network.apply, LIKELIHOOD)):
        sent = jax.jit(lambda p, rule=rule: rule.measure(ff.Update(p), ff.examples(x, y), jax.random.key(1)))(params)
        layer = ff.capture(network.apply, params, x).layers[0]
        found = attacks.inputs_of(sent.statistics, layer, jnp.zeros(64)).mean
        np.testing.assert_allclose(found.reshape(8, 8, 1), np.asarray(x, float).mean(0), atol=1e-6)


@pytest.mark.slow
def test_every_structure_tells_the_moments():
    for side, moment in (("inputs", attacks.input_moment), ("outputs", attacks.output_moment)):
        whole = explicit(side)
        np.testing.assert_allclose(moment(FISHERS["full"], FIRST), whole, rtol=1e-9)
        np.testing.assert_allclose(moment(low_rank(43), FIRST), whole, atol=1e-9 * float(jnp.abs(whole).max()))
        np.testing.assert_allclose(moment(FISHERS["diagonal"], FIRST), jnp.diag(jnp.diagonal(whole)), rtol=1e-9)
    ones = jnp.concatenate([X, jnp.ones((40, 1))], axis=1)
    np.testing.assert_allclose(attacks.input_moment(FISHERS["kronecker"], FIRST), ones.T @ ones / 40, rtol=1e-9)


def test_weighted_mean_from_a_full_fisher():
    moment = explicit("inputs")
    found = attacks.inputs_of(FISHERS["full"], FIRST, jnp.zeros(4))
    np.testing.assert_allclose(found.mean, moment[-1, :-1] / moment[-1, -1], rtol=1e-9)
    diagonal = attacks.inputs_of(FISHERS["diagonal"], FIRST, jnp.array([1.0, -1.0, 1.0, -1.0]))
    expected = np.sqrt(np.diagonal(moment)[:-1] / moment[-1, -1]) * [1, -1, 1, -1]
    np.testing.assert_allclose(diagonal.mean, expected, rtol=1e-9)


def test_without_bias_the_strongest_direction_stands_for_the_mean():
    model = lambda params, x: x @ params  # noqa: E731
    params, x = PARAMS["w"], X + 20.0
    fisher = jax.jit(lambda p: ff.fisher(model, LIKELIHOOD, p, ff.examples(x, Y), structure="kronecker"))(params)
    layer = ff.capture(model, params, x).layers[0]
    found = attacks.inputs_of(fisher, layer, x.mean(0))
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=5e-3)
    opposite = attacks.inputs_of(fisher, layer, -x.mean(0))
    np.testing.assert_allclose(opposite.mean, -found.mean, rtol=1e-9)
    moment = found.covariance + jnp.outer(found.mean, found.mean)
    np.testing.assert_allclose(moment, x.T @ x / 40, rtol=1e-9)


def test_a_convolution_tells_the_mean_patch_alone():
    class Small(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.relu(nn.Conv(2, (3, 3), padding="VALID")(x)).reshape(len(x), -1))

    x = jnp.asarray(RANDOM.normal(1.0, 0.5, (20, 6, 6, 1)))
    network = Small()
    params = jax.tree.map(lambda leaf: leaf.astype(x.dtype), network.init(jax.random.key(0), x)["params"])
    model = lambda p, x: network.apply({"params": p}, x)  # noqa: E731
    data = ff.examples(x, jnp.zeros(20, int))
    fisher = jax.jit(lambda p: ff.fisher(model, LIKELIHOOD, p, data, structure="kronecker"))(params)
    layer = ff.capture(model, params, x).layers[0]
    found = attacks.inputs_of(fisher, layer, jnp.zeros(9))
    patches = [x[:, r : r + 3, s : s + 3, 0].reshape(20, 9) for r in range(4) for s in range(4)]
    np.testing.assert_allclose(found.mean, np.concatenate(patches).mean(0), rtol=1e-9)
    assert found.mean.size == 9


def test_whitened_inputs_have_unit_energy():
    found = attacks.inputs_of(FISHERS["kronecker"], FIRST, jnp.zeros(4))
    white = attacks.whitener(found, damping=1e-9)
    energies = jnp.sum(((X - white.mean) @ white.roots.T) ** 2, axis=1)
    assert float(jnp.mean(energies)) == pytest.approx(1, rel=1e-6)
    values = np.einsum("ni,ij,nj->n", X - X.mean(0), np.linalg.inv(np.cov(X.T, bias=True)), X - X.mean(0)) / 4
    np.testing.assert_allclose(energies, values, rtol=1e-6)


@pytest.mark.slow
def test_fisher_aware_inversion_sees_more_than_weights_show():
    data = ff.data.load("digits")
    kept = np.isin(data.train_y, [0, 1, 7])
    x, y = jnp.asarray(data.train_x[kept]), jnp.asarray(data.train_y[kept])
    network = ff.models.build("mlp", (8, 8, 1), 10, True, hidden=(32,))
    start = network.init(jax.random.key(0))
    training = ff.LocalTraining(network.apply, LIKELIHOOD, optax.sgd(0.05), epochs=15, batch_size=32)
    params = jax.jit(lambda p: ff.train(training, p, ff.examples(x, y), jax.random.key(1)).params)(start)
    captured = ff.capture(network.apply, params, x)
    options = {"structure": "kronecker", "captured": captured}
    fisher = jax.jit(lambda p: ff.fisher(network.apply, LIKELIHOOD, p, ff.examples(x, y), **options))(params)
    targets, optimizer = jnp.array([0, 1, 7]), optax.adam(0.1)
    means = jnp.stack([x[y == label].mean(0) for label in (0, 1, 7)])

    inputs = attacks.inputs_of(fisher, captured.layers[0], jnp.zeros(64))
    parts = attacks.principal(inputs, 64)
    basis = jnp.sqrt(jnp.maximum(parts.variances, 0))[:, None] * parts.directions
    given = attacks.Given(params, targets, [attacks.whitener(inputs)], inputs.mean, basis)
    loss = attacks.FisherInversion(network.apply, LIKELIHOOD, captured, (0,), (8, 8, 1))
    begin = jnp.zeros((3, 64), jnp.float32)
    np.testing.assert_allclose(attacks.images_of(begin, given, (8, 8, 1))[0], x.mean(0), atol=1e-5)
    state, _ = attacks.descend(loss, optimizer, attacks.begin(optimizer, begin), given, steps=150)
    aware = attacks.images_of(state.inputs, given, (8, 8, 1))

    bounds = attacks.Bounds(float(x.min()), float(x.max()))
    blind = attacks.ModelInversion(network.apply, LIKELIHOOD)
    begin = attacks.grey(jax.random.key(2), 3, (8, 8, 1), bounds).astype(jnp.float32)
    state, _ = attacks.descend(
        blind, optimizer, attacks.begin(optimizer, begin), (params, targets), steps=150, bounds=bounds
    )
    scores = [attacks.psnr(found, means, peak=bounds.high - bounds.low) for found in (aware, state.inputs)]
    assert float(jnp.mean(scores[0])) > float(jnp.mean(scores[1])) + 5
    assert float(jnp.mean(scores[0])) > 17
    assert np.argmin([[np.sum((a - m) ** 2) for m in means] for a in aware], axis=1).tolist() == [0, 1, 2]


def test_what_is_refused():
    gram = regmean_kron(apply, LIKELIHOOD).measure(ff.Update(PARAMS), ff.examples(X, Y), jax.random.key(0)).statistics
    with pytest.raises(ValueError, match="a Gram has no gradients"):
        attacks.output_moment(gram, FIRST)
    with pytest.raises(ValueError, match="fisher: got NoneType"):
        attacks.input_moment(None, FIRST)
    with pytest.raises(ValueError, match="without groups, got 2"):
        attacks.input_moment(gram, dataclasses.replace(FIRST, groups=2))
    with pytest.raises(ValueError, match="no factors of the layer"):
        attacks.input_moment(gram, dataclasses.replace(FIRST, weight=9))
    partial = dataclasses.replace(low_rank(2), vectors={0: low_rank(2).vectors[0]})
    assert isinstance(partial, LowRank)
    with pytest.raises(ValueError, match="do not cover"):
        attacks.input_moment(partial, FIRST)
