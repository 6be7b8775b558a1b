"""Differential privacy of every single example in sums over examples: clip each one's part, add Gaussian noise.

`Moments` are such sums: an example with features φ, clipped to norm c, and the one-hot target y adds φφᵀ, φyᵀ and y.
The guarantee (ε, δ) is about one example: were it replaced by any other, what is released would look about the same.
The number of examples is public. One Gaussian mechanism releases the three sums together, each scaled to what an
example can add to it, so that there is one noise multiplier, as for clients that send gradients.

Whom one has to trust is a choice:

- "central": clients send exact sums, and the server adds the noise before it uses or publishes their sum.
- "distributed": each client adds a share, and a secure sum hides all but their total. With noise of σ/√m by each of
  n ≥ m clients the promise holds as long as m of them stay and do not tell their noise: m is the secure sum's threshold
  less those who may collude.
- "local": each client adds all of it, and trusts nobody.

Noise is drawn as float64 and sums are float32, so the promise is that of real numbers: what rounding may tell is not
counted.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._examples import Examples
from ..curvature.structures._moments import Moments, NoisyMoments
from ..merge._heads import Basis, MeasureMoments
from ..merge._rule import Merged, Payload, Rule, Update
from .noise import _gaussian, _where, delta_of, epsilon_of

PyTree = Any
Trust = Literal["central", "distributed", "local"]
TRUST: tuple[Trust, ...] = ("central", "distributed", "local")
SHARES = (0.49, 0.49, 0.02)  # of the squared sensitivity: of φφᵀ, φyᵀ and y
SECOND = (1.0, 0.0, 0.0)  # where φφᵀ alone is released
WHITENING, FLOOR = 0.25, 0.3  # of the privacy, and of the noise's largest eigenvalue: see `split` and `whitening`


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


def promise(
    epsilon: float,
    delta: float,
    *,
    clip_features: float,
    releases: int = 1,
    trust: Trust = "local",
    sharers: int = 1,
) -> Promise:
    """Find the least noise that keeps (ε, δ) for every example over so many releases.

    Args:
        epsilon: privacy loss, positive.
        delta: its exception, between 0 and 1; much less than one over the number of examples.
        clip_features: largest Euclidean norm of an example's features.
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
    for name, value in (("epsilon", epsilon), ("clip_features", clip_features)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: got {value}, expected a positive number")
    if not 0 < delta < 1 or releases < 1:
        raise ValueError(f"delta, releases: got {delta}, {releases}, expected a number in (0, 1), and at least 1")
    if trust not in TRUST or sharers < 1 or (sharers > 1 and trust != "distributed"):
        raise ValueError(
            f"trust, sharers: got {trust!r}, {sharers}, expected one of {', '.join(TRUST)}, and at least 1"
        )
    sigma = _where(lambda sigma: delta_of(epsilon, sigma) <= delta, 1.0)
    return Promise(epsilon, delta, releases, sigma * math.sqrt(releases), clip_features, trust, sharers)


def spent(multipliers: Sequence[float], delta: float) -> float:
    """Compute ε of several releases of Gaussian noise of which an example was in all.

    Together they are one release whose noise multiplier σ has 1/σ² = Σ 1/σ_i² (Dong, Roth and Su, arXiv 1905.02383,
    corollary 3.3), so nothing is lost by composing them.

    Args:
        multipliers: noise multipliers σ_i, at least one.
        delta: probability of the exception.
    """
    return epsilon_of(1 / math.sqrt(sum(1 / sigma**2 for sigma in multipliers)), delta)


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


def whitening(sums: NoisyMoments) -> Basis:
    """Make a map of features after which all directions that stand out of the noise are equally strong.

    Features of images have one direction, their mean, with most of the norm, so that a clip leaves little of the others
    and the noise of a head drowns them. The map is (S + λ)^(−1/2) for a released S = Σφφᵀ, negative eigenvalues left
    out, with λ a share of its noise's largest eigenvalue. It is made of what was released, so it costs no privacy.

    Args:
        sums: sums over all clients, from a first release with `second_alone`.

    Returns:
        For the option `basis` of `analytic`, with which the second release is measured.
    """
    second = np.asarray(sums.second, np.float64)
    off = math.sqrt(float(np.asarray(sums.variances)[0]) / 2)
    values, vectors = np.linalg.eigh((second + second.T) / 2)
    kept = np.maximum(values, 0) + FLOOR * 2 * off * math.sqrt(len(values))
    return Basis((vectors * kept**-0.5) @ vectors.T)


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


def noisy(payload: Payload, promised: Promise, draw: Callable[[tuple[int, ...]], Any] = _gaussian) -> Payload:
    """Add a client's part of the noise to its moments, which were measured with features clipped as promised.

    Args:
        payload: one client's, of moments; its weight is its number of examples.
        promised: from `promise`.
        draw: shape → standard normal numbers; by default from the operating system's randomness, which has no seed.

    Raises:
        ValueError: no moments, or numbers that are not finite, which could not be clipped.
    """
    moments = payload.statistics
    if type(moments) is not Moments:
        raise ValueError(f"payload.statistics: got {type(moments).__name__}, expected Moments without noise")
    for name in ("second", "cross", "totals"):
        if not np.isfinite(np.asarray(getattr(moments, name))).all():
            raise ValueError(f"payload: {name}: got NaN or infinity, expected finite numbers: others cannot be clipped")
    if promised.trust == "central":
        return payload
    return payload._replace(statistics=_with_noise(moments, payload.weight, promised, draw))


@dataclasses.dataclass(frozen=True)
class MeasureNoisy:
    """Measures moments with noise, for simulations: whoever knows the key can take the noise off again."""

    inner: MeasureMoments
    promised: Promise

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Payload:
        """One client's payload."""
        sent = self.inner(update, data, key)
        if self.promised.trust == "central":
            return sent
        keys = iter(jax.random.split(key, 3))
        draw = lambda shape: jax.random.normal(next(keys), shape, jnp.result_type(float))  # noqa: E731
        return sent._replace(statistics=_with_noise(sent.statistics, sent.weight, self.promised, draw))


def private(rule: Rule, promised: Promise) -> Rule:
    """Make of `analytic` or `recalibrate` a rule that keeps a promise about every example.

    Clients clip features. With "distributed" and "local" trust they add noise by the key that they measure with, which
    is for simulations; real silos measure with `clipped(rule, promised)` and then call `noisy`. With "central" trust
    the server adds it, from the operating system's randomness. The ridge grows with the noise (`noise_ridge`).

    Args:
        rule: one exchange that measures moments of a model with one-hot targets and outputs for one position.
        promised: from `promise`.

    Raises:
        ValueError: another rule, or other targets.

    Example:
        >>> import fedfisher_jax as ff
        >>> from fedfisher_jax.privacy import example_noise
        >>> rule = ff.merge.analytic(lambda w, x: x @ w, ff.categorical())
        >>> example_noise.private(rule, example_noise.promise(1.0, 1e-5, clip_features=1.0)).name
        'analytic'
    """
    plain = clipped(rule, promised)
    if promised.trust != "central":
        return plain._replace(measure=MeasureNoisy(measure_of(plain), promised))

    def solve(summary: dict[str, Any], start: PyTree) -> Merged:
        moments, examples = summary["moments"], summary["weight"]
        mean = jax.tree.map(lambda leaf: leaf / examples, moments)
        total = _with_noise(mean, examples, promised, _gaussian)
        return plain.solve(summary | {"moments": jax.tree.map(lambda leaf: leaf * examples, total)}, start)

    return plain._replace(solve=solve)


def clipped(rule: Rule, promised: Promise) -> Rule:
    """Make the rule measure features that are clipped as promised, without noise.

    Raises:
        ValueError: a rule that measures no moments, targets that are not one-hot, or outputs for several positions.
    """
    measure = measure_of(rule)
    if measure.likelihood.name != "categorical":
        name = measure.likelihood.name
        raise ValueError(f"likelihood: got {name}, expected categorical: other targets have no bound")
    return rule._replace(measure=dataclasses.replace(measure, clip=promised.clip_features))


def measure_of(rule: Rule) -> MeasureMoments:
    """Return what the rule measures with, if these are moments.

    Raises:
        ValueError: it measures something else.
    """
    if not isinstance(rule.measure, MeasureMoments):
        raise ValueError(f"rule: got {rule.name}, expected one that measures sums over examples: analytic, recalibrate")
    return rule.measure


def _with_noise(moments: Moments, examples: Any, promised: Promise, draw: Callable) -> NoisyMoments:
    """Add noise to means over so many examples."""
    share = 1 / math.sqrt(promised.sharers)
    stds = [share * deviation for deviation in deviations(promised)]
    values = []
    for name, std in zip(("second", "cross", "totals"), stds, strict=True):
        mean = getattr(moments, name)
        if math.isinf(std):
            values.append(jnp.zeros_like(mean))
            continue
        noise = draw(mean.shape)
        if name == "second":  # the same size in every direction of symmetric matrices
            noise = (noise + noise.T) / 2
        values.append((mean + std * noise / examples).astype(mean.dtype))
    dtype = jax.dtypes.canonicalize_dtype(values[0].dtype)
    sums = jnp.asarray([0.0 if math.isinf(std) else std**2 for std in stds], dtype)
    static = {name: getattr(moments, name) for name in ("features", "constant", "example", "leaves")}
    second, cross, totals = map(jnp.asarray, values)
    return NoisyMoments(second, cross, totals, **static, variances=sums / jnp.asarray(examples, dtype))
