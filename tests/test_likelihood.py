import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax import _likelihood as likelihood

FAMILIES = [likelihood.categorical(), likelihood.gaussian(0.3), likelihood.bernoulli()]
SHAPES = [(4,), (3, 4), (1, 1)]


def _outputs(shape, seed=0):
    return 2 * jax.random.normal(jax.random.key(seed), shape)


def _fisher(family, outputs):
    rows = family.fisher_factor(outputs).reshape(-1, outputs.size)
    return rows.T @ rows


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_factor_gives_hessian_of_nll(family, shape):
    outputs = _outputs(shape)
    target = family.sample(jax.random.key(1), outputs)
    hessian = jax.hessian(family.nll)(outputs, target).reshape(outputs.size, outputs.size)
    rows = family.fisher_factor(outputs)
    assert rows.shape == (outputs.size, *shape) and rows.dtype == outputs.dtype
    np.testing.assert_allclose(_fisher(family, outputs), hessian, atol=1e-14)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_rows_of_a_sequence_touch_one_position_each(family):
    rows = family.fisher_factor(_outputs((3, 4)))
    touched = jnp.any(rows != 0, -1)
    np.testing.assert_array_equal(touched, jnp.repeat(jnp.eye(3, dtype=bool), 4, axis=0))


@pytest.mark.parametrize("shape", [(4,), (2, 3)], ids=str)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_sampled_gradients_have_fisher_as_covariance(family, shape):
    outputs, n = _outputs(shape), 100_000
    targets = jax.vmap(family.sample, (0, None))(jax.random.split(jax.random.key(2), n), outputs)
    grads = jax.vmap(jax.grad(family.nll), (None, 0))(outputs, targets).reshape(n, -1)
    products = grads[:, :, None] * grads[:, None, :]
    error = jnp.abs(products.mean(0) - _fisher(family, outputs))
    assert jnp.all(error <= 5 * products.std(0) / n**0.5 + 1e-12)
    assert jnp.all(jnp.abs(grads.mean(0)) <= 5 * grads.std(0) / n**0.5 + 1e-12)


@pytest.mark.parametrize("shape", [(4,), (2, 3)], ids=str)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_link_inverts_mean(family, shape):
    outputs = _outputs(shape)
    mean = family.mean(outputs)
    linked = family.link(mean)
    target = family.sample(jax.random.key(3), outputs)
    np.testing.assert_allclose(family.mean(linked), mean, atol=1e-14)
    np.testing.assert_allclose(family.nll(linked, target), family.nll(outputs, target), rtol=1e-12)
    np.testing.assert_allclose(_fisher(family, linked), _fisher(family, outputs), atol=1e-14)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_mean_is_the_expected_target(family):
    outputs, n = _outputs((3,)), 100_000
    targets = jax.vmap(family.sample, (0, None))(jax.random.split(jax.random.key(4), n), outputs)
    observed = jax.nn.one_hot(targets, 3) if family.name == "categorical" else targets
    error = jnp.abs(observed.mean(0) - family.mean(outputs))
    assert jnp.all(error <= 5 * observed.std(0) / n**0.5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=str)
@pytest.mark.parametrize("size", [0.0, 1e4])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_extreme_outputs_stay_finite(family, size, dtype):
    outputs = jnp.asarray([size, -size, 0.0], dtype)
    target = {"categorical": jnp.asarray(1), "gaussian": jnp.zeros(3, dtype), "bernoulli": jnp.asarray([0, 1, 1])}
    value, grad = jax.value_and_grad(family.nll)(outputs, target[family.name])
    mean = family.mean(outputs)
    for array in (value, grad, family.fisher_factor(outputs), mean, family.link(mean)):
        assert array.dtype == dtype and jnp.isfinite(array).all()
    assert jnp.isfinite(family.nll(family.link(mean), target[family.name]))


def test_nll_is_what_its_name_says():
    outputs = _outputs((3,))
    p = jax.nn.softmax(outputs)
    np.testing.assert_allclose(likelihood.categorical().nll(outputs, jnp.asarray(2)), -jnp.log(p[2]))
    target = jnp.asarray([1.0, 0.0, 1.0])
    np.testing.assert_allclose(likelihood.gaussian(0.5).nll(outputs, target), jnp.sum((outputs - target) ** 2))
    q = jax.nn.sigmoid(outputs)
    np.testing.assert_allclose(likelihood.bernoulli().nll(outputs, target), -jnp.log(q[0] * (1 - q[1]) * q[2]))


def test_correct_is_a_fraction_of_positions():
    outputs = jnp.asarray([[2.0, 1.0], [0.0, 3.0], [-1.0, -2.0]])
    assert likelihood.categorical().correct(outputs, jnp.asarray([0, 1, 1])) == pytest.approx(2 / 3)
    assert likelihood.categorical().correct(outputs[1], jnp.asarray(1)) == 1
    assert likelihood.bernoulli().correct(outputs[0], jnp.asarray([1, 0])) == 0.5
    assert likelihood.gaussian().correct is None


def test_equal_settings_are_the_same_static_argument():
    assert likelihood.gaussian(0.5) is likelihood.gaussian(0.5)
    assert likelihood.gaussian(0.5) != likelihood.gaussian(0.6)
    assert likelihood.categorical() is likelihood.categorical()


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan"), float("inf")])
def test_variance_must_be_positive_and_finite(variance):
    with pytest.raises(ValueError, match="variance: got"):
        likelihood.gaussian(variance)


@pytest.mark.parametrize(
    ("family", "shape", "y"),
    [
        (likelihood.categorical(), (2, 3), np.asarray([0, 2])),
        (likelihood.categorical(), (1, 2, 3), np.asarray([[0, 2]], np.uint8)),
        (likelihood.gaussian(), (1, 2), np.asarray([[0.5, -1.0]])),
        (likelihood.bernoulli(), (1, 2), np.asarray([[True, False]])),
        (likelihood.bernoulli(), (1, 2), np.asarray([[1.0, 0.0]])),
    ],
)
def test_good_targets_pass(family, shape, y):
    likelihood.check_targets(family, shape, y)


@pytest.mark.parametrize(
    ("family", "shape", "y", "message"),
    [
        (likelihood.categorical(), (2, 3), np.asarray([0, 3]), r"got 3 \(1 of 2 wrong\), .* 0 to 2"),
        (likelihood.categorical(), (2, 3), np.asarray([-1, 0]), "got -1"),
        (likelihood.categorical(), (2, 3), np.asarray([0.0, 1.0]), "float64.* integers"),
        (likelihood.categorical(), (2, 3), np.asarray([0]), r"shape \(1,\)"),
        (likelihood.gaussian(), (1, 2), np.asarray([[0.0, np.nan]]), "got nan"),
        (likelihood.gaussian(), (1, 2), np.asarray([0.0, 1.0]), r"shape \(2,\)"),
        (likelihood.gaussian(), (1, 2), np.asarray([["a", "b"]]), "numbers"),
        (likelihood.bernoulli(), (1, 2), np.asarray([[0, 2]]), "got 2"),
    ],
)
def test_bad_targets_are_named(family, shape, y, message):
    with pytest.raises(ValueError, match="y: got.*" + message.removeprefix("got ")):
        likelihood.check_targets(family, shape, y)
