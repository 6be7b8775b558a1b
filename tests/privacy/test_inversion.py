"""Attacks that optimise inputs: they go on where they stopped, and they work where they must."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax.privacy import attacks

SHAPE = (8, 8, 1)
LIKELIHOOD = ff.categorical()
DATA = ff.data.load("digits")
BOUNDS = attacks.Bounds(float(DATA.train_x.min()), float(DATA.train_x.max()))
RATE, STEPS = 0.1, 1500


def unit(images):
    return (jnp.clip(images, *BOUNDS) - BOUNDS.low) / (BOUNDS.high - BOUNDS.low)


def one_per_class(seed=0):
    random = np.random.default_rng(seed)
    chosen = [random.choice(np.flatnonzero(DATA.train_y == label)) for label in range(10)]
    return jnp.asarray(DATA.train_x[chosen]), jnp.asarray(DATA.train_y[chosen])


@pytest.fixture(scope="module")
def trained():
    """A network after 60 steps on one example per class, and the step that comes next."""
    x, y = one_per_class()
    network = ff.models.build("mlp", SHAPE, 10, True, hidden=(128,))

    def nll(params):
        return jnp.mean(jax.vmap(LIKELIHOOD.nll)(network.apply(params, x), y))

    step = jax.jit(lambda params: jax.tree.map(lambda p, g: p - RATE * g, params, jax.grad(nll)(params)))
    params = network.init(jax.random.key(0))
    for _ in range(60):
        params = step(params)
    return network, params, step(params), jax.grad(nll)(params)


def test_going_on_is_the_same_as_not_stopping():
    loss = lambda inputs, target: jnp.sum((inputs - target) ** 2)  # noqa: E731
    optimizer, target = optax.adam(optax.cosine_decay_schedule(0.3, 20)), jnp.array([2.0, -0.5])
    begin = attacks.begin(optimizer, jnp.zeros(2))
    options = {"bounds": attacks.Bounds(-1.0, 1.0)}
    whole, losses = attacks.descend(loss, optimizer, begin, target, steps=20, **options)
    half, first = attacks.descend(loss, optimizer, begin, target, steps=8, **options)
    half = jax.tree.unflatten(
        jax.tree.structure(half), [jnp.asarray(np.asarray(leaf)) for leaf in jax.tree.leaves(half)]
    )
    rest, second = attacks.descend(loss, optimizer, half, target, steps=12, **options)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(rest), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(losses, np.concatenate([first, second]))
    assert int(rest.step) == 20 and float(rest.inputs[0]) == 1.0  # the bound
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_model_inversion_finds_what_the_model_takes_for_a_class(trained):
    network, params, *_ = trained
    optimizer, loss = optax.adam(0.1), attacks.ModelInversion(network.apply, LIKELIHOOD)
    state = attacks.begin(optimizer, attacks.grey(jax.random.key(1), 10, SHAPE, BOUNDS).astype(jnp.float32))
    state, losses = attacks.descend(loss, optimizer, state, (params, jnp.arange(10)), steps=100, bounds=BOUNDS)
    outputs = network.apply(params, state.inputs)
    np.testing.assert_array_equal(jnp.argmax(outputs, -1), np.arange(10))
    assert float(state.inputs.min()) >= np.float32(BOUNDS.low) and float(state.inputs.max()) <= np.float32(BOUNDS.high)
    images, targets = state.inputs, jnp.arange(10)
    nll = -jax.nn.log_softmax(outputs)[jnp.arange(10), targets]
    prior = attacks.total_variation(images) + 0.1 * attacks.mean_square(images)  # the default weights
    assert float(loss(images, (params, targets))) == pytest.approx(float(jnp.mean(nll + prior)), rel=1e-5)


def test_the_step_tells_the_gradient(trained):
    _, params, after, gradient = trained
    found = attacks.gradient_of_step(params, after, RATE)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    with pytest.raises(ValueError, match="learning_rate: got 0"):
        attacks.gradient_of_step(params, after, 0.0)


def recovered(network, params, gradient, start=0):
    layer = ff.capture(network.apply, params, jnp.zeros((1, *SHAPE), jnp.float32)).layers[0]
    directions = attacks.span(gradient, layer, 10)
    optimizer = optax.adam(optax.cosine_decay_schedule(1.0, STEPS))
    loss = attacks.GradientInversion(network.apply, LIKELIHOOD, SHAPE, BOUNDS, attacks.Weights(1e-3, 0.0))
    grey = attacks.grey(jax.random.key(start), 10, SHAPE, BOUNDS).astype(jnp.float32)
    state = attacks.begin(optimizer, attacks.mixtures(directions, grey))
    given = params, gradient, jnp.arange(10, dtype=jnp.int32), directions
    state, _ = attacks.descend(loss, optimizer, state, given, steps=STEPS)
    return attacks.unmixed(directions, state.inputs, SHAPE), directions


def test_gradient_inversion_recovers_one_example_per_class(trained):
    """The attack works before anything is concluded from its failure."""
    network, params, after, gradient = trained
    x, _ = one_per_class()
    images, directions = recovered(network, params, attacks.gradient_of_step(params, after, RATE))
    found = attacks.psnr(unit(images), unit(x))
    assert float(jnp.mean(found)) > 25 and float(jnp.min(found)) > 20
    rows = x.reshape(10, -1)
    basis, *_ = jnp.linalg.qr(directions.basis.T)
    np.testing.assert_allclose(rows @ basis @ basis.T, rows, atol=2e-3)  # the batch lies in the span
    other, _ = one_per_class(seed=1)
    assert float(jnp.mean(attacks.psnr(unit(images), unit(other)))) < 15  # and nobody else is found


def test_gradient_inversion_without_a_span(trained):
    """On pixels themselves: a batch of one, of which the gradient tells everything."""
    network, params, *_ = trained
    x, y = (part[3:4] for part in one_per_class())
    gradient = jax.grad(lambda p: LIKELIHOOD.nll(network.apply(p, x)[0], y[0]))(params)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 500))
    loss = attacks.GradientInversion(network.apply, LIKELIHOOD, SHAPE, BOUNDS, attacks.Weights(1e-4, 0.0))
    state = attacks.begin(optimizer, attacks.grey(jax.random.key(2), 1, SHAPE, BOUNDS).astype(jnp.float32))
    state, _ = attacks.descend(loss, optimizer, state, (params, gradient, y, None), steps=500, bounds=BOUNDS)
    assert float(attacks.psnr(unit(state.inputs), unit(x))[0]) > 30


def test_spans_of_too_many_images(trained):
    network, params, _, gradient = trained
    layer = ff.capture(network.apply, params, jnp.zeros((1, *SHAPE), jnp.float32)).layers[0]
    with pytest.raises(ValueError, match="count: got 66, expected 1 to 65"):
        attacks.span(gradient, layer, 66)
