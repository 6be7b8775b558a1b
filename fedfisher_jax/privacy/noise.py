"""Differential privacy of a whole silo: clip what it sends and add Gaussian noise.

The guarantee (ε, δ) is about the silo: whatever its data were, even if all of them were others, the file would look
about the same. It costs much accuracy at few silos. Nothing here protects a single example better than its silo, and
the number of examples, and that the silo took part, are taken as public. (docs/silos.md)
"""

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts load where they are used

from ..curvature import Diagonal, Full, Kronecker
from ..curvature.structures._gram import Gram
from ..merge._rule import Payload
from ..payload import _structures as structures

PyTree = Any
CLIPPED = (Diagonal, Full, Gram, Kronecker)
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


def epsilon_of(noise_multiplier: float, delta: float, rounds: int = 1) -> float:
    """ε of `rounds` releases with Gaussian noise, by dp-accounting's privacy loss distributions."""
    accounting, accountant = _accountant()
    spent = accountant().compose(accounting.GaussianDpEvent(noise_multiplier), rounds)
    return float(spent.get_epsilon(delta))


def noise_for(
    epsilon: float, delta: float, *, clip_params: float, clip_fisher: float = 1.0, rounds: int = 1
) -> Guarantee:
    """The least noise that keeps (ε, δ) over `rounds` releases.

    Args:
        epsilon: privacy loss, positive.
        delta: its exception, between 0 and 1; much less than one over the number of silos.
        clip_params: largest Euclidean norm of trained minus starting parameters.
        clip_fisher: largest Euclidean norm of each array of the Fisher information.
        rounds: releases of this silo in all.

    Raises:
        ValueError: numbers out of range, or dp-accounting is not installed.
    """
    for name, value in (("epsilon", epsilon), ("clip_params", clip_params), ("clip_fisher", clip_fisher)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: got {value}, expected a positive number")
    if not 0 < delta < 1 or rounds < 1:
        raise ValueError(f"delta, rounds: got {delta}, {rounds}, expected a number between 0 and 1, and at least 1")
    accounting, accountant = _accountant()
    multiplier = accounting.calibrate_dp_mechanism(
        accountant,
        lambda sigma: accounting.SelfComposedDpEvent(accounting.GaussianDpEvent(sigma), rounds),
        epsilon,
        delta,
    )
    return Guarantee(epsilon_of(multiplier, delta, rounds), delta, rounds, float(multiplier), clip_params, clip_fisher)


def require_defined(fisher: Any) -> None:
    """Refuse Fisher information that noise is not defined for; arrays or their shapes.

    Raises:
        ValueError: low-rank Fisher information, whose eigenvectors one example can turn round, or another structure.
    """
    if fisher is not None and not isinstance(fisher, CLIPPED):
        raise ValueError(_undefined(fisher))


def losses(payload: Payload, start: PyTree, guarantee: Guarantee) -> str:
    """What clipping takes from a payload, and the noise, in words: for the silo alone, for these numbers are exact."""
    arrays, _ = _blocks(payload.fisher)
    move = _norm([np.subtract(*pair) for pair in _pairs(payload.params, start)])
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
        guarantee: of `noise_for`.

    Raises:
        ValueError: a structure of Fisher information that has no such form.
    """
    arrays, rebuild = _blocks(payload.fisher)
    scale = _scale(guarantee, len(arrays))
    leaves, treedef = jax.tree.flatten(payload.params)
    begins = [begin for _, begin in _pairs(payload.params, start)]
    moved = [trained - begin for trained, begin in _pairs(payload.params, start)]
    moved = [_clipped(moved, guarantee.clip_params) * move for move in moved]
    noisy = [m + scale * guarantee.clip_params * _gaussian(m.shape) for m in moved]
    params = [jnp.asarray(b + n, leaf.dtype) for b, n, leaf in zip(begins, noisy, leaves, strict=True)]
    released = {}
    for name, array in arrays.items():
        wide = np.asarray(array, np.float64)
        wide = wide * _clipped([wide], guarantee.clip_fisher)
        std = scale * guarantee.clip_fisher
        if structures.is_matrix(name):
            noise = _gaussian(wide.shape)  # symmetric, of the same size in every direction of symmetric matrices
            wide = structures.nearest_semidefinite(wide + std * (noise + np.swapaxes(noise, -1, -2)) / 2)
        else:
            wide = np.maximum(wide + std * _gaussian(wide.shape), 0)
        released[name] = jnp.asarray(wide, array.dtype)
    return Payload(payload.weight, treedef.unflatten(params), rebuild(released))


def _blocks(fisher: Any) -> tuple[dict[str, Any], Any]:
    """The arrays to clip, each with a norm of its own, and how to put them back."""
    match fisher:
        case None:
            return {}, lambda arrays: None
        case Diagonal():
            leaves, treedef = jax.tree.flatten(fisher.values)
            names = [f"fisher/diagonal/{n}" for n in range(len(leaves))]
            back = lambda arrays: Diagonal(treedef.unflatten([arrays[name] for name in names]))  # noqa: E731
            return dict(zip(names, leaves, strict=True)), back
        case Full():
            return {"fisher/matrix": fisher.matrix}, lambda a: Full(a["fisher/matrix"], fisher.shapes, fisher.treedef)
        case Gram():
            return _named("inputs", fisher.inputs), lambda arrays: Gram(
                _listed("inputs", arrays), fisher.layers, fisher.shapes, fisher.treedef
            )
        case Kronecker():
            pairs = [_balanced(a, g) for a, g in zip(fisher.inputs, fisher.outputs, strict=True)]
            arrays = _named("inputs", [a for a, _ in pairs]) | _named("outputs", [g for _, g in pairs])
            arrays |= {f"fisher/rest/{leaf}": value for leaf, value in fisher.rest.items()}

            def rebuild(found: Mapping[str, Any]) -> Kronecker:
                rest = {leaf: found[f"fisher/rest/{leaf}"] for leaf in fisher.rest}
                factors = _listed("inputs", found), _listed("outputs", found)
                return Kronecker(*factors, rest, fisher.layers, fisher.treedef)

            return arrays, rebuild
    raise ValueError(_undefined(fisher))


def _undefined(fisher: Any) -> str:
    allowed = ", ".join(structure.__name__ for structure in CLIPPED)
    return f"epsilon: no noise is defined for {type(fisher).__name__}; allowed are no Fisher, {allowed}"


def _named(kind: str, arrays: Any) -> dict[str, Any]:
    return {f"fisher/{kind}/{number}": array for number, array in enumerate(arrays)}


def _listed(kind: str, arrays: Mapping[str, Any]) -> tuple[Any, ...]:
    count = sum(name.startswith(f"fisher/{kind}/") for name in arrays)
    return tuple(arrays[f"fisher/{kind}/{number}"] for number in range(count))


def _balanced(a: Any, g: Any) -> tuple[Any, Any]:
    """The same A ⊗ G with factors of one norm: what one is clipped by, the other is, too."""
    sizes = jnp.linalg.norm(a), jnp.linalg.norm(g)
    known = (sizes[0] > 0) & (sizes[1] > 0)
    factor = jnp.where(known, jnp.sqrt(sizes[1] / jnp.where(known, sizes[0], 1)), 1)
    return factor * a, g / factor


def _pairs(params: PyTree, start: PyTree) -> list[tuple[np.ndarray, np.ndarray]]:
    """Leaves of both, in float64."""
    both = zip(jax.tree.leaves(params), jax.tree.leaves(start), strict=True)
    return [(np.asarray(leaf, np.float64), np.asarray(begin, np.float64)) for leaf, begin in both]


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


def _accountant() -> tuple[Any, Any]:
    try:
        import dp_accounting
        from dp_accounting import pld
    except ImportError as error:
        raise ValueError("epsilon: accounting needs pip install 'fedfisher-jax[privacy]'") from error
    return dp_accounting, pld.PLDAccountant
