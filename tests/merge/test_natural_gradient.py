"""A natural-gradient step: Newton's where the curvature is exact, the same for every split, and no longer than said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedfisher_jax as ff
from fedfisher_jax._examples import pad_rows
from fedfisher_jax.curvature import quadratic
from fedfisher_jax.merge import natural_gradient

KEY, RNG = jax.random.key(0), np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(30, 5)))
TARGETS, LABELS = jnp.asarray(RNG.normal(size=(30, 3))), jnp.asarray(RNG.integers(0, 3, 30))
SPLITS = ([np.arange(30)], [np.arange(4), np.arange(4, 5), np.arange(5, 30)])
START = {"b": jnp.asarray(RNG.normal(size=3)), "w": jnp.asarray(RNG.normal(size=(5, 3)))}
DEEP = {"v": jnp.asarray(RNG.normal(size=(4, 3))), "w": jnp.asarray(RNG.normal(size=(5, 4)))}


def linear(params, x):
    return x @ params["w"] + params["b"]


def deep(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def merged(rule, y, start, parts):
    rows, sizes = map(jnp.asarray, pad_rows(parts))
    measure = jax.jit(lambda row, size: rule.measure(ff.Update(None, start), ff.Examples(X, y, row, size), KEY))
    return ff.merge_payloads(rule, [measure(row, size) for row, size in zip(rows, sizes, strict=True)], start)


@pytest.mark.parametrize("parts", SPLITS, ids=["pooled", "split"])
def test_a_full_step_of_a_linear_model_is_least_squares(parts):
    rule = natural_gradient(linear, ff.gaussian(), damping=0.0, radius=float("inf"))
    found = merged(rule, TARGETS, START, parts).params
    expected = np.linalg.lstsq(np.concatenate([X, np.ones((30, 1))], 1), TARGETS, rcond=None)[0]
    np.testing.assert_allclose(np.concatenate([found["w"], found["b"][None]]), expected, atol=1e-9)


def test_every_split_makes_the_same_step():
    rule = natural_gradient(deep, ff.categorical())
    one, other = (merged(rule, LABELS, DEEP, parts).params for parts in SPLITS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), one, other)


def test_the_step_follows_the_gradient_and_keeps_to_the_radius():
    """Against jax.grad and an explicit damped Kronecker inverse."""
    rule = natural_gradient(deep, ff.categorical(), damping=0.1, radius=1e-3)
    found = merged(rule, LABELS, DEEP, SPLITS[1])
    data = ff.examples(X, LABELS)
    nll = jax.vmap(ff.categorical().nll)
    slope = jax.grad(lambda p: nll(deep(p, X), LABELS).mean())(DEEP)
    fisher = ff.fisher(deep, ff.categorical(), DEEP, data, structure="kronecker")
    dense = np.asarray(fisher.to_dense())
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(DEEP)])
    shift = np.concatenate([np.full(len(part), 0.1 * part.mean()) for part in np.split(np.diag(dense), ends[:-1])])
    direction = np.linalg.solve(dense + np.diag(shift), flat(slope))
    change = direction @ dense @ direction / 2
    size = min(1.0, np.sqrt(1e-3 / change))
    np.testing.assert_allclose(flat(DEEP) - flat(found.params), size * direction, rtol=1e-7)
    moved = jax.tree.map(jnp.subtract, found.params, DEEP)
    assert float(quadratic(fisher, moved)) / 2 == pytest.approx(1e-3) and size < 1
    before, after = (float(ff.evaluate(deep, ff.categorical(), p, X, LABELS).loss) for p in (DEEP, found.params))
    assert after < before


def test_settings_that_do_not_work():
    with pytest.raises(ValueError, match="damping, radius: got -1"):
        natural_gradient(deep, ff.categorical(), damping=-1.0)
    with pytest.raises(ValueError, match="damping, radius: got 0.1, 0"):
        natural_gradient(deep, ff.categorical(), damping=0.1, radius=0.0)
