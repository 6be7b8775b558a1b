"""The model that an ensemble is: members' mean parameters are averaged, equally, by weights or by class shares."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._doors import require_weights
from ._likelihood import Likelihood
from ._trees import widened

Apply = Callable[[Any, Any], Any]


def ensemble_apply(
    apply: Apply, likelihood: Likelihood, weights: Float[Array, " m"] | Float[Array, "m c"] | None = None
) -> Apply:
    """Make the model whose mean parameter (for a classifier, its probabilities) is the average of its members'.

    Args:
        apply: (params, x [b, ...]) -> outputs [b, ...].
        likelihood: what the outputs mean.
        weights: [m], the non-negative weight of each member, normalised here; None is equal weights. For a classifier
            also [m, c], each member's weight for each class, such as how many examples of it the member has seen:
            p(c|x) ∝ Σ_i (weights_ic / Σ_j weights_jc) p_i(c|x), where a class that nobody has gets nothing.

    Returns:
        (stacked_params, x) -> outputs, where each leaf of `stacked_params` has a leading axis of members. One member is
        applied at a time.

    Raises:
        ValueError: weights for each class and another likelihood, a negative weight, or none that is positive; weights
            that are traced are not looked at.
    """
    require_weights(weights)
    if weights is not None and jnp.ndim(weights) == 2 and likelihood.name != "categorical":
        raise ValueError(f"weights: got one for each class and likelihood {likelihood.name}, expected categorical")

    def joint(stacked_params: Any, x: Any) -> Float[Array, "n ..."]:
        outputs = jax.lax.map(lambda params: wide_outputs(apply, params, x), stacked_params)  # [m, n, ...]
        given = jnp.ones(len(outputs)) if weights is None else jnp.asarray(weights)
        if given.ndim == 1:
            shares = (given / given.sum()).astype(outputs.dtype)
            return jax.vmap(likelihood.mix, (1, None))(outputs, shares)
        shares = (given / jnp.maximum(given.sum(0), jnp.finfo(given.dtype).tiny)).astype(outputs.dtype)
        by_class = shares.reshape(len(shares), *[1] * (outputs.ndim - 2), -1)
        lowest = jnp.finfo(outputs.dtype).min / 4  # a class that nobody has; infinity would make losses of others NaN
        return jnp.maximum(jax.nn.logsumexp(jax.nn.log_softmax(outputs), axis=0, b=by_class), lowest)

    return joint


def wide_outputs(apply: Apply, params: Any, x: Any) -> Any:
    """Compute the outputs of 16 bits that the model gives, in 32 bits: sums of 16 lose what is added late.

    A compiler would keep wider ones for the scores' sake, and break ties that the model has.
    """
    outputs = apply(params, x)
    wide, kind = widened(outputs), jnp.finfo(outputs.dtype)
    return wide if wide.dtype == outputs.dtype else jax.lax.reduce_precision(wide, kind.nexp, kind.nmant)
