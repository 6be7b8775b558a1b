"""Runs of any network over widths, against the closed forms of two layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax.theory import decomposition, inputs, matrix_free, two_layer, widths


def draw(key):
    return inputs.gaussian(key, 3, 2, 4, dtype=jnp.float64)


def test_relu_is_the_closed_form_at_every_width_and_seed():
    found = widths.over_widths(
        widths.two_layers(jax.nn.relu), draw, (8, 16), seeds=(5, 6), steps=30, further={"kfac": matrix_free.kfac}
    )
    assert list(found) == [8, 16]
    for width, run in found.items():
        for n, key in enumerate(map(jax.random.key, (5, 6))):
            start = two_layer.init(jax.random.fold_in(key, width), 4, width, jnp.float64)
            want = jax.jit(decomposition.diagnose, static_argnums=2)(start, draw(key), 30, run.step_size[n])
            assert float(run.local_loss[n]) == pytest.approx(float(want.local_loss), rel=1e-9)
            for rule in ("full", "kfac", "diagonal", "average", "pooled"):
                got, expected = run.errors[rule], want.errors[rule]
                np.testing.assert_allclose(got.loss[n], expected.loss, rtol=1e-5, err_msg=rule)
                np.testing.assert_allclose(got.laplace[n], expected.laplace, rtol=1e-5, atol=1e-10, err_msg=rule)


def test_a_network_of_ones_own_of_inputs_of_any_shape():
    def network(width, shape):
        size = int(np.prod(shape))
        return (
            lambda key: {"w": jax.random.normal(key, (size, 2 * width))},
            lambda params, x: jnp.tanh(x.reshape(len(x), -1) @ params["w"]).reshape(len(x), 2, width).mean(-1),
        )

    def clients(key):
        x = jax.random.normal(key, (2, 3, 2, 2))
        return two_layer.ClientData(x, x[..., 0], jnp.full((2, 3), 1 / 6))

    found = widths.over_widths(network, clients, [4], seeds=[0], steps=3, step_size=0.2)[4]
    init, apply = network(4, (2, 2))
    data = clients(jax.random.key(0))
    start = init(jax.random.fold_in(jax.random.key(0), 4))
    loss = float(jnp.mean(jnp.sum((jnp.stack([apply(start, x) for x in data.x]) - data.y) ** 2, -1)))
    assert float(found.init_loss[0]) == pytest.approx(loss, rel=1e-9) and found.eigenvalues.shape == (1, 12)
    assert float(found.local_loss[0]) < loss
