"""Noise of a promise about every example, divided among the silos of a secure sum, in the integers of that sum.

Each silo adds discrete Gaussian integers to its own, so that nothing is left for floating point to tell, and the sum of
those who stay has the noise that was promised (Kairouz, Liu and Steinke, arXiv 2102.06387). What one example moves is
bounded for the integers that are added up, not for real numbers: float32 and the last digit count.

Two steps lie between this and the Gaussian mechanism that `promise` computes with. A sum of n discrete Gaussians of
standard deviation s is not one, but its probabilities are within a factor exp(10 Σ_{k<n} exp(−2π²s² k/(k+1))) of one's
(τ there). And one number of a discrete Gaussian is, z standard deviations from the middle, as probable as a
rounded real one within a factor exp((z² + 1)/24s²). With s of at least `LEAST` both are nothing: for a million numbers
and z = 10 the second changes ε by 1e-5, and s is usually above 2^30.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..curvature.structures._moments import Moments, NoisyMoments
from ..payload._header import Header, owes_noise
from ._discrete_gaussian import below_from, discrete_gaussian
from ._example_promise import SHARES, Promise, promise, sensitivity
from ._fixed_point import finest
from ._secure_merge import resolution, to_vector

PyTree = Any
NAMES = ("second", "cross", "totals")
LEAST = 2**20  # standard deviation of a silo's noise, in steps of the sum
ROOM = 16  # standard deviations of noise that numbers of a silo have room for: beyond is a chance of 1e-56
LOST = 3 * 2.0**-24  # of the sums' norm: float64 sums, means in float32, and their products with numbers of examples
MARGIN = 1e-6  # of the noise multiplier, by which two computers may find it differently


class Share(NamedTuple):
    """The noise that each silo adds, which all of them and the server compute from what is announced."""

    bits: np.ndarray  # int [n], fraction bits of each number of the sum
    variances: list[int]  # of the n integers; 0 for what is public


def owed(header: Header) -> Promise | None:
    """Read the promise for which noise must still be added; None where there is none.

    Raises:
        ValueError: it is no promise, or its noise is too little for its ε.
    """
    said = header.about.privacy
    if said is None or not owes_noise(said) or header.structure != Moments.name:
        return None
    try:
        found = Promise(**said)
        asked = {name: getattr(found, name) for name in ("clip_features", "releases", "trust", "sharers")}
        needed = promise(found.epsilon, found.delta, **asked)
    except TypeError as error:
        raise ValueError("privacy: expected a promise as fedfisher measure writes it") from error
    if not is_same(found, needed) or header.about.compression != "none":
        raise ValueError(
            f"privacy: got a noise multiplier of {found.noise_multiplier:g}, or compressed sums, expected "
            f"{needed.noise_multiplier:g} for ε = {found.epsilon:g}, and exact ones"
        )
    return found


def is_same(one: Promise | None, other: Promise | None) -> bool:
    """Tell whether two promises are one, whichever computers found their noise."""
    if one is None or other is None:
        return one is other
    near = math.isclose(one.noise_multiplier, other.noise_multiplier, rel_tol=MARGIN)
    return near and one._replace(noise_multiplier=0.0) == other._replace(noise_multiplier=0.0)


def bounds(contribution: PyTree, promised: Promise) -> PyTree:
    """Bound a silo's numbers, noise included, by what is public: its number of examples and the clip.

    Args:
        contribution: what the silo adds, with `moments` and `weight`; of its moments the names are used alone.
        promised: from `owed`.

    Returns:
        A tree of the same arrays, one bound each, of which the silo announces the scales.
    """
    examples = float(contribution["weight"])
    noise = _deviations(promised, sensitivity() + 2 * LOST * 2 * examples + 1)  # the most that `share_of` allows
    most = [examples * unit + ROOM * std for unit, std in zip(_units(promised), noise, strict=True)]
    arrays = {name: np.asarray(value) for name, value in zip(NAMES, most, strict=True)}
    return {**contribution, "moments": dataclasses.replace(contribution["moments"], **arrays)}


def share_of(promised: Promise, announced: Sequence[Sequence[int]], clients: int, like: PyTree) -> Share:
    """Compute the noise of every silo for the integers that are added up.

    Two data sets that differ in one example differ by at most `sensitivity` in real numbers; as integers by as much
    and what rounding moves at both: a share `LOST` of the sums' norm, at most the largest number of examples, and half
    a step for each number.

    Args:
        promised: from `owed`.
        announced: scales of every silo.
        clients: at most so many are summed.
        like: a contribution, or shapes in the place of its arrays.

    Raises:
        ValueError: scales that no honest silo announces, or too few digits for so little noise.
    """
    bits = resolution(announced, clients, like)
    steps = np.ldexp(1.0, -bits)
    units = [unit / math.sqrt(w) for unit, w in zip(_units(promised), SHARES, strict=True)]
    inverse = _per_number(like, [1 / unit for unit in units])
    with np.errstate(over="ignore", invalid="ignore"):  # infinite, and refused
        most = float(np.ldexp(1.0, finest(0, clients) - bits[-1]))  # examples: the weight is the last number
        rounded = float(np.linalg.norm(inverse * steps))
        stds = _per_number(like, _deviations(promised, sensitivity() + 2 * LOST * most + rounded)) / steps
    if not (rounded <= 1 and ROOM * stds.max() <= 2.0**63 / clients):
        raise ValueError("scales: got numbers, or numbers of examples, that no silo of this promise can have")
    if not stds[stds > 0].min() >= LEAST:
        raise ValueError(f"privacy: noise of {stds[stds > 0].min():g} steps of the sum, expected at least {LEAST}")
    return Share(bits, [math.ceil(variance) for variance in (stds**2).tolist()])


def drawn(share: Share, key: bytes) -> np.ndarray:
    """Draw a silo's noise, uint64 [n] modulo 2^64, from a secret key of 32 bytes that is used for nothing else."""
    below = below_from(key)
    noise = [discrete_gaussian(variance, below) if variance else 0 for variance in share.variances]
    return np.asarray([one % 2**64 for one in noise], np.uint64)


def told(summed: PyTree, share: Share, silos: int) -> PyTree:
    """Make noisy moments of the sum of so many silos, which tell how much noise is in them, so that the ridge grows.

    Args:
        summed: the sum, or its shapes.
        share: what each silo added.
        silos: how many of them stayed.
    """
    moments = summed["moments"]
    if isinstance(moments.second, jax.ShapeDtypeStruct):
        variances, second = jax.ShapeDtypeStruct((3,), moments.second.dtype), moments.second
    else:
        ends = np.cumsum([getattr(moments, name).size for name in NAMES]) - 1
        each = [share.variances[end] * math.ldexp(1.0, -2 * int(share.bits[end])) for end in ends]
        variances = silos * np.asarray(each)
        second = (moments.second + moments.second.T) / 2  # half of the variance off the diagonal
    return {**summed, "moments": NoisyMoments(**vars(moments) | {"second": second}, variances=variances)}


def _units(promised: Promise) -> tuple[float, float, float]:
    """Norms of what one example adds to φφᵀ, φyᵀ and y, at most."""
    return promised.clip_features**2, promised.clip_features, 1.0


def _deviations(promised: Promise, moved: float) -> list[float]:
    """Standard deviations of a silo's noise, where an example moves the sums so far in the mechanism's scale."""
    scale = promised.noise_multiplier * moved / math.sqrt(promised.sharers)
    return [scale * unit / math.sqrt(w) for unit, w in zip(_units(promised), SHARES, strict=True)]


def _per_number(like: PyTree, values: Sequence[float]) -> np.ndarray:
    """Write a value for each of the three arrays as a vector over all numbers of a contribution, 0 for its weight."""
    moments = like["moments"]
    arrays = {name: np.full(getattr(moments, name).shape, v) for name, v in zip(NAMES, values, strict=True)}
    return to_vector({"moments": dataclasses.replace(moments, **arrays), "weight": np.zeros(())})
