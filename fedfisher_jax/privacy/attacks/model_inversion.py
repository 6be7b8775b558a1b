"""Model inversion (Fredrikson et al. 2015): inputs that a model is surest of, class by class, under image priors.

Needs the parameters alone, so every payload offers it. It finds what the model takes for typical of a class.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._likelihood import Likelihood
from ...tracing._convolution import for_loops
from . import priors
from .descent import Bounds, Weights


@dataclasses.dataclass(frozen=True)
class ModelInversion:
    """The loss of `descend`: mean over images of nll + priors; given are (parameters, targets [n])."""

    apply: Callable
    likelihood: Likelihood
    weights: Weights = Weights()

    def __call__(self, images: jax.Array, given: tuple[Any, jax.Array]) -> jax.Array:
        """One number for images [n, h, w, c]."""
        params, targets = given
        fit = jax.vmap(self.likelihood.nll)(for_loops(self.apply)(params, images), targets)
        return jnp.mean(fit + image_prior(images, self.weights))


def image_prior(images: priors.Images, weights: Weights) -> Float[Array, " n"]:
    """Compute the weighted priors of each image [n]."""
    smooth, small = priors.total_variation(images), priors.mean_square(images)
    return weights.total_variation * smooth + weights.mean_square * small


def grey(key: jax.Array, count: int, shape: tuple[int, ...], bounds: Bounds, spread: float = 0.1) -> priors.Images:
    """Make images to begin with: the middle of the range and a little noise, [count, *shape].

    Args:
        key: random key of the noise.
        count: images.
        shape: shape of one image.
        bounds: smallest and largest value of a pixel.
        spread: standard deviation of the noise, as a share of the range.
    """
    middle, width = (bounds.low + bounds.high) / 2, bounds.high - bounds.low
    noise = jax.random.normal(key, (count, *shape), jnp.result_type(float))
    return jnp.clip(middle + spread * width * noise, bounds.low, bounds.high)
