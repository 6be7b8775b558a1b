"""Differential privacy of every single example in sums over examples: clip each one's part, add Gaussian noise.

The `Moments` of heads are such sums: an example with features φ, clipped to norm c, and the one-hot target y adds φφᵀ,
φyᵀ and y. The guarantee (ε, δ) is about one example: were it replaced by any other, what is released would look about
the same. The number of examples is public. One Gaussian mechanism releases the three sums together, each scaled to what
an example can add to it, so that there is one noise multiplier, as for clients that send gradients. For every
other statistic that is a mean over examples (a Fisher, input and class moments, gradients) `_example_parts` clips each
example's part. Beside a model that was trained with privacy a promise of `dp_training` is about both, with one example
added or removed, and noise is "local"; it is divided among clients in sums of heads alone.

Whom one has to trust is a choice:

- "central": clients send exact sums, and the server adds the noise before it uses or publishes their sum.
- "distributed": each client adds a share, and a secure sum hides all but their total. With noise of σ/√m by each of
  n ≥ m clients the promise holds as long as m of them stay and do not tell their noise: m is the secure sum's threshold
  less those who may collude.
- "local": each client adds all of it, and trusts nobody.

Here noise is drawn as float64 and sums are float32, so the promise is that of real numbers: what rounding may tell is
not counted. Only the mechanism of secure sums by mail is one of integers, see `_integer_noise`.
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
from ..curvature.structures._protocol import named
from ..merge._heads import Basis, MeasureMoments
from ..merge._rule import Merged, Payload, Rule, Update
from ..payload._structures import model_leaves
from . import dp_training
from ._example_parts import Clips, MeasureParts, Noise, require_parts
from ._example_promise import SHARES as SHARES
from ._example_promise import Promise as Promise
from ._example_promise import Trust as Trust
from ._example_promise import deviations as deviations
from ._example_promise import promise as promise
from ._example_promise import sensitivity as sensitivity
from ._example_promise import spent as spent
from ._example_promise import split as split
from ._noisy_heads import MeasureNoisy, noisy_moments
from ._noisy_parts import mended, private_parts, with_noise
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


def noise_of(promised: Promise | dp_training.Promise) -> Noise:
    """Tell how much noise a promise needs in statistics other than heads' moments.

    Raises:
        ValueError: a promise about trained parameters alone.
    """
    if isinstance(promised, Promise):
        clips = Clips(promised.clip_fisher, promised.clip_features, promised.clip_gradients)
        return Noise(promised.noise_multiplier, clips, True)
    if not promised.noise_statistics:
        raise ValueError("promised: got a share of 0 for statistics, expected one above 0, of dp_training.promise")
    return Noise(promised.noise_statistics, Clips(promised.clip_fisher, promised.clip_features), False)


def after_training(promised: dp_training.Promise, *, trust: Trust = "local", sharers: int = 1) -> Promise:
    """Make the promise about a head's moments that keeps, together with a private training, the training's.

    The share of `dp_training.promise` is spent on one exchange of `recalibrate` at the merged model, in the place of
    statistics beside the parameters. An example that is added or removed moves the sums, in the mechanism's scale, by
    at most 1.

    Args:
        promised: with a share for statistics.
        trust: who adds the noise.
        sharers: as in `promise`.
    """
    multiplier = noise_of(promised).multiplier / sensitivity()
    kept = promised.epsilon, promised.delta, promised.releases, multiplier, promised.clip_features
    return Promise(*kept, trust, sharers, unit=promised.unit)


def noisy(
    payload: Payload,
    promised: Promise | dp_training.Promise,
    draw: Callable[[tuple[int, ...]], Any] = _gaussian,
) -> Payload:
    """Add a client's part of the noise to its statistics, which were measured with parts clipped as promised.

    Args:
        payload: one client's, from a rule of `clipped`; its weight is its number of examples.
        promised: from `promise`, or from `dp_training.promise` where it was trained.
        draw: shape → standard normal numbers; by default from the operating system's randomness, which has no seed.

    Raises:
        ValueError: moments with noise, or numbers that are not finite, which could not be clipped.
    """
    moments = payload.statistics
    if moments is None or isinstance(moments, NoisyMoments):
        raise ValueError(f"payload.statistics: got {type(moments).__name__}, expected Moments without noise")
    if isinstance(promised, Promise) and promised.trust == "central" and not isinstance(moments, Moments):
        return payload
    if not isinstance(moments, Moments):
        _require_finite(named(moments, model_leaves(payload)))
        with jax.enable_x64(True):
            found = mended(with_noise(payload, noise_of(promised), draw), noise_of(promised))
        return found
    if not isinstance(promised, Promise):
        raise ValueError("promised: got one about training, expected that of after_training for a head's moments")
    _require_clippable(moments)
    if promised.trust == "central":
        return payload
    return payload._replace(statistics=noisy_moments(moments, payload.weight, promised, draw))


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
        ValueError: a rule that measures no moments, or numbers that are not finite.
    """
    measure_of(rule)
    with jax.enable_x64(True):
        wide = jax.jit(lambda *given: rule.measure(*given))(Update(None, sent), data, key)
    payload = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, jnp.result_type(float))), wide)
    _require_clippable(payload.statistics)
    return payload


def private(rule: Rule, promised: Promise | dp_training.Promise) -> Rule:
    """Make a rule that keeps a promise about every example.

    For `analytic` and `recalibrate` clients clip features, for an exchange of `natural_gradient` each example's
    gradient and Fisher, by a promise of `promise`. For rules that train (FedFisher, Fisher merging, FedFish, RegMean,
    FedLPA, pseudo-data) they clip what an example adds to the statistics, by a promise of `dp_training.promise` with a
    share for these, and noise is local; training has to be private by itself (`LocalTraining(private=…)`).

    With "distributed" and "local" trust they add noise by the key that they measure with, which
    is for simulations; real silos measure with `clipped(rule, promised)` and then call `noisy`. With "central" trust
    the server adds it, from the operating system's randomness. The ridge grows with the noise (`noise_ridge`).

    Args:
        rule: one exchange that measures means over examples; heads with one-hot targets and outputs for one position.
        promised: from `promise`, or `dp_training.promise`.

    Raises:
        ValueError: another rule, a promise of the wrong kind, or other targets.

    Example:
        >>> import fedfisher_jax as ff
        >>> from fedfisher_jax.privacy import example_noise
        >>> rule = ff.merge.analytic(lambda w, x: x @ w, ff.categorical())
        >>> example_noise.private(rule, example_noise.promise(1.0, 1e-5, clip_features=1.0)).name
        'analytic'
    """
    plain = clipped(rule, promised)
    if not isinstance(promised, Promise):
        return private_parts(rule, noise_of(promised), "local", _gaussian)
    if not isinstance(rule.measure, MeasureMoments):
        return private_parts(rule, noise_of(promised), promised.trust, _gaussian)
    if promised.trust != "central":
        return plain._replace(measure=MeasureNoisy(measure_of(plain), promised))

    def solve(summary: dict[str, Any], start: PyTree) -> Merged:
        moments, examples = summary["moments"], summary["weight"]
        mean = jax.tree.map(lambda leaf: leaf / examples, moments)
        total = noisy_moments(mean, examples, promised, _gaussian)
        return plain.solve(summary | {"moments": jax.tree.map(lambda leaf: leaf * examples, total)}, start)

    return plain._replace(solve=solve)


def clipped(rule: Rule, promised: Promise | dp_training.Promise) -> Rule:
    """Make the rule measure what is clipped as promised, without noise.

    Raises:
        ValueError: a rule that measures no means over examples, a promise of the wrong kind, targets that are not
            one-hot, or outputs for several positions.
    """
    if not isinstance(rule.measure, MeasureMoments):
        require_parts(rule)
        if rule.trains == isinstance(promised, Promise):
            sends, expected = ("a trained model", "dp_training.promise") if rule.trains else ("sums alone", "promise")
            raise ValueError(f"promised: got one of another kind for {rule.name}, which sends {sends}: use {expected}")
        return rule._replace(measure=MeasureParts(rule.measure, noise_of(promised).clips))
    measure = measure_of(rule)
    if not isinstance(promised, Promise):
        raise ValueError("promised: got one about training, expected that of after_training for a head's moments")
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
    _require_finite({name: getattr(moments, name) for name in ("second", "cross", "totals")})


def _require_finite(arrays: dict[str, Any]) -> None:
    for name, array in arrays.items():
        if not np.isfinite(np.asarray(array)).all():
            raise ValueError(f"payload: {name}: got NaN or infinity, expected finite numbers: others cannot be clipped")
