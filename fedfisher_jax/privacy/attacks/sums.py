"""What sums over one client's examples tell exactly: how often each class is there, and what its mean is.

Nothing is optimised. A sum over many clients tells the same of all of them together; so a client with one example
of a class shows that example, unless others that have some of it are in the sum.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...curvature import Layer, Moments
from ...curvature.structures._class_moments import ClassMoments
from ...curvature.structures._gradient import Gradient
from ...merge._pseudo_data import basis
from .fisher_inversion import input_moment
from .labels import shares_of

PyTree = Any


class Classes(NamedTuple):
    """What is told of each class; the mean is zero where there is no example of it."""

    shares: Float[Array, " c"]
    means: Float[Array, "c d"]


def of_head(moments: Moments) -> Classes:
    """Read the classes off the moments of `analytic` and `recalibrate`: means of the features φ [D].

    B = E[φ yᵀ] with one-hot y is each class's share times its mean; E[y] are the shares.
    """
    return _divided(moments.totals, moments.cross.T)


def of_class_moments(moments: ClassMoments) -> Classes:
    """Read the classes off the moments of `pseudo-data`: means of the inputs, as far as their coefficients go."""
    found = _divided(moments.share, moments.first)
    rows = jnp.asarray(basis(moments.example[0], found.means.shape[1]), found.means.dtype)
    return found._replace(means=found.means @ rows)


def of_gradient(sent: Gradient, params: PyTree, layer: Layer) -> Classes:
    """Read the classes off a gradient of least squares and Kronecker factors: means of the last layer's inputs.

    With outputs f = Wᵀa the gradient is E[a (f − y)ᵀ] = A W − E[a yᵀ], of which A and W are known. Where a layer has a
    bias, the last entry of a is one, so that the last row of E[a yᵀ] are the shares.

    Args:
        sent: a client's payload at these parameters, of rules that minimise least squares.
        params: the model that was sent.
        layer: the model's last, from `capture`.

    Raises:
        ValueError: the layer has no bias: means are then known up to each class's share. Also as `input_moment`.
    """
    if layer.bias is None:
        raise ValueError("layer: got one without a bias, expected one with a bias, whose input is one")
    weights, slopes = (layer.to_matrix(jax.tree.leaves(tree)) for tree in (params, sent.gradient))
    cross = input_moment(sent.fisher, layer) @ weights.astype(slopes.dtype) - slopes
    return _divided(cross[-1], cross[:-1].T)


def _divided(shares: jax.Array, sums: jax.Array) -> Classes:
    there = shares > 1e-6  # of rounding
    means = jnp.where(there[:, None], sums / jnp.where(there, shares, 1)[:, None], 0)
    return Classes(shares_of(shares), means)
