from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedfisher_jax as ff
from experiments.fedfish import ngram

V = 5
X = np.random.default_rng(0).integers(0, V - 1, (7, 6))  # token 4 never occurs in x
Y = (X * X + np.random.default_rng(1).integers(0, 2, X.shape)) % V


def score(apply, params, x, y):
    return ff.evaluate(apply, ff.categorical(), params, jnp.asarray(x), jnp.asarray(y))


def test_probabilities_are_smoothed_shares():
    p = np.exp(ngram.fit_unigram(Y, V))
    counts = Counter(Y.ravel().tolist())
    np.testing.assert_allclose(p, [(counts[token] + 1) / (Y.size + V) for token in range(V)], rtol=1e-6)
    pairs = Counter(zip(X.ravel().tolist(), Y.ravel().tolist(), strict=True))
    table = np.exp(ngram.fit_bigram(X, Y, V, smoothing=0.5))
    for before in range(V):
        seen = sum(pairs[before, token] for token in range(V))
        expected = [(pairs[before, token] + 0.5 * p[token]) / (seen + 0.5) for token in range(V)]
        np.testing.assert_allclose(table[before], expected, rtol=1e-6)
    np.testing.assert_allclose(table[4], p, rtol=1e-6)


def test_accuracy_is_that_of_the_commonest_next_token():
    new_x, new_y = X[::-1, ::-1], Y[::-1, ::-1]
    commonest = Counter(Y.ravel().tolist()).most_common(1)[0][0]
    found = score(ngram.unigram, ngram.fit_unigram(Y, V), new_x, new_y)
    assert float(found.accuracy) == pytest.approx((new_y == commonest).mean())
    after = {b: Counter(Y[X == b].tolist()).most_common(1)[0][0] for b in range(V - 1)}
    found = score(ngram.bigram, ngram.fit_bigram(X, Y, V, 1e-3), new_x, new_y)
    assert float(found.accuracy) == pytest.approx(
        np.mean([after[b] == t for b, t in zip(new_x.ravel().tolist(), new_y.ravel().tolist(), strict=True)])
    )


def test_the_fit_minimises_the_loss():
    """No other table is better on the text that it was fitted on, once smoothing is gone."""
    fitted = ngram.fit_bigram(X, Y, V, smoothing=1e-9)
    best = float(score(ngram.bigram, fitted, X, Y).loss)
    for seed in range(5):
        other = fitted + 0.1 * jax.random.normal(jax.random.key(seed), fitted.shape)
        assert float(score(ngram.bigram, other, X, Y).loss) > best
    assert best < float(score(ngram.unigram, ngram.fit_unigram(Y, V, 1e-9), X, Y).loss)


def test_a_token_never_seen_is_possible():
    losses = score(ngram.bigram, ngram.fit_bigram(X, Y, V + 1), np.full((1, 2), V), np.full((1, 2), V))
    assert np.isfinite(losses.loss)


@pytest.mark.parametrize(
    ("x", "y", "smoothing", "message"),
    [
        (X, Y, 0.0, "smoothing: got 0.0"),
        (X + 2, Y, 1.0, "x: got tokens from 2 to 5, expected 0 to 4"),
        (X, Y * 1.0, 1.0, "y: expected integer tokens"),
        (X, Y[:, :0], 1.0, "y: expected integer tokens, got shape"),
        (X, Y[:3], 1.0, r"y: got shape \(3, 6\), expected that of x"),
    ],
)
def test_bad_input_is_named(x, y, smoothing, message):
    with pytest.raises(ValueError, match=message):
        ngram.fit_bigram(x, y, V, smoothing)


def test_the_network_reads_the_last_tokens_alone():
    """By a loop over positions; before the first token are zeros."""
    made = ngram.network(5, 2, tokens=3)
    params = made.init(jax.random.key(0))
    x = np.asarray([[1, 4, 0, 2], [3, 3, 1, 0]])
    found = made.apply(params, x)
    for row, line in enumerate(x):
        for place in range(4):
            read = [params["embedding"][line[n]] if n >= 0 else jnp.zeros(2) for n in range(place - 2, place + 1)]
            expected = jnp.tanh(jnp.concatenate(read) @ params["hidden"]) @ params["out"]
            np.testing.assert_allclose(found[row, place], expected, rtol=1e-5, atol=1e-6)
