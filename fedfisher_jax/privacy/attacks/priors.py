"""What is known of images before any attack: neighbouring pixels are alike, and values are bounded."""

import jax.numpy as jnp
from jaxtyping import Array, Float

Images = Float[Array, "n h w c"]


def total_variation(images: Images) -> Float[Array, " n"]:
    """Compute the mean absolute difference of vertical plus of horizontal neighbours (anisotropic), in each image."""
    down = jnp.mean(jnp.abs(images[:, 1:] - images[:, :-1]), axis=(1, 2, 3))
    right = jnp.mean(jnp.abs(images[:, :, 1:] - images[:, :, :-1]), axis=(1, 2, 3))
    return down + right


def mean_square(images: Images) -> Float[Array, " n"]:
    """Average each image's squared pixels."""
    return jnp.mean(images**2, axis=(1, 2, 3))
