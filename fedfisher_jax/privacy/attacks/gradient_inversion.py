"""Gradient inversion (Zhu et al. 2019, arXiv 1906.08935; Geiping et al. 2020, arXiv 2003.14053).

Where a round sends one step of SGD, the server knows the batch's gradient: old minus new parameters over the learning
rate. Inputs whose gradient points the same way are the batch, if it is small. The gradient of a dense first layer,
Σ x δᵀ / n, is even of rank n, and its columns are mixtures of the batch's images: only an n × n mixing matrix is then
left to find (`Span`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ..._likelihood import Likelihood
from ...curvature import Layer
from ...tracing._convolution import for_loops
from .descent import Bounds, Weights
from .model_inversion import image_prior

PyTree = Any
OUTSIDE = 10.0  # weight of squared pixel values beyond the bounds, which mixtures of images may have


class Span(NamedTuple):
    """Images as mixtures of a few directions.

    Attributes:
        basis: [k, pixels], orthonormal but for the bias.
        ones: [k], what the bias's row of the matrix says of each direction: a mixture's must be one; None without bias.
    """

    basis: Float[Array, "k pixels"]
    ones: Float[Array, " k"] | None


def gradient_of_step(start: PyTree, params: PyTree, learning_rate: float) -> PyTree:
    """Find the gradient behind one step of plain SGD from `start` to `params`.

    Raises:
        ValueError: the learning rate is not positive.
    """
    if not learning_rate > 0:
        raise ValueError(f"learning_rate: got {learning_rate}, expected a positive number")
    return jax.tree.map(lambda before, after: (before - after) / learning_rate, start, params)


def span(gradient: PyTree, layer: Layer, count: int) -> Span:
    """Find the `count` strongest directions of the inputs in the gradient of a dense first layer.

    Args:
        gradient: a tree like the parameters.
        layer: the model's first, from `capture`, whose inputs are the images' pixels as `ravel` orders them.
        count: number of images in the batch.

    Raises:
        ValueError: the layer's gradient cannot have so high a rank.
    """
    matrix = layer.to_matrix(jax.tree.leaves(gradient))
    if not 1 <= count <= min(matrix.shape):
        raise ValueError(f"count: got {count}, expected 1 to {min(matrix.shape)} for a layer of shape {matrix.shape}")
    rows = jnp.linalg.svd(matrix, full_matrices=False)[0][:, :count].T
    return Span(rows, None) if layer.bias is None else Span(rows[:, :-1], rows[:, -1])


def mixtures(found: Span, images: Float[Array, "n ..."]) -> Float[Array, "n k"]:
    """Project images onto the span, as coordinates [n, k]: where a descent begins."""
    return images.reshape(len(images), -1) @ found.basis.T


def unmixed(found: Span, coordinates: Float[Array, "n k"], shape: tuple[int, ...]) -> Float[Array, "n ..."]:
    """Make the images [n, *shape] of coordinates [n, k]."""
    return (coordinates @ found.basis).reshape(-1, *shape)


@dataclasses.dataclass(frozen=True)
class GradientInversion:
    """The loss of `descend`: 1 − cosine of the two gradients + priors.

    What is optimised are images [n, *shape], or their coordinates [n, k] in a `Span`. Given are (parameters before the
    step, gradient, targets [n], the span or None). Targets are known, or guessed by `labels.of_update`.
    """

    apply: Callable
    likelihood: Likelihood
    shape: tuple[int, ...]
    bounds: Bounds
    weights: Weights = Weights(1e-2, 0.0)

    def __call__(self, found: jax.Array, given: tuple[PyTree, PyTree, jax.Array, Span | None]) -> jax.Array:
        """One number for all of the step's batch."""
        params, gradient, targets, directions = given
        apply, outside = for_loops(self.apply), jnp.zeros((), found.dtype)
        images = found
        if directions is not None:
            images = unmixed(directions, found, self.shape)
            beyond = images - jnp.clip(images, self.bounds.low, self.bounds.high)
            outside = OUTSIDE * jnp.mean(beyond**2)
            if directions.ones is not None:
                outside += jnp.mean((found @ directions.ones - 1) ** 2)

        def fit(candidate: PyTree) -> jax.Array:
            return jnp.mean(jax.vmap(self.likelihood.nll)(apply(candidate, images), targets))

        ours = jax.grad(fit)(params)
        sizes = optax.tree.norm(ours) * optax.tree.norm(gradient)
        cosine = optax.tree.vdot(ours, gradient) / jnp.maximum(sizes, jnp.finfo(sizes.dtype).tiny)
        return jnp.asarray(1 - cosine + outside + jnp.mean(image_prior(images, self.weights)))
