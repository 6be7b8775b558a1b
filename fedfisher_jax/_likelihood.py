"""What is fitted: exponential families over the outputs of a network (arXiv 2403.12329, Assumption 1).

Every function is about one example: `outputs` are its natural parameters, [C], or [T, C] for T positions of a sequence,
over which losses add up. Callers use `jax.vmap` for batches. Constructors return one object per setting, so that a
likelihood can be a static argument of a jitted function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

Outputs = Float[Array, "*positions c"]
Rows = Float[Array, "k *positions c"]
Members = Float[Array, "m *positions c"]
Scalar = Float[Array, ""]


@dataclass(frozen=True)
class Likelihood:
    """An exponential family as functions of one example's outputs, [C] or [T, C].

    Attributes:
        name: categorical, gaussian or bernoulli.
        nll: (outputs, target) -> negative log-likelihood, summed over positions; in nats, constants of the target
            and of the family dropped.
        fisher_factor: outputs -> rows s_k, [K, *outputs.shape] with K = outputs.size, such that the sum of s_k s_kᵀ is
            the Fisher information of the outputs, which is also the Hessian of `nll`.
        sample: (key, outputs) -> a target drawn from the model.
        mean: outputs -> mean parameters of the same shape (probabilities, or the mean itself).
        link: mean parameters -> outputs that have them; inverse of `mean` (up to a constant for categorical).
        mix: (outputs of m models [m, *outputs.shape], shares [m] that sum to one) -> outputs whose mean parameters are
            the models' average ones; from logarithms, so that a probability that rounds to 0 or 1 keeps its distance.
        correct: (outputs, target) -> fraction of positions, or of binary outputs, that are predicted right; None where
            right or wrong makes no sense.
        counts: target -> booleans of the positions, which of them count in losses, Fishers and accuracies; None where
            all do.
    """

    name: str
    nll: Callable[[Any, Any], Any]
    fisher_factor: Callable[[Any], Any]
    sample: Callable[[Any, Any], Any]
    mean: Callable[[Any], Any]
    link: Callable[[Any], Any]
    mix: Callable[[Any, Any], Any]
    correct: Callable[[Any, Any], Any] | None
    counts: Callable[[Any], Any] | None = None


def _spread(block: Float[Array, "*positions r c"]) -> Rows:
    """Give each position's rows zeros at every other position: [R, C] stays, [T, R, C] becomes [T R, T, C]."""
    if block.ndim == 2:
        return block
    t, r, c = block.shape
    rows = jnp.eye(t, dtype=block.dtype)[:, None, :, None] * block[:, :, None, :]
    return rows.reshape(t * r, t, c)


def _diagonal(scale: Outputs) -> Rows:
    return _spread(scale[..., None] * jnp.eye(scale.shape[-1], dtype=scale.dtype))


def _log(p: Outputs) -> Outputs:
    """Logarithm that is finite at p = 0."""
    return jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))


def _mean_log(logs: Members, shares: Float[Array, " m"]) -> Outputs:
    """Log of Σ_m shares_m exp(logs_m), which does not underflow."""
    return jax.nn.logsumexp(logs, axis=0, b=shares.reshape(-1, *(1,) * (logs.ndim - 1)))


@cache
def categorical(ignore: int | None = None) -> Likelihood:
    """Softmax over the last axis; targets are integers, a scalar for [C] and [T] for [T, C].

    Positions whose target is `ignore` (padding: -100, say) are left out of losses, Fishers and accuracies alike; a loss
    is the sum over the other positions of an example, an accuracy the fraction of them.

    The factor has the rows sqrt(p_c) (e_c - p), so that the Fisher is diag(p) - ppᵀ. The loss is
    log(1 + Σ e^(z_c - z_y)) over the classes c other than the target y, so that its gradient never is the difference
    p_y - 1, which loses its digits where p_y rounds to 1.

    Raises:
        ValueError: `ignore` is a class.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> print(f"{ff.categorical().nll(jnp.zeros(3), jnp.asarray(1)):.4f}")  # log 3
        1.0986
        >>> rows = ff.categorical().fisher_factor(jnp.zeros(2))
        >>> jnp.round(rows.T @ rows, 4).tolist()  # diag(p) - ppᵀ for p = (1/2, 1/2)
        [[0.25, -0.25], [-0.25, 0.25]]
    """
    if ignore is not None and ignore >= 0:
        raise ValueError(f"ignore: got {ignore}, expected a negative number, which is no class")

    def nll(outputs: Outputs, target: Shaped[Array, "*positions"]) -> Scalar:
        counted = None if ignore is None else target != ignore
        target = target if counted is None else jnp.where(counted, target, 0)
        chosen = jnp.take_along_axis(outputs, target[..., None], -1)
        other = jnp.arange(outputs.shape[-1]) != target[..., None]
        above = jnp.where(other, outputs - chosen, -jnp.inf)
        largest = jax.lax.stop_gradient(above.max(-1, initial=0))
        largest = jnp.where(jnp.isfinite(largest), largest, 0)
        odds = jnp.sum(jnp.exp(above - largest[..., None]), -1)  # of another class, divided by e^largest
        losses = largest + jnp.log1p(jnp.expm1(-largest) + odds)
        return jnp.sum(losses if counted is None else jnp.where(counted, losses, 0))

    def fisher_factor(outputs: Outputs) -> Rows:
        p = jax.nn.softmax(outputs)
        eye = jnp.eye(p.shape[-1], dtype=p.dtype)
        return _spread(jnp.sqrt(p)[..., :, None] * (eye - p[..., None, :]))

    def sample(key, outputs: Outputs) -> Shaped[Array, "*positions"]:
        return jax.random.categorical(key, outputs)

    def correct(outputs: Outputs, target: Shaped[Array, "*positions"]) -> Scalar:
        right = jnp.argmax(outputs, -1) == target
        if ignore is None:
            return jnp.mean(right, dtype=outputs.dtype)
        counted = jnp.sum(target != ignore, dtype=outputs.dtype)
        return jnp.sum(right & (target != ignore), dtype=outputs.dtype) / jnp.maximum(counted, 1)

    def mix(outputs: Members, shares: Float[Array, " m"]) -> Outputs:
        return _mean_log(jax.nn.log_softmax(outputs), shares)

    counts = None if ignore is None else lambda target: target != ignore
    return Likelihood("categorical", nll, fisher_factor, sample, jax.nn.softmax, _log, mix, correct, counts)


@cache
def gaussian(variance: float = 1.0) -> Likelihood:
    """Independent normal outputs of one known variance; targets have the shape of the outputs, [] or [1] for one.

    The natural parameter is the mean; the factor is the identity divided by the standard deviation.

    Raises:
        ValueError: if the variance is not positive and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> float(ff.gaussian(variance=4.0).nll(jnp.zeros(2), jnp.ones(2)))  # (1 + 1) / (2 · 4)
        0.25
    """
    if not 0 < variance < float("inf"):
        raise ValueError(f"variance: got {variance}, expected a positive finite number")

    def nll(outputs: Outputs, target: Float[Array, "..."]) -> Scalar:
        return jnp.sum(jnp.square(outputs - jnp.reshape(target, outputs.shape))) / (2 * variance)

    def fisher_factor(outputs: Outputs) -> Rows:
        return _diagonal(jnp.full_like(outputs, variance**-0.5))

    def sample(key, outputs: Outputs) -> Outputs:
        return outputs + variance**0.5 * jax.random.normal(key, outputs.shape, outputs.dtype)

    def identity(outputs: Outputs) -> Outputs:
        return outputs

    def mix(outputs: Members, shares: Float[Array, " m"]) -> Outputs:
        return jnp.tensordot(shares, outputs, 1)

    return Likelihood("gaussian", nll, fisher_factor, sample, identity, identity, mix, None)


@cache
def bernoulli() -> Likelihood:
    """Independent binary outputs given as log-odds; targets are 0 or 1 in the shape of the outputs, [] or [1] for one.

    The factor has the rows sqrt(p (1 - p)) e_c. The loss is a sum of log(1 + e^z) and log(1 + e^-z), never their
    difference, so that loss and gradient keep their digits where p rounds to 0 or 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> print(f"{ff.bernoulli().nll(jnp.zeros(2), jnp.asarray([0, 1])):.4f}")  # 2 log 2
        1.3863
    """

    def nll(outputs: Outputs, target: Shaped[Array, "..."]) -> Scalar:
        ones = jnp.reshape(target, outputs.shape).astype(outputs.dtype)
        return jnp.sum(ones * jax.nn.softplus(-outputs) + (1 - ones) * jax.nn.softplus(outputs))

    def fisher_factor(outputs: Outputs) -> Rows:
        return _diagonal(jnp.sqrt(jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs)))

    def sample(key, outputs: Outputs) -> Shaped[Array, "*positions c"]:
        return jax.random.bernoulli(key, jax.nn.sigmoid(outputs)).astype(jnp.int32)

    def link(mean: Outputs) -> Outputs:
        return _log(mean) - _log(1 - mean)

    def correct(outputs: Outputs, target: Shaped[Array, "..."]) -> Scalar:
        return jnp.mean((outputs > 0) == (jnp.reshape(target, outputs.shape) > 0), dtype=outputs.dtype)

    def mix(outputs: Members, shares: Float[Array, " m"]) -> Outputs:
        return _mean_log(jax.nn.log_sigmoid(outputs), shares) - _mean_log(jax.nn.log_sigmoid(-outputs), shares)

    return Likelihood("bernoulli", nll, fisher_factor, sample, jax.nn.sigmoid, link, mix, correct)


def check_targets(likelihood: Likelihood, outputs_shape: tuple[int, ...], y: Any, *, empty: bool = False) -> None:
    """Check the targets of a data set against the outputs of a network.

    Args:
        likelihood: what the targets are fitted with.
        outputs_shape: shape of the network's outputs for all of `y`, [N, C] or [N, T, C].
        y: targets: integers [N] or [N, T] below C (categorical), finite numbers of the outputs' shape (gaussian), zeros
            and ones of that shape (bernoulli); of one output also without its axis.
        empty: whether an example may have no position that counts.

    Raises:
        ValueError: if shape, type or values of `y` are not allowed.
    """
    y, name = np.asarray(y), likelihood.name
    if name not in ("categorical", "gaussian", "bernoulli"):  # a user's own, of which nothing is known
        return
    expected = tuple(outputs_shape[:-1] if name == "categorical" else outputs_shape)
    alone = name != "categorical" and outputs_shape[-1:] == (1,) and y.shape == expected[:-1]
    if y.shape != expected and not alone:
        raise ValueError(f"y: got shape {y.shape}, expected {expected} for {name} and outputs {tuple(outputs_shape)}")
    if y.dtype.kind not in "biuf":
        raise ValueError(f"y: got {y.dtype}, expected numbers for {name}")
    if name == "gaussian":
        right, allowed = np.isfinite(y), "finite numbers"
    elif name == "bernoulli":
        right, allowed = (y == 0) | (y == 1), "0 and 1"
    else:
        if not np.issubdtype(y.dtype, np.integer):
            raise ValueError(f"y: got {y.dtype}, expected integers for categorical")
        right, allowed = (y >= 0) & (y < outputs_shape[-1]), f"0 to {outputs_shape[-1] - 1}"
        if likelihood.counts is not None:
            counted = np.asarray(likelihood.counts(y))
            right |= ~counted
            if len(y) and not empty and not (some := counted.reshape(len(y), -1).any(1)).all():
                raise ValueError(f"y: example {np.argmin(some)} has no position that counts, expected at least one")
    if not right.all():
        bad = ~right
        raise ValueError(f"y: got {y[bad][0]} ({bad.sum()} of {bad.size} wrong), expected {allowed} for {name}")
