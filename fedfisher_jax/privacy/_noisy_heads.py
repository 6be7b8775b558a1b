"""Noise on the moments that heads in closed form are made of (see `example_noise`)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._examples import Examples
from ..curvature.structures._moments import Moments, NoisyMoments
from ..merge._heads import MeasureMoments
from ..merge._rule import Payload, Update
from ._example_promise import Promise, deviations


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
        return sent._replace(statistics=noisy_moments(sent.statistics, sent.weight, self.promised, draw))


def noisy_moments(moments: Moments, examples: Any, promised: Promise, draw: Callable) -> NoisyMoments:
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
