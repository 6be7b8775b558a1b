"""Gradients at a first layer's output, through a pool, are those of a plain walk back."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax import lax

import fedfisher_jax as ff
from fedfisher_jax.curvature._pull_back import pull_back

SIDE = 7
AFTER = {  # what follows the convolution, and the pool that is found
    "maximum": (lambda y: nn.max_pool(nn.relu(y), (2, 2), (2, 2)), (1, 2, 2, 1)),  # one row and column are left over
    "mean": (lambda y: nn.avg_pool(jnp.tanh(y), (3, 2), (3, 2)), (1, 3, 2, 1)),
    "scaled": (lambda y: nn.relu(nn.max_pool(y * jnp.arange(1.0, 4) - 0.1, (2, 2), (2, 2))), (1, 2, 2, 1)),
    "of channels": (lambda y: y.reshape(*y.shape[:-1], 1, 3).max(-1), (1, 1, 1, 3)),
    "overlapping": (lambda y: nn.max_pool(y, (3, 3), (2, 2), "SAME"), None),
    "read twice": (lambda y: nn.max_pool(y, (2, 2), (2, 2)) * y.mean((1, 2), keepdims=True), None),
    "normalised a little": (
        lambda y: nn.max_pool(y / (2 + 1e-4 * (y**2).sum(-1, keepdims=True)), (2, 2), (2, 2)),
        None,
    ),
    "far windows": (lambda y: jnp.maximum(y[:, :3], y[:, 3:6]), None),
}


def _convolution(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _model(after):
    def apply(params, x):
        z = after(_convolution(x, params["k"]) + params["b"])
        return z.reshape(len(z), -1) @ params["w"]

    x, params = zoo.normal(3, 4, SIDE, SIDE, 2), {"k": zoo.normal(0, 3, 3, 2, 3), "b": zoo.normal(1, 3)}
    z = jax.eval_shape(after, jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), x.dtype))
    return apply, params | {"w": zoo.normal(2, int(np.prod(z.shape)), 4)}, x


@pytest.mark.parametrize("name", AFTER)
def test_gradients_are_those_of_a_plain_walk_back(name):
    after, windows = AFTER[name]
    apply, params, x = _model(after)
    captured = ff.capture(apply, params, x)
    assert [pool.windows for pool in captured.pools] == ([] if windows is None else [windows])
    assert not captured.fallback

    @jax.jit
    def gradients(x):
        def of(captured, one):
            return pull_back(captured, jax.tree.leaves(params), one, lambda z: jnp.stack([z, jnp.cos(z)])).gradients

        plain = dataclasses.replace(captured, pools=())
        return [jax.vmap(lambda one, c=c: of(c, one))(x) for c in (captured, plain)]

    found, expected = gradients(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), found, expected)


def test_only_first_layers_have_one_and_a_fisher_has_derivatives():
    """Forward ones, over examples: as a plain walk back gives them."""
    _, params, x = _model(AFTER["maximum"][0])
    kernel = zoo.normal(4, 2, 2, 3, 2)

    def apply(params, x):
        z = nn.max_pool(jnp.tanh(_convolution(x, params["k"])), (2, 2), (2, 2))
        return nn.max_pool(_convolution(z, params["l"]), (3, 3), (3, 3)).reshape(len(x), -1)

    params = {"k": params["k"], "l": kernel}
    captured = ff.capture(apply, params, x)
    assert [(pool.windows, len(captured.layers)) for pool in captured.pools] == [((1, 2, 2, 1), 2)]

    def slope(x, captured):
        def of(x):
            return ff.fisher(apply, ff.categorical(), params, ff.examples(x), captured=captured, batch_size=2)

        return jax.jvp(of, (x,), (jnp.cos(x),))[1]

    plain = dataclasses.replace(captured, pools=())
    found, expected = jax.jit(lambda x: [slope(x, c) for c in (captured, plain)])(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)


def test_a_norm_before_a_pool_is_seen_in_any_type():
    """As in bfloat16, where rounding is large: an entry feeds others' windows, however little."""

    def apply(params, x, norm):
        y = _convolution(x, params["k"])
        y = (y - y.mean((1, 2, 3), keepdims=True)) if norm else y
        z = nn.max_pool(nn.relu(y), (2, 2), (2, 2))
        return z.reshape(len(z), -1) @ params["w"]

    x = jnp.ones((1, 8, 8, 2), jnp.bfloat16)
    params = {"k": jnp.ones((3, 3, 2, 4), jnp.bfloat16), "w": jnp.ones((64, 3), jnp.bfloat16)}
    found = [len(ff.capture(lambda p, x, norm=norm: apply(p, x, norm), params, x).pools) for norm in (False, True)]
    assert found == [1, 0]
