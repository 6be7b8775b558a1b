from dataclasses import replace
from functools import cache

import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax import gaussian
from fedfisher_jax.merge import DenseSettings, Update, dense
from fedfisher_jax.merge._distil import MeasureBounds, divergence, generator_loss
from fedfisher_jax.models._generator import Generator

SMALL = DenseSettings(rounds=2, generator_steps=3, batch_size=6, noise=4, width=2, learning_rate=0.1)
LONG = DenseSettings(rounds=30, generator_steps=5, batch_size=32, noise=8, width=8, learning_rate=0.05)
SETTINGS = {"dense": LONG, "convolutional": SMALL}
FAST_COMPILE = {"xla_backend_optimization_level": 0}


@cache
def solver(name, settings=None, validation=None):
    """Compiled once: the tests share it."""
    chosen = settings or SETTINGS[name]
    rule = dense(federation.net(name)[0], federation.LIKELIHOOD, settings=chosen, validation=validation)
    return jax.jit(lambda payloads: rule.solve(payloads, None)[:2], compiler_options=FAST_COMPILE)


def stacked(name, order=(0, 1, 2), common=False):
    sent = federation.payloads(MeasureBounds(False), name, common)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[sent[i] for i in order])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "convolutional"])
def test_laws(name):
    """Equal clients know what their average knows: there is nothing to learn, to the last bit."""
    solve, params = solver(name), federation.net(name)[1]
    federation.close(solve(stacked(name, common=True))[0], params, 1e-12)
    learned, diagnostics = solve(stacked(name))
    federation.close(solve(stacked(name, (2, 0, 1)))[0], learned)
    average = jax.tree.map(
        lambda leaf: jnp.tensordot(jnp.asarray(federation.SIZES) / 60, leaf, 1), stacked(name).params
    )
    changes = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), learned, average)
    assert min(jax.tree.leaves(changes)) > 1e-7
    assert all(bool(jnp.isfinite(value)) for value in diagnostics.values())


def test_one_client_is_returned():
    federation.close(solver("dense")(stacked("dense", (0,), common=True))[0], federation.net("dense")[1], 1e-12)


def test_student_comes_nearer_to_the_ensemble():
    apply = federation.net("dense")[0]
    sent = stacked("dense")
    student, _ = solver("dense")(sent)
    x = np.random.default_rng(3).normal(size=(200, 5))
    shares = np.asarray(federation.SIZES) / sum(federation.SIZES)
    outputs = jnp.stack([apply(federation.perturbed(federation.net("dense")[1], i), x) for i in range(3)])
    ensemble = jnp.tensordot(jnp.asarray(shares), outputs, 1)
    average = jax.tree.map(lambda leaf: jnp.tensordot(jnp.asarray(shares), leaf, 1), sent.params)
    before, after = (float(divergence(apply(p, x), ensemble).mean()) for p in (average, student))
    assert after < 0.5 * before


@pytest.mark.slow
def test_the_best_student_is_returned():
    """With a score that falls with every step away from the start, the student after the first round is the best."""
    sent = stacked("dense")
    first = solver("dense", replace(SMALL, rounds=1))(sent)[0]
    distance = lambda p: -sum(jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (p, first)), strict=True))  # noqa: E731
    best, diagnostics = solver("dense", SMALL, distance)(sent)
    federation.close(best, first)
    assert float(diagnostics["validation"]) == pytest.approx(0, abs=1e-12)


def test_divergence():
    draw = np.random.default_rng(0)
    outputs, target = draw.normal(size=(2, 4, 3))
    q, p = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (outputs, target))
    np.testing.assert_allclose(divergence(jnp.asarray(outputs), jnp.asarray(target)), (p * np.log(p / q)).sum(1))


def test_the_generator_seeks_its_classes_and_disagreement():
    draw = np.random.default_rng(1)
    ensemble, student = draw.normal(size=(2, 6, 3))
    student[:2] = ensemble[:2] / 2  # agree, and so count for nothing
    wanted = np.array([0, 1, 2, 0, 1, 2])
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (ensemble, student))
    differ = p.argmax(1) != q.argmax(1)
    assert 0 < differ.sum() < 5
    expected = np.mean(-np.log(p[np.arange(6), wanted])) - 0.5 * np.mean(differ * (p * np.log(p / q)).sum(1))
    found = generator_loss(jnp.asarray(ensemble), jnp.asarray(student), jnp.asarray(wanted), 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_bounds_leave_padding_out():
    data = federation.data((5,), 0)
    size = federation.SIZES[0]
    spoilt = data._replace(x=data.x.at[size:].set(100.0))
    sent = MeasureBounds(False)(Update(None), spoilt, None).statistics
    assert (sent["low"], sent["high"]) == (data.x[:size].min(), data.x[:size].max())
    assert sent["example"].shape == (0, 5)
    assert "low" not in MeasureBounds(True)(Update(None), spoilt, None).statistics


@pytest.mark.parametrize("shape", [(5,), (6, 7, 2), (3, 4)])
def test_generator(shape):
    network = Generator(shape, 2)
    noise = jax.random.normal(federation.KEY, (8, 4))
    made = jax.jit(lambda: network.init_with_output(federation.KEY, noise)[0], compiler_options=FAST_COMPILE)()
    assert made.shape == (8, *shape)
    assert 0 < made.min() < made.max() < 1


def test_refusals():
    apply = federation.net("dense")[0]
    with pytest.raises(ValueError, match="likelihood: got gaussian, expected categorical"):
        dense(apply, gaussian())
    with pytest.raises(ValueError, match="settings: got rounds=0, expected at least 1"):
        dense(apply, federation.LIKELIHOOD, settings=DenseSettings(rounds=0))
