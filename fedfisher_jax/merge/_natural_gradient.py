"""A natural-gradient step in one exchange: clients send gradients and Kronecker factors at the model they were sent.

θ − s (A ⊗ G + λ)⁻¹ ∇L, layer by layer (K-FAC, arXiv 1503.05671), where A, G and ∇L are means over all clients'
examples: sums, which are the same for every split. Nothing is trained, and no labels are needed at the server: s is the
step at which the quadratic model of how much predictions change, ½ s² dᵀFd nats an example, reaches a radius, and at
most a full step, as K-FAC optimisers clip theirs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._examples import Batch, Examples, mean_over_batches
from .._likelihood import Likelihood
from .._trees import difference, scaled, widened
from ..curvature.structures._protocol import damped_inverse, mean_diagonals, quadratic
from ..tracing._convolution import for_loops
from ._rule import MeasureFisher, Merged, Payload, Rule, Update, require_options, require_start

PyTree = Any


@dataclasses.dataclass(frozen=True)
class MeasureGradient:
    """Measures the mean gradient of the loss and a Kronecker Fisher at the model that was sent; no parameters."""

    fisher: MeasureFisher

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Payload:
        """One client's payload."""
        start = require_start(update.start)
        payload = self.fisher(Update(start, start), data, key)
        model, nll = for_loops(self.fisher.apply), self.fisher.likelihood.nll

        def slope(batch: Batch) -> PyTree:
            x = jnp.where(batch.mask.reshape(-1, *[1] * (batch.x.ndim - 1)), batch.x, 0)

            def loss(params: PyTree) -> jax.Array:
                return jnp.sum(jax.vmap(nll)(widened(model(params, x)), batch.y), where=batch.mask)

            return jax.grad(loss)(start)

        gradient = mean_over_batches(slope, data, 256)
        return Payload(payload.weight, None, {"gradient": gradient, "fisher": payload.statistics})


def natural_gradient(
    apply: Callable, likelihood: Likelihood, *, damping: float = 0.03, radius: float = 0.05, **options: Any
) -> Rule:
    """One natural-gradient step from a merged model: "fedfisher-kfac+recalibrate+natural-gradient".

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what is fitted.
        damping: λ, relative to a layer's mean diagonal entry.
        radius: the most that the step may change predictions, in nats an example; infinity takes a full step.
        options: what else `MeasureFisher` takes: kind, samples, batch_size, skip, captured.

    Raises:
        TypeError: an unknown option.
        ValueError: damping or radius are negative, or the radius is zero.

    Example:
        >>> import jax, jax.numpy as jnp, fedfisher_jax as ff
        >>> x, y = jnp.asarray([[1.0], [2.0], [3.0]]), jnp.asarray([[2.0], [4.0], [6.0]])
        >>> whole = {"damping": 0.0, "radius": float("inf")}
        >>> rule = ff.merge.natural_gradient(lambda w, x: x @ w, ff.gaussian(), **whole)
        >>> start = jnp.zeros((1, 1))
        >>> clients = [ff.examples(x[:1], y[:1]), ff.examples(x[1:], y[1:])]
        >>> sent = [rule.measure(ff.Update(None, start), one, jax.random.key(0)) for one in clients]
        >>> print(f"{ff.merge_payloads(rule, sent, start).params.item():.3f}")
        2.000
    """
    require_options(options, natural_gradient, MeasureFisher, "at", "subspace")
    if not damping >= 0 or not radius > 0:
        raise ValueError(f"damping, radius: got {damping}, {radius}, expected at least 0, and a positive number")

    def lift(payload: Payload, start: PyTree) -> dict[str, Any]:
        return {"weight": payload.weight, **scaled(payload.weight, payload.statistics)}

    def solve(summary: dict[str, Any], start: PyTree) -> Merged:
        pooled = {name: scaled(1 / summary["weight"], summary[name]) for name in ("gradient", "fisher")}
        fisher, start = pooled["fisher"], require_start(start)
        shifts = [damping * mean for mean in mean_diagonals(fisher)]
        direction = damped_inverse(fisher, shifts)(pooled["gradient"])
        change = quadratic(fisher, direction) / 2
        size = jnp.minimum(1, jnp.sqrt(radius / jnp.maximum(change, jnp.finfo(change.dtype).tiny)))
        return Merged(difference(start, scaled(size, direction)), {"step": size, "change": change})

    measure = MeasureGradient(MeasureFisher(apply, likelihood, "kronecker", **options))
    return Rule("natural-gradient", measure, lift, solve, "add", trains=False)
