import numpy as np
import pytest

from fedfisher_jax.theory import scaling

WIDTHS = 2.0 ** np.arange(6, 12)


@pytest.mark.parametrize("fit", [scaling.loglog_slope, scaling.curve_slope])
def test_an_exact_power_law_is_found_exactly(fit):
    found = fit(WIDTHS, 3 * WIDTHS[:, None] ** -0.7 * np.array([1.0, 1.0, 1.0]))
    assert [found.mean, found.low, found.high] == pytest.approx([-0.7] * 3)
    assert found.prefactor == pytest.approx(3)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        noise = np.exp(0.3 * rng.standard_normal((len(WIDTHS), 6)))
        found = scaling.loglog_slope(WIDTHS, WIDTHS[:, None] ** -1 * noise)
        hits += found.low <= -1 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_the_mean_curve_follows_rare_large_values_and_typical_runs_do_not():
    y = np.repeat(WIDTHS[:, None] ** -1.0, 10, axis=1)
    y[:, 0] = 100 * WIDTHS**-0.5
    assert scaling.curve_slope(WIDTHS, y).mean > -0.6
    assert scaling.loglog_slope(WIDTHS, y).mean == pytest.approx(-0.95)


def test_values_that_have_no_logarithm_are_refused():
    with pytest.raises(ValueError, match="positive"):
        scaling.loglog_slope(WIDTHS, np.zeros((len(WIDTHS), 3)))
    with pytest.raises(ValueError, match="at least two"):
        scaling.loglog_slope(WIDTHS, np.ones((len(WIDTHS), 1)))


@pytest.mark.parametrize(
    ("x", "y", "more", "words"),
    [
        ([1, 2], [[1.0], [2.0]], {}, "at least two of each"),
        ([1, 2], [1.0, 2.0], {}, "at least two of each"),
        ([1, 2], [[1.0, 1.0], [2.0, 2.0]], {"confidence": 95.0}, "confidence: got 95"),
        ([2, 2], [[1.0, 1.0], [2.0, 2.0]], {}, "x that differ"),
        ([1, 2], [[1.0, 1.0], [2.0, np.inf]], {}, "finite values"),
    ],
)
@pytest.mark.parametrize("slope", [scaling.loglog_slope, scaling.curve_slope])
def test_no_interval_of_what_tells_none(slope, x, y, more, words):
    with pytest.raises(ValueError, match=words):
        slope(np.asarray(x), np.asarray(y), **more)
