"""Noise on means over examples of clipped parts (`_example_parts`), and what is done after it, which costs no privacy.

What must not be negative is mended, and a Fisher gets the noise's largest expected eigenvalue on its diagonal: of what
lies below it nothing is known, and there all clients count alike, to a factor of about two, so that merges with much
noise are nearly averages.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._examples import Examples
from .._trees import scaled
from ..curvature.structures._class_moments import ClassMoments
from ..curvature.structures._gradient import Gradient, Quadratic
from ..curvature.structures._kronecker import Kronecker
from ..curvature.structures._protocol import sign_of, with_arrays
from ..merge._rule import Merged, Payload, Rule, Update
from ..payload._structures import model_leaves
from ._example_parts import Clips, MeasureParts, Noise, deviations, require_parts

PyTree = Any
Draw = Callable[[tuple[int, ...]], Any]  # shape → standard normal numbers


@dataclasses.dataclass(frozen=True)
class MeasureNoisyParts:
    """Measures clipped parts with noise, for simulations: whoever knows the key can take the noise off again."""

    inner: MeasureParts
    noise: Noise

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Payload:
        """One client's payload, which is like any other of the rule's."""
        measure_key, noise_key = jax.random.split(key)
        sent = self.inner(update, data, measure_key)
        keys = iter(jax.random.split(noise_key, len(jax.tree.leaves(sent.statistics))))
        draw = lambda shape: jax.random.normal(next(keys), shape, jnp.result_type(float))  # noqa: E731
        return mended(with_noise(sent, self.noise, draw), self.noise)


def private_parts(rule: Rule, noise: Noise, trust: str, draw: Draw) -> Rule:
    """Make a rule that clips parts of examples and adds noise to their sums.

    Args:
        rule: one exchange that `require_parts` lets pass; with "central" trust one that sends sums alone.
        noise: how much.
        trust: who adds it, the client ("local") or the server ("central"). Noise is not divided among clients: the
            server also sees sums over clients of a Fisher times a model, in which that hides less, and a share of noise
            may leave a Fisher with negative entries, which no merge takes.
        draw: shape → standard normal numbers, for the server.

    Raises:
        ValueError: noise that would be divided.
    """
    require_parts(rule)
    parts = MeasureParts(rule.measure, noise.clips)
    if trust == "local":
        return rule._replace(measure=MeasureNoisyParts(parts, noise))
    if trust != "central":
        raise ValueError(f"trust: got {trust!r} for {rule.name}, expected local or central: heads alone divide noise")

    def solve(summary: dict[str, Any], start: PyTree) -> Merged:
        weight = summary["weight"]
        total = with_noise(Payload(weight, None, scaled(1 / weight, summary["sums"])), noise, draw)
        return rule.solve(summary | {"sums": scaled(weight, mended(total, noise).statistics)}, start)

    return rule._replace(measure=parts, solve=solve)


def with_noise(payload: Payload, noise: Noise, draw: Draw) -> Payload:
    """Add noise to means over examples.

    Args:
        payload: from `MeasureParts`; its weight is the number of examples.
        noise: how much.
        draw: shape → standard normal numbers.
    """
    statistics, leaves, found = payload.statistics, model_leaves(payload), []
    named = zip(
        statistics.names(leaves), jax.tree.leaves(statistics), deviations(statistics, leaves, noise), strict=True
    )
    for name, array, std in named:
        if not std:
            found.append(array)
            continue
        drawn = draw(array.shape)
        if sign_of(type(statistics), name) == "semidefinite":  # the same size in all directions of symmetric matrices
            drawn = (drawn + jnp.swapaxes(drawn, -1, -2)) / 2
        found.append((array + std * drawn / payload.weight).astype(array.dtype))
    return payload._replace(statistics=with_arrays(statistics, found))


def mended(payload: Payload, noise: Noise) -> Payload:
    """Make means with noise what they must be: see the module.

    Args:
        payload: from `with_noise`, of one client or of all together.
        noise: how much there is.
    """
    statistics, leaves = payload.statistics, model_leaves(payload)
    named = zip(
        statistics.names(leaves), jax.tree.leaves(statistics), deviations(statistics, leaves, noise), strict=True
    )
    found = []
    for name, array, std in named:
        sign = sign_of(type(statistics), name)
        wide, floor = array.astype(jnp.result_type(float)), 0.0
        if _is_fishers(statistics, name):
            floor = std * _largest(sign, array.shape)
        if sign == "nonnegative":
            wide = jnp.maximum(wide, 0) + floor / payload.weight
        elif sign == "semidefinite":
            wide = nearest_semidefinite(wide) + floor / payload.weight * jnp.eye(array.shape[-1], dtype=wide.dtype)
        found.append(wide.astype(array.dtype))
    made = with_arrays(statistics, found)
    return payload._replace(statistics=_one_moment(made, noise.clips) if isinstance(made, ClassMoments) else made)


def nearest_semidefinite(matrix: jax.Array) -> jax.Array:
    """Leave the negative eigenvalues of the symmetric part of matrices [..., n, n] out; of arrays that are traced."""
    values, vectors = jnp.linalg.eigh((matrix + jnp.swapaxes(matrix, -1, -2)) / 2)
    kept = (vectors * jnp.maximum(values, 0)[..., None, :]) @ jnp.swapaxes(vectors, -1, -2)
    return (kept + jnp.swapaxes(kept, -1, -2)) / 2


def _is_fishers(statistics: Any, name: str) -> bool:
    """Whether an array is one of a Fisher's, and not a moment or a gradient beside it."""
    kind = name.split("/")[0]
    return not isinstance(statistics, Quadratic) and (
        not isinstance(statistics, ClassMoments | Gradient) or kind in Kronecker.signs
    )


def _largest(sign: str, shape: tuple[int, ...]) -> float:
    """Largest expected eigenvalue of symmetric noise with a deviation of 1 on its diagonal, or of a diagonal of it.

    For a matrix of side n it is the semicircle's edge, 2 √(n/2); for n numbers at most √(2 log 2n).
    """
    return math.sqrt(2 * shape[-1]) if sign == "semidefinite" else math.sqrt(2 * math.log(2 * math.prod(shape)))


def _one_moment(moments: ClassMoments, clips: Clips) -> ClassMoments:
    """Make share, mean and second moment of each class those of one distribution: E[(1, u)(1, u)ᵀ] is semi-definite."""
    unit = clips.features
    share, first, second = moments.share, moments.first / unit, moments.second / unit**2
    top = jnp.concatenate([share[:, None, None], first[:, None, :]], 2)
    whole = nearest_semidefinite(jnp.concatenate([top, jnp.concatenate([first[:, :, None], second], 2)], 1))
    first, second = unit * whole[:, 0, 1:], unit**2 * whole[:, 1:, 1:]
    return dataclasses.replace(moments, share=whole[:, 0, 0], first=first, second=second)
