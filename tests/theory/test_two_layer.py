import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax.theory import inputs, two_layer

from .common import client, problem


def test_apply_is_the_sum_over_neurons():
    params = two_layer.init(jax.random.key(0), 3, 7, jnp.float64)
    x = jax.random.normal(jax.random.key(1), (5, 3))
    for scaling, scale in (("ntk", 7**-0.5), ("mean_field", 1 / 7)):
        want = [scale * sum(a * max(w @ xi, 0) for w, a in zip(params.w.T, params.a, strict=True)) for xi in x]
        np.testing.assert_allclose(two_layer.apply(params, x, scaling), want, rtol=1e-12)


@pytest.mark.parametrize("scaling", ["ntk", "mean_field"])
@pytest.mark.parametrize("train_output", [False, True])
def test_gradient_is_the_derivative(scaling, train_output):
    params = two_layer.init(jax.random.key(0), 3, 8, jnp.float64)
    x, y, q = (jax.random.normal(jax.random.key(i), s) for i, s in ((1, (5, 3)), (2, (5,)), (3, (5,))))
    want = jax.grad(lambda p: 0.5 * jnp.sum(q * (two_layer.apply(p, x, scaling) - y) ** 2))(params)
    got = two_layer.gradient(params, x, y, q, scaling, train_output)
    np.testing.assert_allclose(got.w, want.w, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got.a, want.a if train_output else 0 * want.a, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("train_output", [False, True])
def test_training_is_plain_gradient_descent(train_output):
    start, local, data = problem(6, steps=7, train_output=train_output)
    mse = lambda p, i: jnp.mean((two_layer.apply(p, data.x[i]) - data.y[i]) ** 2)  # noqa: E731
    for i in range(2):
        p = start
        for _ in range(7):
            g = jax.grad(mse)(p, i)
            p = two_layer.Params(p.w - 0.25 * g.w, p.a - 0.25 * g.a if train_output else p.a)
        np.testing.assert_allclose(client(local, i).w, p.w, rtol=1e-12)
        np.testing.assert_allclose(client(local, i).a, p.a, rtol=1e-12)


def test_padded_examples_change_nothing():
    start, local, data = problem(6)
    padded = two_layer.ClientData(
        jnp.pad(data.x, ((0, 0), (0, 2), (0, 0)), constant_values=0.3),
        jnp.pad(data.y, ((0, 0), (0, 2)), constant_values=9.0),
        jnp.pad(data.weights, ((0, 0), (0, 2))),
    )
    np.testing.assert_allclose(two_layer.train(start, padded, 40, 0.5).w, local.w, rtol=1e-12)
    np.testing.assert_allclose(two_layer.loss(local, padded), two_layer.loss(local, data), rtol=1e-12)


def test_mean_field_outputs_move_at_a_rate_that_width_does_not_change():
    data = inputs.gaussian(jax.random.key(5), 1, 6, 3, dtype=jnp.float64)
    moved = []
    for width in (2000, 8000):
        start = two_layer.init(jax.random.key(0), 3, width, jnp.float64)
        start = start._replace(a=jnp.ones(width))
        after = two_layer.train(start, data, 3, 0.1, "mean_field")
        change = two_layer.client_outputs(after, data, "mean_field") - two_layer.client_outputs(
            start, data, "mean_field"
        )
        moved.append(float(jnp.linalg.norm(change)))
    assert moved[0] == pytest.approx(moved[1], rel=0.1)


def test_scaling_names_are_checked():
    with pytest.raises(ValueError, match="scaling: got 'wide', expected 'ntk' or 'mean_field'"):
        two_layer.output_scale(4, "wide")
