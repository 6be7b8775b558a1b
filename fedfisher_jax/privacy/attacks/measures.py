"""How much an attack found out: images against images, scores of members against others, shares against shares.

Images are [n, height, width, channels] with values between 0 and `peak`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Images = Float[Array, "n h w c"]
WINDOW = 7  # side of SSIM's windows


class Likeness(NamedTuple):
    """How near images are to the real ones that they are compared with; each [n].

    Attributes:
        mse: mean squared error over pixels.
        psnr: peak signal-to-noise ratio, dB.
        ssim: mean structural similarity, −1 to 1.
    """

    mse: jax.Array
    psnr: jax.Array
    ssim: jax.Array


def likeness(images: Images, real: Images, *, peak: float = 1.0, window: int = WINDOW) -> Likeness:
    """Measure each image by all three, MSE, PSNR and SSIM."""
    errors = mean_squared_error(images, real)
    return Likeness(errors, psnr(images, real, peak=peak), ssim(images, real, peak=peak, window=window))


def mean_squared_error(images: Images, real: Images) -> Float[Array, " n"]:
    """Average each image's squared error over pixels."""
    return jnp.mean((images - real) ** 2, axis=(1, 2, 3))


def psnr(images: Images, real: Images, *, peak: float = 1.0) -> Float[Array, " n"]:
    """Compute 10 log₁₀(peak² / mse) in dB; infinite where images are equal."""
    return 10 * jnp.log10(peak**2 / mean_squared_error(images, real))


def ssim(images: Images, real: Images, *, peak: float = 1.0, window: int = WINDOW) -> Float[Array, " n"]:
    """Compute structural similarity (Wang et al. 2004), the mean over all square windows inside and over channels.

    Uniform windows and sample (co)variances, constants (0.01 peak)² and (0.03 peak)².

    Raises:
        ValueError: the window is larger than the images, or smaller than 2.
    """
    side = min(images.shape[1:3])
    if not 2 <= window <= side:
        raise ValueError(f"window: got {window}, expected 2 to {side}, the images' smaller side")
    size = window**2

    def mean(values: jax.Array) -> jax.Array:
        zero = jnp.zeros((), values.dtype)
        return jax.lax.reduce_window(values, zero, jax.lax.add, (1, window, window, 1), (1, 1, 1, 1), "VALID") / size

    mean_x, mean_y = mean(images), mean(real)
    unbiased = size / (size - 1)
    var_x = unbiased * (mean(images**2) - mean_x**2)
    var_y = unbiased * (mean(real**2) - mean_y**2)
    covariance = unbiased * (mean(images * real) - mean_x * mean_y)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return jnp.mean(above / below, axis=(1, 2, 3))


def nearest(
    images: Images, candidates: Float[Array, "m h w c"], allowed: Bool[Array, "n m"] | None = None
) -> Int[Array, " n"]:
    """Find the number of the candidate with the least squared error, of those `allowed` (at least one)."""
    x, c = images.reshape(len(images), -1), candidates.reshape(len(candidates), -1)
    squares = jnp.sum(x**2, 1)[:, None] - 2 * x @ c.T + jnp.sum(c**2, 1)
    return jnp.argmin(squares if allowed is None else jnp.where(allowed, squares, jnp.inf), axis=1)


def auc(members: Float[Array, " n"], others: Float[Array, " m"]) -> Float[Array, ""]:
    """Compute how often a member's score is above another's, the area under the curve; ties count half."""
    above = members[:, None] > others
    return jnp.mean(above + 0.5 * (members[:, None] == others), dtype=members.dtype)


def total_variation_distance(shares: Float[Array, " c"], truth: Float[Array, " c"]) -> Float[Array, ""]:
    """Compute ½ Σ |p − q|: 0 for equal shares, 1 for shares of different classes."""
    return jnp.sum(jnp.abs(shares - truth)) / 2
