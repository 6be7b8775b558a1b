"""Random changes of an example that leave its target as it is."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

Augment = Callable[[jax.Array, Any], Any]  # (key, one example) → one example


@cache
def crop_and_flip(pad: int = 4) -> Augment:
    """Random crop after zero padding and random horizontal flip of an image [h, w, c], as the paper augments."""

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        top, left = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
        cropped = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
        return jnp.where(jax.random.bernoulli(flip_key), cropped[:, ::-1], cropped)

    return augment
