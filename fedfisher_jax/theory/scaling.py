"""Log–log slopes with confidence intervals over seeds."""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Slope(NamedTuple):
    """A power law y ∝ x^slope fitted to every seed on its own."""

    mean: float
    low: float  # confidence interval of the mean over seeds (Student's t)
    high: float
    per_seed: np.ndarray  # [seeds]
    prefactor: float  # geometric mean over seeds: y ≈ prefactor · x^mean


def loglog_slope(x: np.ndarray, y: np.ndarray, confidence: float = 0.95) -> Slope:
    """Least-squares slope of log y against log x for each seed, then the mean and its interval over seeds.

    Args:
        x: [points], positive, for instance widths.
        y: [points, seeds], positive, one series per seed.
        confidence: How often such an interval holds the true slope.

    Raises:
        ValueError: If a value is not positive (a logarithm would hide it) or not finite, all x are equal, `confidence`
            is no share, or there are fewer than two points or seeds.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.ndim != 1 or y.ndim != 2 or y.shape[0] != len(x) or min(y.shape) < 2:
        raise ValueError(
            f"expected x [points] and y [points, seeds], at least two of each; got {x.shape} and {y.shape}"
        )
    if not ((x > 0).all() and (y > 0).all()):
        raise ValueError("log–log slopes need positive values")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence}, expected a share above 0 and below 1")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x != x[0]).any()):
        raise ValueError("log–log slopes need finite values and x that differ")
    log_x, log_y = np.log(x), np.log(y)
    centred = log_x - log_x.mean()
    slopes = centred @ log_y / (centred @ centred)
    mean, half = slopes.mean(), stats.t.ppf((1 + confidence) / 2, len(slopes) - 1) * stats.sem(slopes)
    prefactor = np.exp(log_y.mean() - mean * log_x.mean())
    return Slope(float(mean), float(mean - half), float(mean + half), slopes, float(prefactor))


def curve_slope(x: np.ndarray, y: np.ndarray, confidence: float = 0.95, draws: int = 4000, seed: int = 0) -> Slope:
    """Slope of the *seed-averaged* curve, with a percentile bootstrap interval over seeds.

    Follows the law of E[y], which a mean of per-seed slopes (the law of typical runs) need not share. Arguments as
    `loglog_slope`; ``per_seed`` holds the bootstrap draws.

    Raises:
        ValueError: As `loglog_slope`: of one seed nothing is known of the spread.
    """
    loglog_slope(x, y, confidence)
    x, y = np.asarray(x, float), np.asarray(y, float)
    pick = np.random.default_rng(seed).integers(0, y.shape[1], (draws, y.shape[1]))
    resampled = y[:, pick].mean(axis=2)  # [points, draws]
    fits = loglog_slope(x, resampled, confidence)
    mean = loglog_slope(x, np.repeat(y.mean(axis=1, keepdims=True), 2, axis=1), confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(fits.per_seed, [tail, 1 - tail])
    return mean._replace(low=float(low), high=float(high), per_seed=fits.per_seed)
