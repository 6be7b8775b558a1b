"""Convolutions with every option that a user may set."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo.case import CASES, Case, case, linen, normal


@case
def linen_convolution():
    layers = [nn.Conv(3, (3, 3)), nn.relu, lambda x: nn.max_pool(x, (2, 2), (2, 2)), nn.Conv(4, (2, 2), use_bias=False)]
    return linen(nn.Sequential([*layers, lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)]), 3, 6, 6, 2)


def convolution(kernel, shape, layout=("NHWC", "HWIO", "NHWC"), bias=True, **options):
    """A convolution, its bias, tanh and a dense head."""
    x = normal(0, *shape)
    spatial = len(shape) - 2
    options = {"window_strides": (1,) * spatial, "padding": "VALID"} | options

    def body(p, x):
        y = lax.conv_general_dilated(x, p["k"], dimension_numbers=layout, **options)
        return y + p["b"].reshape([-1 if letter == "C" else 1 for letter in layout[2]]) if bias else y

    params = {"k": normal(1, *kernel)}
    if bias:
        params["b"] = normal(2, kernel[layout[1].index("O")])
    size = np.prod(jax.eval_shape(body, params, x).shape[1:])
    params["w"] = normal(3, size, 2)
    return Case(lambda p, x: jnp.tanh(body(p, x)).reshape(x.shape[0], -1) @ p["w"], params, x)


CONVOLUTIONS = {
    "strides_and_same_padding": lambda: convolution(
        (3, 2, 2, 3), (3, 5, 6, 2), window_strides=(2, 3), padding="SAME", bias=False
    ),
    "uneven_padding": lambda: convolution((2, 2, 2, 3), (3, 3, 4, 2), padding=((2, 0), (1, 3))),
    "negative_padding": lambda: convolution((2, 2, 2, 3), (3, 5, 5, 2), padding=((-1, 0), (0, -1))),
    "dilation": lambda: convolution((2, 2, 1, 3), (3, 5, 5, 1), rhs_dilation=(2, 3)),
    "groups": lambda: convolution((2, 2, 2, 6), (3, 3, 4, 4), feature_group_count=2),
    "groups_without_bias": lambda: convolution((2, 2, 1, 6), (3, 3, 3, 3), feature_group_count=3, bias=False),
    "transposed": lambda: convolution(
        (3, 3, 2, 3), (3, 2, 3, 2), lhs_dilation=(2, 2), padding=((2, 1), (2, 1)), window_strides=(1, 1)
    ),
    "channels_first": lambda: convolution((3, 2, 2, 2), (3, 2, 4, 4), ("NCHW", "OIHW", "NCHW")),
    "channels_first_groups": lambda: convolution(
        (4, 1, 2, 2), (3, 2, 3, 3), ("NCHW", "OIHW", "NCHW"), feature_group_count=2
    ),
    "one_dimension": lambda: convolution((3, 2, 3), (3, 7, 2), ("NWC", "WIO", "NWC"), window_strides=(2,)),
    "three_dimensions": lambda: convolution((2, 1, 2, 1, 2), (2, 3, 2, 3, 1), ("NDHWC", "DHWIO", "NDHWC")),
}
CASES |= {name: cache(build) for name, build in CONVOLUTIONS.items()}


@case
def linen_transposed_convolution():
    layers = [nn.ConvTranspose(2, (3, 3), strides=(2, 2)), nn.tanh, lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)]
    return linen(nn.Sequential(layers), 3, 2, 2, 2)


@case
def depthwise_and_circular():
    layers = [nn.Conv(4, (2, 2), feature_group_count=2, padding="CIRCULAR"), nn.tanh, lambda x: x.sum((1, 2))]
    return linen(nn.Sequential(layers), 3, 3, 3, 2)
