"""The generator of DENSE (arXiv 2112.12371): noise to examples, for data-free distillation."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Generator(nn.Module):
    """Noise to images [h, w, c] by two doublings and three 3x3 convolutions, or to other shapes by dense layers.

    Normalisation is over the batch at hand, so a batch of examples belongs together.

    Attributes:
        shape: shape of one example.
        width: channels of the last hidden layer; the ones before have twice as many.
    """

    shape: tuple[int, ...]
    width: int = 64

    @nn.compact
    def __call__(self, noise: Float[Array, "n z"]) -> Float[Array, "n *shape"]:
        """Examples with entries from 0 to 1."""
        if len(self.shape) != 3:
            x = _active(self._normalised(nn.Dense(2 * self.width, kernel_init=_init, name="fc1")(noise), "norm1"))
            x = nn.Dense(math.prod(self.shape), kernel_init=_init, name="fc2")(x)
            return jax.nn.sigmoid(x).reshape(-1, *self.shape)
        height, width, channels = self.shape
        small = -(-height // 4), -(-width // 4)
        x = nn.Dense(2 * self.width * small[0] * small[1], kernel_init=_init, name="fc")(noise)
        x = self._normalised(x.reshape(-1, *small, 2 * self.width), "norm0")
        x = _active(self._normalised(self._conv(_double(x), 2 * self.width, "conv1", False), "norm1"))
        x = _active(self._normalised(self._conv(_double(x), self.width, "conv2", False), "norm2"))
        return jax.nn.sigmoid(self._conv(x, channels, "conv3", True)[:, :height, :width])

    def _conv(self, x: Array, features: int, name: str, use_bias: bool) -> Array:
        return nn.Conv(features, (3, 3), padding=1, use_bias=use_bias, kernel_init=_init, name=name)(x)

    def _normalised(self, x: Array, name: str) -> Array:
        scale = self.param(f"{name}_scale", lambda key, shape: 1 + 0.02 * jax.random.normal(key, shape), x.shape[-1:])
        shift = self.param(f"{name}_shift", nn.initializers.zeros, x.shape[-1:])
        axes = tuple(range(x.ndim - 1))
        mean, variance = x.mean(axes), x.var(axes)
        return scale * (x - mean) * jax.lax.rsqrt(variance + 1e-5) + shift


_init = nn.initializers.normal(0.02)


def _active(x: Array) -> Array:
    return nn.leaky_relu(x, 0.2)


def _double(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Each pixel as 2x2 equal ones."""
    return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
