import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from fedfisher_jax.privacy import attacks
from fedfisher_jax.privacy.attacks import measures

RANDOM = np.random.default_rng(5)


def images(count, height=9, width=8, channels=2):
    return RANDOM.uniform(size=(count, height, width, channels))


def test_total_variation_against_loops():
    x = images(3)
    n, h, w, c = x.shape
    expected = np.zeros(n)
    for i in range(n):
        down = [abs(x[i, r + 1, s, k] - x[i, r, s, k]) for r in range(h - 1) for s in range(w) for k in range(c)]
        right = [abs(x[i, r, s + 1, k] - x[i, r, s, k]) for r in range(h) for s in range(w - 1) for k in range(c)]
        expected[i] = np.mean(down) + np.mean(right)
    np.testing.assert_allclose(attacks.total_variation(jnp.asarray(x)), expected, rtol=1e-12)
    assert attacks.total_variation(jnp.full((1, 4, 4, 1), 0.3))[0] == 0
    np.testing.assert_allclose(attacks.mean_square(jnp.asarray(x)), [np.mean(one**2) for one in x], rtol=1e-12)


@pytest.mark.parametrize("peak", [1.0, 2.5])
@pytest.mark.parametrize("window", [3, 7])
def test_ssim_against_the_formula(peak, window):
    x, y = peak * images(2), peak * images(2)
    y[1] = 0.8 * x[1] + 0.1 * y[1]
    c1, c2, expected = (0.01 * peak) ** 2, (0.03 * peak) ** 2, []
    for a, b in zip(x, y, strict=True):
        found = []
        for row in range(a.shape[0] - window + 1):
            for column in range(a.shape[1] - window + 1):
                for channel in range(a.shape[2]):
                    p, q = (one[row : row + window, column : column + window, channel].ravel() for one in (a, b))
                    s = np.cov(p, q)  # sample covariances
                    luminance = (2 * p.mean() * q.mean() + c1) / (p.mean() ** 2 + q.mean() ** 2 + c1)
                    found.append(luminance * (2 * s[0, 1] + c2) / (s[0, 0] + s[1, 1] + c2))
        expected.append(np.mean(found))
    got = attacks.ssim(jnp.asarray(x), jnp.asarray(y), peak=peak, window=window)
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    np.testing.assert_allclose(attacks.ssim(jnp.asarray(x), jnp.asarray(x), peak=peak, window=window), 1, rtol=1e-9)
    assert got[1] > got[0]


def test_errors_in_decibel():
    x = jnp.full((1, 3, 3, 1), 0.5)
    found = attacks.likeness(x, x + 0.1, window=3)
    assert float(found.mse[0]) == pytest.approx(0.01) and float(found.psnr[0]) == pytest.approx(20)
    assert float(attacks.psnr(x, x + 0.1, peak=10.0)[0]) == pytest.approx(40)
    assert np.isposinf(attacks.psnr(x, x)[0])


def test_windows_that_do_not_fit():
    for window in (1, 9):
        with pytest.raises(ValueError, match="window: got"):
            attacks.ssim(jnp.asarray(images(1)), jnp.asarray(images(1)), window=window)


def test_nearest_of_those_allowed():
    x, candidates = images(4), images(6)
    allowed = RANDOM.uniform(size=(4, 6)) < 0.5
    allowed[:, 2] = True
    for mask in (None, allowed):
        distances = np.array([[np.sum((a - b) ** 2) for b in candidates] for a in x])
        distances[~allowed if mask is not None else np.zeros_like(allowed)] = np.inf
        given = None if mask is None else jnp.asarray(mask)
        got = attacks.nearest(jnp.asarray(x), jnp.asarray(candidates), given)
        np.testing.assert_array_equal(got, distances.argmin(1))


def test_auc_is_the_rank_statistic():
    members, others = RANDOM.integers(0, 6, 40) + 1.0, RANDOM.integers(0, 6, 25) + 0.0  # with ties
    got = float(attacks.auc(jnp.asarray(members), jnp.asarray(others)))
    labels = np.repeat([1, 0], [40, 25])
    assert got == pytest.approx(roc_auc_score(labels, np.concatenate([members, others])))
    assert got == pytest.approx(stats.mannwhitneyu(members, others).statistic / (40 * 25))
    assert float(attacks.auc(jnp.asarray(members), jnp.asarray(members))) == 0.5


def test_distance_of_shares():
    one, other = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.0, 0.25, 0.75])
    assert float(measures.total_variation_distance(one, other)) == 0.75
    assert float(measures.total_variation_distance(one, one)) == 0
