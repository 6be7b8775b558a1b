"""The form of a function that is trained: equal to the function, with gradients equal to XLA's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax import lax
from test_convolution import MORE

from fedfisher_jax import models
from fedfisher_jax.tracing import _bands as bands
from fedfisher_jax.tracing import _jaxpr, _reverse, _training_form
from fedfisher_jax.tracing._pool import max_pool2


def _same(apply, params, x, **tolerance):
    """Outputs and gradients by reverse mode, in both arguments."""
    cotangent = zoo.normal(7, *jax.eval_shape(apply, params, x).shape)

    @jax.jit
    def both(params, x):
        results = []
        for function in (apply, _training_form.for_training(apply, "matrix")):
            outputs, pull = jax.vjp(function, params, x)
            results.append((outputs, pull(cotangent)))
        return results

    expected, found = both(params, x)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, **{"rtol": 1e-10, "atol": 1e-12, **tolerance})


@pytest.mark.parametrize("name", [*zoo.CONVOLUTIONS, "linen_transposed_convolution", "depthwise_and_circular"])
def test_gradients_are_those_of_the_function(name):
    _same(*zoo.CASES[name]()[:3])


@pytest.mark.parametrize("name", MORE)
def test_gradients_of_several_columns_at_once(name):
    kernel, shape, options = MORE[name]
    _same(*zoo.convolution(kernel, shape, **options)[:3])


class Net(nn.Module):
    """A convolution, perhaps a bias, a relu, a pool: in the order and with the pool that the test says."""

    pool: object
    bias: bool
    relu: str
    strides: int = 1

    @nn.compact
    def __call__(self, x):
        strides = (self.strides, self.strides)
        x = nn.Conv(3, (3, 2), strides=strides, use_bias=self.bias, padding="VALID", bias_init=zoo_bias)(x)
        x = nn.relu(x) if self.relu == "before" else x
        x = self.pool(x)
        return nn.relu(x) if self.relu == "after" else x


def zoo_bias(key, shape, dtype=jnp.float64):
    return jax.random.normal(key, shape, dtype)


def flax_pool(x):
    return nn.max_pool(x, (2, 2), (2, 2))


@pytest.mark.parametrize("pool", [max_pool2, flax_pool])
@pytest.mark.parametrize(("bias", "relu"), [(True, "before"), (True, "after"), (False, "before"), (False, "none")])
def test_a_pool_is_computed_with_its_convolution(pool, bias, relu):
    net = Net(pool, bias, relu, strides=1 + bias)
    x = jnp.round(zoo.normal(0, 3, 12, 11, 2))  # equal entries, and windows where the relu gives zeros alone
    params = net.init(jax.random.key(0), x)
    program, _ = _training_form._rewritten(_jaxpr.trace(lambda *a: [net.apply(*a)], params, x))
    assert not {"conv_general_dilated", "add"} & {equation.name for equation in program.equations}
    _same(net.apply, params, x)


def test_what_others_read_is_kept():
    """A feature map that is read before the pool too: the pool stays apart."""

    def apply(kernel, x):
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return max_pool2(nn.relu(y)).sum((1, 2)) + jnp.tanh(y).sum((1, 2))

    kernel, x = zoo.normal(0, 3, 3, 2, 4), zoo.normal(1, 2, 6, 6, 2)
    program, kept = _training_form._rewritten(_jaxpr.trace(lambda *a: [apply(*a)], kernel, x))
    assert len(kept) == 2 and "conv_general_dilated" in {equation.name for equation in program.equations}
    _same(apply, kernel, x)


def test_two_sums_before_a_pool_are_no_bias():
    def apply(params, x):
        y = lax.conv_general_dilated(x, params[0], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return max_pool2(y + params[1])

    x = zoo.normal(1, 2, 5, 5, 2)
    _same(apply, (zoo.normal(0, 2, 2, 2, 4), zoo.normal(2, 4, 4, 4)), x)  # differs from place to place
    _same(apply, (zoo.normal(0, 2, 2, 2, 4), zoo.normal(2, 4)), x)


@pytest.mark.parametrize("images", [1, 5])
def test_parts_of_a_batch_give_the_whole(images, monkeypatch):
    x, kernel = zoo.normal(0, images, 9, 8, 2), zoo.normal(1, 3, 3, 2, 5)
    slope = zoo.normal(2, images, 3, 3, 5)

    def gradients(cache):
        monkeypatch.setattr(_reverse, "CACHE", cache)
        jax.clear_caches()
        outputs, pull = jax.vjp(lambda x, k: _reverse.convolve(x, k, (1, 1), 2, None), x, kernel)
        return outputs, *pull(slope)

    plan = bands.plan(x.shape, kernel.shape, (1, 1), 2)
    for one, other in zip(gradients(3 * 8 * plan.numbers), gradients(2**40), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


def test_no_number_is_the_maximum():
    x = jnp.ones((1, 5, 5, 1)).at[0, 0, 0, 0].set(jnp.nan).at[0, 4, 4, 0].set(jnp.inf)
    kernel = jnp.ones((2, 2, 1, 2))
    with jax.debug_nans(False):
        found = _reverse.convolve(x, kernel, (1, 1), 2, None)
        plain = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        assert np.isnan(found)[np.isnan(max_pool2(plain))].all()  # and others of its tile


def test_clients_by_vmap_and_forward_derivatives():
    net = models.build("lenet", (28, 28, 1), 10, width=1)
    form = _training_form.for_training(net.apply, "matrix")
    x = zoo.normal(0, 2, 2, 28, 28, 1).astype(jnp.float32)
    params = jax.vmap(net.init)(jax.random.split(jax.random.key(0), 2))

    def slopes(apply):
        return jax.jit(jax.vmap(jax.grad(lambda p, x: jnp.sum(apply(p, x) ** 2))))(params, x)

    for one, other in zip(jax.tree.leaves(slopes(form)), jax.tree.leaves(slopes(net.apply)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    one = jax.tree.map(lambda leaf: leaf[0], params)
    with pytest.raises(TypeError, match="jvp"):
        jax.jvp(lambda p: form(p, x[0]), (one,), (one,))


@pytest.mark.parametrize(
    ("image", "kernel", "pool"), [((1, 28, 28, 1), (5, 5, 1, 6), 2), ((1, 9, 9, 3), (3, 3, 3, 200), 1)]
)
def test_tiles_fit(image, kernel, pool):
    plan = bands.plan(image, kernel, (1, 1), pool)
    assert plan.tile == 1 or plan.tile * pool * kernel[3] <= bands.WIDEST
    assert (plan.tiles - 1) * plan.tile < plan.width <= plan.tiles * plan.tile
    weights = zoo.normal(0, *kernel)
    assert bands.matrix(plan, weights).shape == (kernel[0] * plan.span * kernel[2], pool * plan.tile * kernel[3])
    x, y = zoo.normal(1, *image), zoo.normal(2, plan.height * pool * plan.tiles, kernel[0] * plan.span * kernel[2])
    np.testing.assert_allclose(
        jnp.vdot(bands.gather(plan, x), y), jnp.vdot(x, bands.spread(plan, y, image)), rtol=1e-10
    )  # each is the other's transpose


def test_what_a_model_prints_is_still_printed(capfd):
    def apply(w, x):
        jax.debug.print("seen {}", x.sum())
        return x @ w

    jax.block_until_ready(jax.jit(_training_form.for_training(apply, "matrix"))(jnp.ones((2, 2)), jnp.ones((1, 2))))
    jax.effects_barrier()
    assert "seen 2.0" in capfd.readouterr().out
