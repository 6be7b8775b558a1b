"""How well a model, or the ensemble of several, predicts a data set."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ._compat import Tracer, standard_promotion
from ._doors import applying, require_arrays, require_likelihood, require_weights
from ._ensemble import Apply, ensemble_apply, wide_outputs
from ._examples import require_batch_size
from ._likelihood import Likelihood, check_targets
from ._trees import array, arrays, count_rows, outline, pick
from .tracing import for_training, require_apart


class Scores(NamedTuple):
    """How well a model predicts: means over examples.

    Attributes:
        loss: negative log-likelihood in nats, summed over the positions of an example.
        accuracy: fraction predicted right, 0 to 1; None for a likelihood without right and wrong.
    """

    loss: Any
    accuracy: Any


@standard_promotion
def evaluate(
    apply: Apply,
    likelihood: Likelihood,
    params: Any,
    x: Any,
    y: Shaped[Array | np.ndarray, "n2 ..."],
    *,
    batch_size: int = 1000,
    mask: Any = None,
) -> Scores:
    """Measure the loss and the accuracy of a model.

    The function is jitted: pass the same `apply` object again and nothing is compiled again.

    Args:
        apply: (params, x [b, ...]) -> outputs [b, ...].
        likelihood: what the outputs mean.
        params: parameters of the model.
        x: [n, ...] inputs: an array, or a dictionary or tuple of arrays.
        y: [n, ...] targets.
        batch_size: examples at a time; bounds the memory and does not change the result.
        mask: [n] booleans, which examples count (all by default); where none does, the result is NaN.

    Raises:
        ValueError: if lengths differ, there is no example, the mask is not of booleans, the batch size is not positive,
            targets do not fit the outputs (labels beyond the classes, say), integers are beyond what JAX's types hold,
            examples mix (batch norm in training mode) or `apply` draws random numbers (dropout). Under `jit` targets
            are not looked at.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> x, y = jnp.eye(2), jnp.asarray([0, 1])
        >>> scores = ff.evaluate(lambda params, x: x @ params, ff.categorical(), 5 * jnp.eye(2), x, y)
        >>> print(f"{scores.loss:.4f} nats, {scores.accuracy:.0%} right")
        0.0067 nats, 100% right
    """
    return _scores(apply, likelihood, params, x, y, None, batch_size, mask)


def _scores(
    apply: Apply, likelihood: Likelihood, params: Any, x: Any, y: Any, weights: Any, batch_size: int, mask: Any
) -> Scores:
    """Check, then score the model, or with weights [m] or [m, c] the ensemble of the m models in `params`."""
    require_likelihood(likelihood)
    require_arrays(params)
    x, y, mask = arrays("x", x), array("y", y), None if mask is None else jnp.asarray(mask)
    shapes = [leaf.shape for leaf in jax.tree.leaves(x)]
    n = count_rows("x, y, mask", x)
    if y.shape[:1] != (n,) or (mask is not None and mask.shape != (n,)):
        given = f"x {shapes[0] if len(shapes) == 1 else shapes}, y {y.shape}"
        given += f", mask {None if mask is None else mask.shape}"
        raise ValueError(f"x, y, mask: got {given}, expected one common length of at least 1")
    if mask is not None and mask.dtype != bool:
        raise ValueError(f"mask: got {mask.dtype}, expected booleans")
    require_batch_size(batch_size)
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, x, y, mask))):
        counted = slice(None) if mask is None else np.asarray(mask)
        with applying(x):
            outputs = jax.eval_shape(apply, _one_of(params, weights), outline(x, n)).shape
        check_targets(likelihood, (*np.empty(n)[counted].shape, *outputs[1:]), np.asarray(y)[counted])
    return _evaluate(apply, likelihood, params, x, y, weights, batch_size, mask)


def _one_of(params: Any, weights: Any) -> Any:
    """The shapes of a model: of the only one, or of one of an ensemble."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
    if weights is None:
        return shapes
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), shapes)


@partial(jax.jit, static_argnames=("apply", "likelihood", "batch_size"))
def _evaluate(
    apply: Apply, likelihood: Likelihood, params: Any, x: Any, y: Any, weights: Any, batch_size: int, mask: Any
) -> Scores:
    require_apart(apply, _one_of(params, weights), x)  # once for each compilation
    model = for_training(apply)  # the same to rounding, and on CPU up to four times as fast
    if weights is not None:
        model = ensemble_apply(model, likelihood, weights)
    n = y.shape[0]
    size = min(batch_size, n)
    rows = jnp.arange(-(-n // size) * size).reshape(-1, size)
    valid = jnp.ones(n, bool) if mask is None else mask

    def sums(batch):
        counts = (batch < n) & valid[batch % n]
        outputs, targets = wide_outputs(model, params, pick(x, batch % n)), y[batch % n]
        scores = (likelihood.nll, likelihood.correct) if likelihood.correct else (likelihood.nll,)
        return [jnp.sum(jax.vmap(score)(outputs, targets), where=counts) for score in scores]

    loss, *accuracy = (total.sum() / valid.sum() for total in jax.lax.map(sums, rows))
    return Scores(loss, accuracy[0] if accuracy else None)


def predict(apply: Apply, params: Any, x: Any, *, batch_size: int = 1000) -> np.ndarray:
    """Compute a model's outputs for examples.

    Args:
        apply: (params, x [b, ...]) -> outputs [b, ...].
        params: parameters of the model.
        x: [n, ...] inputs.
        batch_size: examples at a time; bounds the memory and does not change the result.

    Returns:
        Outputs [n, ...].

    Raises:
        ValueError: there is no example, the batch size is not positive, or integers are beyond what JAX's types hold.
    """
    require_batch_size(batch_size)
    x = arrays("x", x)
    n = count_rows("x", x)
    size = min(batch_size, n)
    rows = [np.minimum(np.arange(first, first + size), n - 1) for first in range(0, n, size)]  # one shape for all
    return np.concatenate([np.asarray(_outputs(apply, params, pick(x, batch))) for batch in rows])[:n]


@partial(jax.jit, static_argnames="apply")
def _outputs(apply: Apply, params: Any, x: Any) -> Any:
    return for_training(apply)(params, x)


@standard_promotion
def ensemble(
    apply: Apply,
    likelihood: Likelihood,
    stacked_params: Any,
    x: Any,
    y: Shaped[Array | np.ndarray, "n2 ..."],
    *,
    weights: Float[Array, " m"] | Float[Array, "m c"] | None = None,
    batch_size: int = 1000,
    mask: Any = None,
) -> Scores:
    """Evaluate the ensemble of several models, whose mean parameters are averaged (see `ensemble_apply`).

    Args as in `evaluate`, but `stacked_params`, whose leaves have a leading axis of m members, and `weights` [m], the
    non-negative weights of the members, equal by default, or [m, c] for each class (see `ensemble_apply`).

    Raises:
        ValueError: as `evaluate` and `ensemble_apply`, or if leaves differ in their numbers of members, or if there is
            not one weight for each member.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> x, y = jnp.eye(2), jnp.asarray([0, 1])
        >>> members = jnp.stack([5 * jnp.eye(2), -5 * jnp.eye(2)])  # they contradict each other
        >>> scores = ff.ensemble(lambda params, x: x @ params, ff.categorical(), members, x, y)
        >>> print(f"{scores.loss:.4f}")  # log 2
        0.6931
    """
    require_arrays(stacked_params)
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(stacked_params)}
    if len(counts) > 1 or counts & {(), (0,)}:
        raise ValueError(f"stacked_params: got leading axes {sorted(counts)}, expected one of members in every leaf")
    ((members,),) = counts
    weights = jnp.ones(members) if weights is None else jnp.asarray(weights)
    if weights.ndim not in (1, 2) or weights.shape[0] != members:
        raise ValueError(
            f"weights: got shape {weights.shape}, expected ({members},), one for each member, or ({members}, classes)"
        )
    require_weights(weights)
    return _scores(apply, likelihood, stacked_params, x, y, weights, batch_size, mask)


def as_numbers(scores: Scores) -> dict[str, float]:
    """Give the scores by name as Python numbers; a score that the likelihood does not have is left out."""
    return {name: float(value) for name, value in scores._asdict().items() if value is not None}


def best_constant(likelihood: Likelihood, y: Any) -> Scores | None:
    """Score the best model that says the same of every example: what a trained one must beat.

    Args:
        likelihood: what the targets are fitted with; None is returned for a user's own, of which nothing is known.
        y: [n, ...] targets, at least one.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> guess = ff.federate.best_constant(ff.categorical(), np.array([0, 0, 0, 1]))
        >>> print(f"{guess.loss:.4f} nats, {guess.accuracy:.0%} right")
        0.5623 nats, 75% right
    """
    y = np.asarray(y)
    if likelihood.name == "categorical":
        counted = y if likelihood.counts is None else y[np.asarray(likelihood.counts(y))]
        shares = np.unique(counted, return_counts=True)[1] / counted.size
        return Scores(-float(shares @ np.log(shares)) * counted.size / len(y), float(shares.max()))
    if likelihood.name == "bernoulli":
        ones = y.mean(0, dtype=float)
        entropy = -sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0) for p in (ones, 1 - ones))
        return Scores(float(np.sum(entropy)), float(np.maximum(ones, 1 - ones).mean()))
    if likelihood.name == "gaussian":
        per_square = float(likelihood.nll(jnp.zeros(1), jnp.ones(1)))
        return Scores(per_square * float(y.var(0, dtype=float).sum()), None)
    return None
