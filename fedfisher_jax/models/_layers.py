"""Layers with PyTorch's conventions, which are those of the papers' experiments.

Weights start as U(-1/sqrt(fan_in), 1/sqrt(fan_in)), biases with the same bound; convolutions pad symmetrically; pools
drop an incomplete last window; feature maps are flattened channel first.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..tracing._pool import max_pool2 as max_pool2

_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _bias_init(fan_in: int):
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def dense(x: Float[Array, "n i"], features: int, *, name: str, use_bias: bool) -> Float[Array, "n o"]:
    """A dense layer, to be called in the compact `__call__` of a module."""
    init = _bias_init(x.shape[-1])
    return nn.Dense(features, use_bias=use_bias, kernel_init=_kernel_init, bias_init=init, name=name)(x)


def conv(
    x: Float[Array, "n h w i"],
    features: int,
    size: int,
    *,
    name: str,
    use_bias: bool,
    stride: int = 1,
    padding: int = 0,
) -> Float[Array, "n h2 w2 o"]:
    """A convolution with a square kernel and `padding` zeros on each side, to be called like `dense`."""
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=padding,
        use_bias=use_bias,
        kernel_init=_kernel_init,
        bias_init=_bias_init(size * size * x.shape[-1]),
        name=name,
    )(x)


def mean_pool(x: Float[Array, "n h w c"], size: int) -> Float[Array, "n h2 w2 c"]:
    """Mean over `size` x `size` windows."""
    n, h, w, c = x.shape
    h2, w2 = h // size, w // size
    return x[:, : h2 * size, : w2 * size].reshape(n, h2, size, w2, size, c).mean((2, 4))


def flatten(x: Float[Array, "n *shape"]) -> Float[Array, "n d"]:
    """Features as rows, feature maps channel first.

    The order of PyTorch: parameters and Kronecker factors of the dense layer that follows need no permutation to be
    exchanged with it, and the transposition of the small last map costs nothing that can be measured.
    """
    if x.ndim == 4:
        x = x.transpose(0, 3, 1, 2)
    return x.reshape(x.shape[0], -1)
