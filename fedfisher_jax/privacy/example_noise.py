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

Here noise is drawn as float64 and sums are float32, so the promise is that of real numbers: what rounding may tell is
not counted. Of the mechanisms only that of secure sums by mail is one of integers, see `_integer_noise`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._examples import Examples
from ..curvature.structures._moments import Moments, NoisyMoments
from ..merge._heads import Basis, MeasureMoments
from ..merge._rule import Merged, Payload, Rule, Update
from ._example_promise import SHARES as SHARES
from ._example_promise import Promise as Promise
from ._example_promise import deviations as deviations
from ._example_promise import promise as promise
from ._example_promise import sensitivity as sensitivity
from ._example_promise import spent as spent
from ._example_promise import split as split
from .noise import _gaussian

PyTree = Any
FLOOR = 0.3  # of the noise's largest eigenvalue, see `whitening`


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
    _require_clippable(moments)
    if promised.trust == "central":
        return payload
    return payload._replace(statistics=_with_noise(moments, payload.weight, promised, draw))


def exact(rule: Rule, sent: PyTree, data: Examples, key: jax.Array) -> Payload:
    """Measure clipped moments without noise, added up in float64: what rounding does is counted in `_integer_noise`.

    Args:
        rule: from `clipped`.
        sent: the model that the client was sent.
        data: its examples.
        key: random key.

    Returns:
        The payload, in the types that JAX has outside of this function.

    Raises:
        ValueError: numbers that are not finite.
    """
    with jax.enable_x64(True):
        wide = jax.jit(lambda *given: rule.measure(*given))(Update(None, sent), data, key)
    payload = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, jnp.result_type(float))), wide)
    _require_clippable(payload.statistics)
    return payload


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


def _require_clippable(moments: Moments) -> None:
    for name in ("second", "cross", "totals"):
        if not np.isfinite(np.asarray(getattr(moments, name))).all():
            raise ValueError(f"payload: {name}: got NaN or infinity, expected finite numbers: others cannot be clipped")


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
