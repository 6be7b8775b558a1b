import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax.models import _layers as layers


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (1, 5, 7, 2)])
def test_pools_agree_with_flax(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    np.testing.assert_array_equal(layers.max_pool2(x), nn.max_pool(x, (2, 2), (2, 2)))
    np.testing.assert_allclose(layers.mean_pool(x, 2), nn.avg_pool(x, (2, 2), (2, 2)), rtol=1e-12)


def test_first_of_equal_maxima_gets_the_gradient():
    x = jnp.asarray([[1.0, 1.0], [0.0, 1.0]]).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(jax.grad(lambda x: layers.max_pool2(x).sum())(x)[0, :, :, 0], [[1, 0], [0, 0]])


def test_derivatives_of_max_pool_agree_with_flax():
    x, v = jax.random.normal(jax.random.key(1), (2, 2, 6, 6, 3))

    def loss(pool):
        return lambda x: jnp.sum(jnp.sin(pool(x)))

    ours, theirs = loss(layers.max_pool2), loss(lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    np.testing.assert_allclose(jax.grad(ours)(x), jax.grad(theirs)(x), rtol=1e-12)
    np.testing.assert_allclose(jax.jvp(ours, (x,), (v,))[1], jnp.vdot(jax.grad(theirs)(x), v), rtol=1e-12)


def test_nan_survives_max_pool():
    x = jnp.zeros((1, 2, 2, 1)).at[0, 1, 0, 0].set(jnp.nan)
    assert jnp.isnan(layers.max_pool2(x)).all()
