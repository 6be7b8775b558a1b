"""What is promised about every example in sums over examples, and how much noise keeps it (see `example_noise`)."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from .noise import _where, delta_of, epsilon_of, require_exception, require_positive

Trust = Literal["central", "distributed", "local"]
TRUST: tuple[Trust, ...] = ("central", "distributed", "local")
SHARES = (0.49, 0.49, 0.02)  # of the squared sensitivity: of φφᵀ, φyᵀ and y
SECOND = (1.0, 0.0, 0.0)  # where φφᵀ alone is released
WHITENING = 0.25  # of the privacy, see `split`


class Promise(NamedTuple):
    """What was promised about each example, and how it is kept."""

    epsilon: float
    delta: float
    releases: int  # of sums that the same example is in
    noise_multiplier: float  # standard deviation of all noise together, relative to the sensitivity
    clip_features: float  # largest norm of an example's features
    trust: Trust = "local"
    sharers: int = 1  # among how many clients the noise is divided, where trust is distributed
    second_alone: bool = False  # release φφᵀ and nothing else: what `whitening` needs
    unit: str = "one example, replaced by another"
    clip_gradients: float = 1.0  # largest norm of what an example adds to each array of a gradient
    clip_fisher: float = 1.0  # and to each of a Fisher


def promise(
    epsilon: float,
    delta: float,
    *,
    clip_features: float = 1.0,
    clip_gradients: float = 1.0,
    clip_fisher: float = 1.0,
    releases: int = 1,
    trust: Trust = "local",
    sharers: int = 1,
) -> Promise:
    """Find the least noise that keeps (ε, δ) for every example over so many releases.

    Args:
        epsilon: privacy loss, positive.
        delta: its exception, between 0 and 1; much less than one over the number of examples.
        clip_features: largest Euclidean norm of an example's features, for heads.
        clip_gradients: largest norm of what an example adds to each array of a gradient, for `natural-gradient`.
        clip_fisher: largest norm of what it adds to each array of the Fisher there.
        releases: sums, in all, that an example takes part in: 2 for `analytic` and then `recalibrate`.
        trust: "central", "distributed" or "local".
        sharers: with "distributed": number of clients that certainly add their share of the noise and keep it secret.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> from fedfisher_jax.privacy import example_noise
        >>> print(f"{example_noise.promise(1.0, 1e-5, clip_features=1.0).noise_multiplier:.2f}")
        3.73
    """
    clips = {"clip_features": clip_features, "clip_gradients": clip_gradients, "clip_fisher": clip_fisher}
    require_positive(epsilon=epsilon, **clips)
    require_exception(delta, releases=releases)
    if trust not in TRUST or not 1 <= sharers < math.inf or (sharers > 1 and trust != "distributed"):
        raise ValueError(
            f"trust, sharers: got {trust!r}, {sharers}, expected one of {', '.join(TRUST)}, and at least 1"
        )
    sigma = _where(lambda sigma: delta_of(epsilon, sigma) <= delta, 1.0)
    found = Promise(epsilon, delta, releases, sigma * math.sqrt(releases), clip_features, trust, sharers)
    return found._replace(clip_gradients=clip_gradients, clip_fisher=clip_fisher)


def spent(multipliers: Sequence[float], delta: float) -> float:
    """Compute ε of several releases of Gaussian noise of which an example was in all.

    Together they are one release whose noise multiplier σ has 1/σ² = Σ 1/σ_i² (Dong, Roth and Su, arXiv 1905.02383,
    corollary 3.3), so nothing is lost by composing them.

    Args:
        multipliers: noise multipliers σ_i, at least one.
        delta: probability of the exception, between 0 and 1.

    Raises:
        ValueError: numbers out of range.
    """
    require_exception(delta, multipliers=len(multipliers))
    for sigma in multipliers:
        require_positive(multipliers=sigma)
    return epsilon_of(1 / math.hypot(*(1 / sigma for sigma in multipliers)), delta)


def split(promised: Promise, share: float = WHITENING) -> tuple[Promise, Promise]:
    """Divide a promise between two releases that keep it together: one for `whitening`, and one for the head.

    Args:
        promised: from `promise`.
        share: the first one's share of the privacy, in units of 1/σ².

    Raises:
        ValueError: a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: got {share}, expected a number between 0 and 1")
    first, second = (promised.noise_multiplier / math.sqrt(part) for part in (share, 1 - share))
    return promised._replace(noise_multiplier=first, second_alone=True), promised._replace(noise_multiplier=second)


def sensitivity(shares: tuple[float, float, float] = SHARES) -> float:
    """Bound how far one example, replaced by another, moves the three sums, in the mechanism's scale.

    φφᵀ/c² is weighted by √w₁, φyᵀ/c by √w₂ and y by √w₃. With u = φᵀφ'/c² the squared distance of two examples of
    different classes is at most 2w₁ + 2w₂ + 2w₃, of the same class 2w₁ + 2w₂ − 2w₁u² − 2w₂u, which is at most
    2w₁ + 2w₂ + w₂²/(2w₁).
    """
    first, second, third = shares
    return math.sqrt(2 * (first + second) + max(2 * third, second**2 / (2 * first)))


def deviations(promised: Promise) -> tuple[float, float, float]:
    """Compute the standard deviations of all noise together in the sums of φφᵀ (on its diagonal), φyᵀ and y.

    What is not released has infinite noise.
    """
    shares = SECOND if promised.second_alone else SHARES
    clip, scale = promised.clip_features, promised.noise_multiplier * sensitivity(shares)
    units = (clip**2, clip, 1.0)
    stds = [scale * unit / math.sqrt(w) if w else math.inf for unit, w in zip(units, shares, strict=True)]
    return stds[0], stds[1], stds[2]
