"""Fisher-aware inversion: what a payload's curvature says of the inputs, read off directly.

The Kronecker factor A of a layer is the second moment E[a aᵀ] of its inputs a (arXiv 2403.12329, section 4), with a 1
appended for the bias: its last row is the client's mean input, exactly, and its eigenvectors are the principal
components. A dense first layer shows images so, a convolution patches, a far weaker thing. Other structures give
the same up to weights: the block of a layer summed over its outputs is Σ_o F_(io),(jo) = E[|g|² a_i a_j], where
hard examples weigh more; of a diagonal, only i = j is known.

With mean and covariance at hand, class-wise inversion need not guess what images look like: `FisherInversion` looks for
the input that the model takes for the class, at a small Mahalanobis distance from the client's inputs, layer by layer.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..._likelihood import Likelihood
from ...curvature import Capture, Layer, activations
from ...curvature.structures._registry import require_known
from ...tracing._convolution import for_loops
from .descent import Weights
from .model_inversion import image_prior

PyTree = Any
DAMPING = 1e-3  # of covariances, relative to their mean diagonal entry


class Inputs(NamedTuple):
    """What is known of a layer's inputs, without the 1 for the bias."""

    mean: Float[Array, " i"]
    covariance: Float[Array, "i i"]


class Principal(NamedTuple):
    """Principal components of a layer's inputs, the strongest first."""

    variances: Float[Array, " k"]
    directions: Float[Array, "k i"]


def input_moment(fisher: Any, layer: Layer) -> Float[Array, "i i"]:
    """Read the second moment of a layer's inputs off a Fisher, [i, i]; its scale means nothing.

    Args:
        fisher: Fisher information of any registered structure.
        layer: one of the model's, from `capture`.

    Raises:
        ValueError: another structure, a layer that it does not have, or a grouped convolution.
    """
    return _moment(fisher, layer, 0)


def output_moment(fisher: Any, layer: Layer) -> Float[Array, "o o"]:
    """Read the second moment E[g gᵀ] of gradients at a layer's output off a Fisher, [o, o], likewise.

    Raises:
        ValueError: as `input_moment`, or a Gram, which has no such thing.
    """
    return _moment(fisher, layer, 1)


def _moment(fisher: Any, layer: Layer, side: int) -> jax.Array:
    if layer.groups != 1:
        raise ValueError(f"layer: expected one without groups, got {layer.groups}")
    return require_known(fisher).moment(layer, side)


def inputs_of(fisher: Any, layer: Layer, like: Float[Array, " i"]) -> Inputs:
    """Find mean and covariance of a layer's inputs.

    With a bias both are exact (for Kronecker, of a dense layer, while nothing was done to the payload). Without, or
    where a structure does not tell how inputs and bias go together, the strongest eigenvector of E[x xᵀ] = m mᵀ +
    covariance stands for the mean m, which outweighs the rest; its sign is that of `like`. From a diagonal, the root
    mean square stands for the mean, its signs those of `like`.

    Args:
        fisher: as for `input_moment`.
        layer: whose inputs they are.
        like: [i], anything similar to the mean: a public average of the layer's inputs. Only its signs are read.

    Raises:
        ValueError: as `input_moment`.
    """
    moment = input_moment(fisher, layer)
    tiny = jnp.finfo(moment.dtype).tiny
    if layer.bias is not None:  # noise may have brought the last entry, which counts examples, to zero
        scale = jnp.maximum(moment[-1, -1], jnp.maximum(1e-6 * jnp.trace(moment) / len(moment), tiny))
        moment, row = moment[:-1, :-1] / scale, moment[:-1, -1] / scale
    else:
        row = jnp.zeros_like(moment[0])
    root = jnp.sqrt(jnp.maximum(jnp.diagonal(moment), 0))

    def from_moment() -> Inputs:
        values, vectors = jnp.linalg.eigh(moment)
        mean = jnp.sqrt(jnp.maximum(values[-1], 0)) * vectors[:, -1]
        mean = jnp.where(jnp.vdot(mean, like.astype(mean.dtype)) < 0, -mean, mean)
        return Inputs(mean, moment - jnp.outer(mean, mean))

    def without_row() -> Inputs:
        coupled = jnp.any(moment != jnp.diag(jnp.diagonal(moment)))
        return jax.lax.cond(coupled, from_moment, lambda: Inputs(jnp.where(like < 0, -root, root), moment))

    return jax.lax.cond(jnp.any(row != 0), lambda: Inputs(row, moment - jnp.outer(row, row)), without_row)


def principal(inputs: Inputs, count: int) -> Principal:
    """Find the `count` strongest principal components of a layer's inputs."""
    values, vectors = jnp.linalg.eigh(inputs.covariance)
    return Principal(values[::-1][:count], vectors[:, ::-1][:, :count].T)


class Whitener(NamedTuple):
    """|roots (a − mean)|² is the mean over directions of squared distances in standard deviations."""

    mean: Float[Array, " i"]
    roots: Float[Array, "i i"]


def whitener(inputs: Inputs, damping: float = DAMPING) -> Whitener:
    """Make a whitener, damped so that directions without variance, where inputs cannot differ, weigh finitely."""
    values, vectors = jnp.linalg.eigh(inputs.covariance)
    floor = damping * jnp.maximum(jnp.mean(values), jnp.finfo(values.dtype).tiny)
    return Whitener(inputs.mean, vectors.T / jnp.sqrt((jnp.maximum(values, 0) + floor) * len(values))[:, None])


class Given(NamedTuple):
    """What `FisherInversion` reads.

    Attributes:
        params: the model.
        targets: [n] classes.
        whiteners: one for each of the layers numbered `FisherInversion.layers`.
        mean: [pixels] and
        basis: [k, pixels]: images are mean + coordinates · basis; None where images themselves are optimised.
    """

    params: PyTree
    targets: Int[Array, " n"]
    whiteners: Sequence[Whitener]
    mean: Any = None
    basis: Any = None


def images_of(found: Float[Array, "n ..."], given: Given, shape: tuple[int, ...]) -> Float[Array, "n ..."]:
    """Make the images [n, *shape] of what was optimised."""
    return found if given.basis is None else (given.mean + found @ given.basis).reshape(-1, *shape)


@dataclasses.dataclass(frozen=True)
class FisherInversion:
    """The loss of `descend`: nll + weight · mean distance of each layer's inputs from the client's + image priors.

    What is optimised are images [n, *shape], or coordinates [n, k] in the client's own principal components, each in
    standard deviations: start them at zero, which is the client's mean image.

    Attributes:
        apply: the model.
        likelihood: what was fitted.
        captured: its layers.
        layers: numbers of those whose inputs are known.
        shape: shape of an image.
        weight: weight of the distances.
        weights: weights of the image priors.
    """

    apply: Callable
    likelihood: Likelihood
    captured: Capture
    layers: tuple[int, ...]
    shape: tuple[int, ...]
    weight: float = 0.5
    weights: Weights = Weights(1e-3, 0.0)

    def __call__(self, found: jax.Array, given: Given) -> jax.Array:
        """Return one number for all images."""
        images, leaves = images_of(found, given, self.shape), jax.tree.leaves(given.params)
        fit = jax.vmap(self.likelihood.nll)(for_loops(self.apply)(given.params, images), given.targets)
        fit += image_prior(images, self.weights)
        rows_of = for_loops(lambda values, x: activations(self.captured, values, x))

        def distance(x: jax.Array) -> jax.Array:
            rows = rows_of(leaves, x)
            total = jnp.zeros((), fit.dtype)
            for number, one in zip(self.layers, given.whiteners, strict=True):
                centred = rows[number][..., : one.mean.size] - one.mean
                total += jnp.mean(jnp.sum((centred @ one.roots.T) ** 2, axis=-1))
            return total / max(1, len(self.layers))

        return jnp.mean(fit + self.weight * jax.vmap(distance)(images))
