"""What the server sees: a compressed payload, a sum, a noisy one; each is a payload that attacks take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

pytest.importorskip("cryptography", reason="secure sums need pip install 'fedfisher-jax[privacy]'")

import fedfisher_jax as ff  # noqa: E402
from fedfisher_jax.merge import regmean_kron  # noqa: E402
from fedfisher_jax.privacy import attacks, noise  # noqa: E402
from fedfisher_jax.privacy.attacks import views  # noqa: E402

LIKELIHOOD = ff.categorical()
DATA = ff.data.load("digits")
NETWORK = ff.models.build("mlp", (8, 8, 1), 10, True, hidden=(16,))
START = NETWORK.init(jax.random.key(0))
X, Y = jnp.asarray(DATA.train_x), jnp.asarray(DATA.train_y)
CAPTURED = ff.capture(NETWORK.apply, START, X)
RULES = {
    "weights": ff.fedavg(NETWORK.apply, LIKELIHOOD),
    "diagonal": ff.fedfisher(NETWORK.apply, LIKELIHOOD, structure="diagonal", captured=CAPTURED),
    "kronecker": ff.fedfisher(NETWORK.apply, LIKELIHOOD, captured=CAPTURED),
    "gram": regmean_kron(NETWORK.apply, LIKELIHOOD, captured=CAPTURED),
}


@pytest.fixture(scope="module")
def payloads():
    """Payloads of three clients with one class each, in numbers 30, 60 and 90, with models of their own."""
    found = {}
    for kind, rule in RULES.items():
        measure = jax.jit(rule.measure)
        found[kind] = []
        for label in range(3):
            chosen = np.flatnonzero(DATA.train_y == label)[: 30 * (label + 1)]
            model = jax.tree.map(lambda leaf, s=label: leaf + 0.1 * s, START)
            found[kind].append(measure(ff.Update(model), ff.examples(X[chosen], Y[chosen]), jax.random.key(0)))
    return found


def mean_image(fisher):
    return attacks.inputs_of(fisher, CAPTURED.layers[0], jnp.zeros(64)).mean


def real_mean(label, count):
    return DATA.train_x[np.flatnonzero(DATA.train_y == label)[:count]].astype(float).mean(0).ravel()


@pytest.mark.slow
def test_a_compressed_payload_still_shows_the_mean(payloads):
    sent = payloads["kronecker"][1]
    seen = views.quantised(sent, "fedfisher-kfac", "categorical", START, CAPTURED, 1.0)
    assert jax.tree.structure(seen) == jax.tree.structure(sent)
    ours, theirs = (ravel_pytree(one.params)[0] for one in (seen, sent))
    error = float(jnp.max(jnp.abs(ours - theirs)))
    assert 0 < error < 0.01 * float(jnp.max(jnp.abs(theirs)))
    exact, coarse = (np.abs(mean_image(one.statistics) - real_mean(1, 60)).max() for one in (sent, seen))
    assert exact < 1e-6 < coarse < 0.2
    with pytest.raises(ValueError, match="budget: got 0.01"):
        views.quantised(sent, "fedfisher-kfac", "categorical", START, CAPTURED, 0.01)


@pytest.mark.parametrize("kind", ["weights", "diagonal", "gram"])
def test_a_secure_sum_shows_the_weighted_mean_alone(payloads, kind):
    seen = views.summed(RULES[kind], payloads[kind])
    weights = np.array([30, 60, 90]) / 180
    for part in ("params", "statistics"):
        terms = [np.asarray(ravel_pytree(getattr(one, part))[0], float) for one in payloads[kind]]
        np.testing.assert_allclose(ravel_pytree(getattr(seen, part))[0], weights @ np.stack(terms), atol=1e-5)
    assert float(seen.weight) == 180


def test_the_mean_image_of_a_sum_is_everybodys(payloads):
    found = mean_image(views.summed(RULES["gram"], payloads["gram"]).statistics)
    everybody = sum(share * real_mean(n, 30 * (n + 1)) for n, share in enumerate((1 / 6, 1 / 3, 1 / 2)))
    np.testing.assert_allclose(found, everybody, atol=1e-5)
    assert all(np.abs(found - real_mean(n, 30 * (n + 1))).max() > 0.3 for n in range(3))


def test_noise_hides_the_mean(payloads):
    sent = payloads["kronecker"][1]
    silent = noise.Guarantee(1.0, 1e-5, 1, 0.0, clip_params=1.0, clip_fisher=1.0)
    clipped = noise.privatise(sent, START, silent)  # clipping alone hides nothing: scales do not matter
    np.testing.assert_allclose(mean_image(clipped.statistics), real_mean(1, 60), atol=1e-3)
    seen = noise.privatise(sent, START, silent._replace(noise_multiplier=1.0))
    found = mean_image(seen.statistics)
    assert np.isfinite(found).all()
    assert abs(np.corrcoef(found, real_mean(1, 60))[0, 1]) < 0.6


def test_what_cannot_be_summed(payloads):
    with pytest.raises(ValueError, match="fedfisher-kfac needs each client's payload"):
        views.summed(RULES["kronecker"], payloads["kronecker"])
    with pytest.raises(ValueError, match="payloads: expected at least two, got 1"):
        views.summed(RULES["weights"], payloads["weights"][:1])
