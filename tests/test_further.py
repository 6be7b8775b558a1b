"""What else is said of predictions, against sums by hand."""

import jax
import numpy as np
import pytest

import fedfisher_jax as ff
from fedfisher_jax._further import further_scores, rmse_of


def test_classes():
    y = np.array([0, 0, 1, 1, 1])
    outputs = np.array([[2.0, 0, 0], [0, 1, 0], [0, 3, 0], [0, 1, 0.5], [1, 0, 0]])
    found = further_scores(ff.categorical(), outputs, y)
    assert found["confusion"] == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert found["accuracy_by_class"] == [0.5, pytest.approx(2 / 3), None]
    p = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)

    def by_pairs(c):
        pairs = [(a > b) + (a == b) / 2 for a in p[y == c, c] for b in p[y != c, c]]
        return np.mean(pairs)

    assert found["auc"] == pytest.approx((by_pairs(0) + by_pairs(1)) / 2)  # no example of class 2
    assert "auc" not in further_scores(ff.categorical(), outputs[:2], y[:2])
    assert further_scores(ff.categorical(), outputs[None], y[None]) == {}


def test_labels_of_a_narrow_type_do_not_wrap():
    y = np.arange(100, dtype=np.uint8)
    assert further_scores(ff.categorical(), np.eye(100), y)["confusion"] == np.eye(100, dtype=int).tolist()


def test_labels_and_numbers():
    y = np.array([[1, 0], [0, 0], [1, 0]])
    outputs = np.array([[0.5, 0], [0.2, 0], [0.1, 0]])
    assert further_scores(ff.bernoulli(), outputs, y) == {"auc": 0.5}  # the second label has one kind of examples
    errors = np.array([[3.0], [-4.0]])
    assert further_scores(ff.gaussian(), errors, np.zeros(2))["rmse"] == pytest.approx(rmse_of(25 / 4, 1))
    assert rmse_of(12.5 / 2, 1) == pytest.approx(np.sqrt(12.5))


def test_one_target_may_lack_its_axis():
    """Losses, gradients and merges are those of targets [n, 1]."""
    x, y = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32), np.arange(6.0, dtype=np.float32)
    for family, targets in ((ff.gaussian(), y), (ff.bernoulli(), (y > 2).astype(np.int32))):
        apply, params = (lambda w, x: x @ w), np.ones((3, 1), np.float32)
        rule = ff.fedfisher(apply, family, kind="empirical")
        both = []
        for given in (targets, targets[:, None]):
            loss = ff.evaluate(apply, family, params, x, given).loss
            sent = rule.measure(ff.Update(params), ff.examples(x, given), jax.random.key(0))
            both.append((loss, sent.statistics))
        np.testing.assert_array_equal(both[0][0], both[1][0])
        jax.tree.map(np.testing.assert_array_equal, both[0][1], both[1][1])
    with pytest.raises(ValueError, match=r"y: got shape \(6,\)"):
        ff.evaluate(lambda w, x: x @ w, ff.gaussian(), np.ones((3, 2), np.float32), x, y)
