"""Differential privacy of a whole silo: clip what it sends and add Gaussian noise.

The guarantee (ε, δ) is about the silo: whatever its data were, even if all of them were others, the file would look
about the same. It costs much accuracy at few silos. Nothing here protects a single example better than its silo, and
the number of examples, and that the silo took part, are taken as public. (docs/silos.md)
"""

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts load where they are used

from ..curvature._leaves import leaves as described
from ..curvature.structures import _signs as signs
from ..curvature.structures._protocol import named, sign_of, with_arrays
from ..curvature.structures._registry import STRUCTURES, is_known
from ..merge._rule import Payload, require_like

PyTree = Any
SENSITIVITY = 2.0  # of a block clipped to norm one, when all of a silo's data are replaced


class Guarantee(NamedTuple):
    """What was promised, and how it was kept."""

    epsilon: float
    delta: float
    rounds: int
    noise_multiplier: float  # standard deviation of the noise relative to the sensitivity
    clip_params: float
    clip_fisher: float
    unit: str = "silo, all of its data replaced"


def delta_of(epsilon: float, noise_multiplier: float) -> float:
    """Compute δ of one release with Gaussian noise of σ sensitivities (Balle and Wang, arXiv 1805.06530, theorem 8).

    δ = Φ(1/2σ − εσ) − e^ε Φ(−1/2σ − εσ), from logarithms: for large ε both terms are beyond a float's range.

    Args:
        epsilon: privacy loss ε, at least 0.
        noise_multiplier: σ, the noise's standard deviation as a multiple of the sensitivity.

    Raises:
        ValueError: numbers out of range.
    """
    require_positive(noise_multiplier=noise_multiplier)
    if not epsilon >= 0:
        raise ValueError(f"epsilon: got {epsilon}, expected at least 0")
    half, moved = 0.5 / noise_multiplier, epsilon * noise_multiplier
    first, second = (float(scipy.special.log_ndtr(side - moved)) for side in (half, -half))
    if first == -math.inf:
        return 0.0
    return -math.exp(first) * math.expm1(min(epsilon + second - first, 0.0))


def epsilon_of(noise_multiplier: float, delta: float, rounds: int = 1) -> float:
    """Find the least ε of `rounds` releases with Gaussian noise: together they are one with σ / √rounds.

    It is rounded up, so that δ never is above what is asked for.

    Args:
        noise_multiplier: σ of each release.
        delta: its exception, between 0 and 1: Gaussian noise keeps no ε without one.
        rounds: how many releases.

    Raises:
        ValueError: numbers out of range.
    """
    require_positive(noise_multiplier=noise_multiplier)
    require_exception(delta, rounds=rounds)
    sigma = noise_multiplier / math.sqrt(rounds)
    if delta_of(0.0, sigma) <= delta:
        return 0.0
    return _where(lambda epsilon: delta_of(epsilon, sigma) <= delta, 1.0)


def noise_for(
    epsilon: float, delta: float, *, clip_params: float, clip_fisher: float = 1.0, rounds: int = 1
) -> Guarantee:
    """Find the least noise that keeps (ε, δ) over `rounds` releases.

    Args:
        epsilon: privacy loss, positive.
        delta: its exception, between 0 and 1; much less than one over the number of silos.
        clip_params: largest Euclidean norm of trained minus starting parameters.
        clip_fisher: largest Euclidean norm of each array of the Fisher information.
        rounds: releases of this silo in all.

    Raises:
        ValueError: numbers out of range.
    """
    require_positive(epsilon=epsilon, clip_params=clip_params, clip_fisher=clip_fisher)
    require_exception(delta, rounds=rounds)
    sigma = _where(lambda sigma: delta_of(epsilon, sigma) <= delta, 1.0)
    return Guarantee(epsilon, delta, rounds, sigma * math.sqrt(rounds), clip_params, clip_fisher)


def require_positive(**numbers: float) -> None:
    """Refuse numbers that are not positive and finite.

    Raises:
        ValueError: the first such number, by its name.
    """
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: got {value}, expected a positive number")


def require_exception(delta: float, **counts: int) -> None:
    """Refuse a δ that is not between 0 and 1, or less than one of what is counted.

    Raises:
        ValueError: all of these numbers, by their names.
    """
    if not (0 < delta < 1 and all(count >= 1 for count in counts.values())):
        names, given = ", ".join(("delta", *counts)), ", ".join(map(str, (delta, *counts.values())))
        raise ValueError(f"{names}: got {given}, expected a number between 0 and 1, and at least 1")


def require_defined(fisher: Any) -> None:
    """Refuse Fisher information that noise is not defined for; arrays or their shapes.

    Noise is defined where every array is semi-definite or not negative. Eigenvectors, which one example can turn round,
    are neither.

    Raises:
        ValueError: low-rank Fisher information, another structure with such arrays, or one that is not registered.
    """
    if fisher is not None and (not is_known(fisher) or "any" in fisher.signs.values()):
        allowed = ", ".join(one.__name__ for one in STRUCTURES.values() if "any" not in one.signs.values())
        raise ValueError(f"epsilon: no noise is defined for {type(fisher).__name__}; allowed are no Fisher, {allowed}")


def losses(payload: Payload, start: PyTree, guarantee: Guarantee) -> str:
    """Tell what clipping takes from a payload, and the noise: for the silo alone, since these numbers are exact.

    Raises:
        ValueError: as `privatise`.
    """
    moved, arrays = _moved(payload, start), _arrays(payload)
    move = _norm(moved)
    cut = sum(_norm([array]) > guarantee.clip_fisher for array in arrays.values())
    size, bound = sum(leaf.size for leaf in jax.tree.leaves(start)), guarantee.clip_params
    std = _scale(guarantee, len(arrays)) * bound
    return (
        f"parameters moved by {move:.3g}, clipped to {min(move, bound):.3g}; "
        f"{cut} of {len(arrays)} Fisher arrays clipped to {guarantee.clip_fisher:g}; "
        f"noise of norm {std * math.sqrt(size):.3g} on the parameters"
    )


def privatise(payload: Payload, start: PyTree, guarantee: Guarantee) -> Payload:
    """Clip, add noise, and make the Fisher positive semi-definite again (which costs no privacy).

    The noise is drawn from the operating system: it has no seed, since who knows the seed can take the noise off.

    Args:
        payload: what the silo would send.
        start: the model that it trained from; only the difference is clipped.
        guarantee: what `noise_for` returns.

    Raises:
        ValueError: an entry that is not finite, whose norm could not be clipped, by name; a start that is not like the
            parameters; or a structure of Fisher information that has no such form.
    """
    moved, arrays = _moved(payload, start), _arrays(payload)
    scale = _scale(guarantee, len(arrays))
    leaves, treedef = jax.tree.flatten(payload.params)
    factor = _clipped(moved, guarantee.clip_params)
    noisy = [factor * move + scale * guarantee.clip_params * _gaussian(move.shape) for move in moved]
    begins = [np.asarray(begin, np.float64) for begin in jax.tree.leaves(start)]
    params = [jnp.asarray(b + n, leaf.dtype) for b, n, leaf in zip(begins, noisy, leaves, strict=True)]
    released = []
    for name, array in arrays.items():
        wide = np.asarray(array, np.float64)
        wide = wide * _clipped([wide], guarantee.clip_fisher)
        std = scale * guarantee.clip_fisher
        if sign_of(type(payload.statistics), name) == "semidefinite":
            noise = _gaussian(wide.shape)  # symmetric, of the same size in every direction of symmetric matrices
            wide = signs.nearest_semidefinite(wide + std * (noise + np.swapaxes(noise, -1, -2)) / 2)
        else:
            wide = np.maximum(wide + std * _gaussian(wide.shape), 0)
        released.append(jnp.asarray(wide, array.dtype))
    noisy_statistics = with_arrays(payload.statistics, released)
    return payload._replace(params=treedef.unflatten(params), statistics=noisy_statistics)


def _moved(payload: Payload, start: PyTree) -> list[np.ndarray]:
    """Trained minus starting parameters in float64, finite."""
    require_like("start", start, payload.params)
    moved = []
    both = zip(described(payload.params), jax.tree.leaves(payload.params), jax.tree.leaves(start), strict=True)
    for leaf, trained, begin in both:
        _require_finite(f"params/{leaf.path}", trained)
        _require_finite(f"start/{leaf.path}", begin)
        moved.append(np.asarray(trained, np.float64) - np.asarray(begin, np.float64))
    return moved


def _arrays(payload: Payload) -> dict[str, Any]:
    """The Fisher's arrays to clip, each with a norm of its own, finite."""
    require_defined(payload.statistics)
    if payload.statistics is None:
        return {}
    leaves = described(payload.params)
    for fisher in (payload.statistics, payload.statistics.balanced()):
        arrays = named(fisher, leaves)
        for name, array in arrays.items():
            _require_finite(f"fisher/{name}", array)
    return arrays


def _require_finite(name: str, array: Any) -> None:
    if not np.isfinite(np.asarray(array, np.float64)).all():
        raise ValueError(f"payload: {name}: got NaN or infinity, expected finite numbers: others cannot be clipped")


def _scale(guarantee: Guarantee, arrays: int) -> float:
    """Standard deviation of the noise relative to a block's clip, for the move and so many arrays of the Fisher."""
    return guarantee.noise_multiplier * SENSITIVITY * math.sqrt(1 + arrays)


def _norm(arrays: list[Any]) -> float:
    return math.sqrt(sum(float(np.sum(np.asarray(array, np.float64) ** 2)) for array in arrays))


def _clipped(arrays: list[np.ndarray], norm: float) -> float:
    """The factor that brings arrays to at most this common norm."""
    size = _norm(arrays)
    return min(1.0, norm / size) if size else 1.0


def _gaussian(shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers from the operating system's randomness."""
    words = np.frombuffer(os.urandom(8 * math.prod(shape)), np.uint64)
    return scipy.special.ndtri(((words >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53).reshape(shape)


def _where(holds: Callable[[float], bool], guess: float, precision: float = 1e-12) -> float:
    """The least positive number from which on `holds` is true, rounded up to a relative precision, by bisection."""
    low = high = guess
    while not holds(high):
        if high == math.inf:
            raise ValueError("epsilon, delta: got a promise that no number keeps, expected larger ones")
        low, high = high, 2 * high
    while low > 1e-300 and holds(low):
        low, high = low / 2, low
    while high - low > precision * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
