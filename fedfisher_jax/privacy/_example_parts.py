"""Privacy of every example in any statistic that is a mean over examples: clip each one's part.

A rule that measures one example alone measures that example's part, so nothing has to know how a structure adds up.
Each array v_b of a part is scaled down to a norm c_b that is chosen without data, and one Gaussian mechanism releases
the sums of all √w_b v_b / c_b, Σ w_b = 1. An example that is added or removed moves these together by at most 1. One
that is replaced moves array b by at most √(2 w_b) where no two parts have a negative inner product, as entries that are
not negative and semi-definite matrices have none, and else by 2 √w_b. With w_b in proportion to √(entries of v_b) the
noise's squared norm, relative to the clips, Σ_b entries_b / w_b, is least.

Noise is added, and what it breaks mended, in `_noisy_parts`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._examples import Batch, Examples, mean_over_batches
from ..curvature._leaves import Leaf
from ..curvature.structures._class_moments import ClassMoments
from ..curvature.structures._gradient import Gradient, Quadratic
from ..curvature.structures._protocol import sign_of, with_arrays
from ..merge._measure import MeasureFisher
from ..merge._natural_gradient import MeasureGradient, MeasureQuadratic
from ..merge._pseudo_data import MeasureInputs
from ..merge._regmean import MeasureGrams
from ..merge._rule import Payload, Rule, Update, require_one_exchange
from ..payload._structures import model_leaves

PyTree = Any
ROOM = 2**22  # bytes of parts that are held together
MEASURES = (MeasureFisher, MeasureGrams, MeasureInputs, MeasureGradient, MeasureQuadratic)


class Clips(NamedTuple):
    """Largest norms of an example's parts.

    Attributes:
        fisher: the norm of what it adds to each array of a Fisher or of input moments. Merges do not depend on the
            scale of a layer's Fisher, so this may be far below all parts, which then all count alike.
        features: the norm of an example's features, or inputs.
        gradients: the norm of what it adds to each array of a gradient.
    """

    fisher: float = 1.0
    features: float = 1.0
    gradients: float = 1.0


class Noise(NamedTuple):
    """How much noise hides an example.

    Attributes:
        multiplier: standard deviation of all noise together, relative to how far one example moves the release.
        clips: largest norms of an example's parts.
        replaced: whether an example is replaced by another one, or added or removed.
    """

    multiplier: float
    clips: Clips
    replaced: bool


@dataclasses.dataclass(frozen=True)
class MeasureParts:
    """Measures the mean over examples of clipped parts, in the place of `inner`'s statistics."""

    inner: Callable[[Update, Examples, jax.Array], Payload]
    clips: Clips

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Payload:
        """One client's payload, whose parameters are those of the update or none."""

        def alone(position: Any) -> Payload:
            row = data.indices[jnp.clip(position, 0, data.size - 1)]
            one = data._replace(indices=row[None], size=jnp.ones((), jnp.asarray(data.size).dtype))
            return self.inner(update, one, jax.random.fold_in(key, position))

        like = jax.eval_shape(alone, jnp.zeros((), int))
        params = None if like.params is None else update.params
        names = like.statistics.names(model_leaves(like))
        limits = [limit_of(like.statistics, name, self.clips) for name in names]

        def sums(batch: Batch) -> list[jax.Array]:
            arrays = jax.tree.leaves(jax.vmap(lambda n: alone(n).statistics)(batch.position))
            kept = [shortened(array, limit) for array, limit in zip(arrays, limits, strict=True)]
            return [jnp.sum(part, 0) for part in batch.zeroed(kept)]

        arrays = jax.tree.leaves(like.statistics)
        each = sum(array.size * array.dtype.itemsize for array in arrays)
        means = mean_over_batches(sums, data, min(max(ROOM // each, 1), 32))
        measured = with_arrays(like.statistics, [m.astype(a.dtype) for m, a in zip(means, arrays, strict=True)])
        return Payload(jnp.asarray(data.size, like.weight.dtype), params, measured, like.kind)


def shortened(parts: jax.Array, limit: float | None) -> jax.Array:
    """Scale parts [n, ...] down to a norm of at most `limit` each; None leaves them."""
    if limit is None:
        return parts
    size = jnp.sqrt(jnp.sum(parts**2, axis=tuple(range(1, parts.ndim)), keepdims=True))
    return parts * jnp.minimum(1, limit / jnp.maximum(size, limit * 1e-30))


def require_parts(rule: Rule) -> None:
    """Refuse a rule whose statistics are no means over examples that can be clipped one by one.

    Raises:
        ValueError: what the rule measures.
    """
    measure = rule.measure
    require_one_exchange(rule)
    if not isinstance(measure, MEASURES) or (isinstance(measure, MeasureFisher) and measure.structure is None):
        raise ValueError(f"rule: got {rule.name}, expected one that measures sums over examples")
    if isinstance(measure, MeasureFisher) and measure.structure == "low_rank":
        raise ValueError(
            f"rule: got {rule.name}, expected one that measures sums over examples: eigenvectors of a Fisher, which "
            "one example can turn round, are none"
        )
    if isinstance(measure, MeasureInputs) and (measure.low is None or measure.high is None):
        raise ValueError(
            f"rule: got {rule.name} without a range of inputs, expected {rule.name},low=L,high=H: the smallest and "
            "largest input of a silo are its examples', and no sum"
        )


def limit_of(statistics: Any, name: str, clips: Clips) -> float | None:
    """Tell the norm that an example's part of the array of this name is clipped to; None where it is public.

    Features u clipped to c make class moments of norm at most 1, c and c², and these clips do that to u; likewise
    outputs that move by at most c give slopes of at most c, where the loss's own slope is at most 1, and curvatures of
    c².
    """
    kind = name.split("/")[0]
    own: dict[str, float | None] = {}
    if isinstance(statistics, ClassMoments):
        own = {"share": 1.0, "first": clips.features, "second": clips.features**2, "bounds": None}
    elif isinstance(statistics, Gradient):
        own = {"loss": 1.0, "gradient": clips.gradients}
    elif isinstance(statistics, Quadratic):
        own = {"slopes": clips.gradients, "curvatures": clips.gradients**2}
    return own.get(kind, clips.fisher)


def deviations(statistics: Any, leaves: Sequence[Leaf], noise: Noise) -> list[float]:
    """Compute the standard deviation of all noise together in the sum over examples of each array; 0 if public.

    Args:
        statistics: arrays, or their shapes.
        leaves: the model's.
        noise: how much.
    """
    names, arrays = statistics.names(leaves), jax.tree.leaves(statistics)
    limits = [limit_of(statistics, name, noise.clips) for name in names]
    roots = [0.0 if limit is None else math.sqrt(array.size) for array, limit in zip(arrays, limits, strict=True)]
    shares = [root / (sum(roots) or 1.0) for root in roots]
    signs = [sign_of(type(statistics), name) for name in names]
    squares = [share * (4 if sign == "any" else 2) for share, sign in zip(shares, signs, strict=True)]
    scale = noise.multiplier * (math.sqrt(sum(squares)) if noise.replaced else 1.0)
    parts = zip(limits, shares, strict=True)  # an array without entries has no share, and needs no noise
    return [scale * limit / math.sqrt(share) if limit is not None and share else 0.0 for limit, share in parts]
