"""Eigenpairs found without a matrix, against those of the explicit one; algebra and recompression."""

import dataclasses
from functools import partial

import explicit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from rows import pad_rows

import fedfisher_jax as ff
from fedfisher_jax._examples import take
from fedfisher_jax.curvature import (
    Fisher,
    LowRank,
    Subspace,
    _kept_rows,
    num_bytes,
    quadratic,
    recompress,
    top_eigenpairs,
    trace,
)

N, KEY = 12, jax.random.key(0)
PARAMS = {"a": zoo.normal(0, 4, 5) * 2, "b": zoo.normal(1, 5), "c": zoo.normal(2, 5, 3), "scale": 1 + zoo.normal(3, 3)}
SIZES = [20, 5, 15, 3]
X = zoo.normal(4, N, 4) * 6
CLASSES = jnp.asarray(np.random.default_rng(0).integers(0, 3, N))
LIKELIHOODS = {
    "categorical": (ff.categorical(), CLASSES),
    "gaussian": (ff.gaussian(0.5), zoo.normal(5, N, 3)),
    "bernoulli": (ff.bernoulli(), jnp.asarray(np.random.default_rng(1).integers(0, 2, (N, 3)))),
}


def apply(params, x):
    return (jnp.tanh(x @ params["a"] + params["b"]) @ params["c"]) * params["scale"]


def head(path):
    return path in ("['c']", "['scale']")


@partial(jax.jit, static_argnames=("likelihood", "subspace", "kind", "samples", "batch_size"))
def find(params, data, key=KEY, *, likelihood=ff.categorical(), subspace=Subspace(), **options):
    return top_eigenpairs(apply, likelihood, params, data, key, subspace=subspace, **options)


@pytest.fixture(scope="module")
def dense():
    """The explicit Fisher of each likelihood."""
    return {n: np.asarray(explicit.fisher(apply, c, PARAMS, X, y)) for n, (c, y) in LIKELIHOODS.items()}


# Eigenpairs.


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_eigenpairs_are_those_of_the_dense_matrix(name, dense):
    likelihood, y = LIKELIHOODS[name]
    data = ff.examples(X, y)
    found = find(PARAMS, data, likelihood=likelihood, subspace=Subspace(rank=5, power_steps=2), batch_size=5)
    values, vectors = np.linalg.eigh(dense[name])
    values, vectors = values[::-1][:5], vectors[:, ::-1][:, :5]
    assert values[4] > 1e-6 * values[0]
    np.testing.assert_allclose(found.fisher.values, values, rtol=1e-3)
    mine = np.concatenate([u.reshape(5, -1) for _, u in sorted(found.fisher.vectors.items())], 1).T
    np.testing.assert_allclose(mine.T @ mine, np.eye(5), atol=1e-10)
    residuals = np.linalg.norm(dense[name] @ mine - mine * np.asarray(found.fisher.values), axis=0)
    np.testing.assert_allclose(found.residuals, residuals, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(abs(np.sum(mine * vectors, 0)), 1, atol=1e-2)


def test_full_rank_is_the_dense_matrix(dense):
    found = find(PARAMS, ff.examples(X), subspace=Subspace(rank=sum(SIZES)))
    np.testing.assert_allclose(found.fisher.to_dense(), dense["categorical"], rtol=1e-8, atol=1e-10)
    assert float(found.residuals.max()) < 1e-10


def test_power_steps_and_oversampling_help(dense):
    values = np.linalg.eigvalsh(dense["gaussian"])[::-1][:5]

    def errors(**options):
        run = partial(find, likelihood=ff.gaussian(0.5), subspace=Subspace(rank=5, **options))
        found = jax.vmap(lambda key: run(PARAMS, ff.examples(X), key))(jax.random.split(KEY, 20))
        assert (found.fisher.values <= values * (1 + 1e-9)).all()  # Rayleigh–Ritz values are never too large
        return np.median(abs(found.fisher.values / values - 1).max(1)), np.median(found.residuals.max(1))

    plain, more, wider = (errors(oversampling=2, power_steps=0), errors(oversampling=2), errors(power_steps=0))
    assert more[0] < plain[0] / 3 and more[1] < plain[1] and wider[0] < plain[0] / 3 and wider[1] < plain[1]


@pytest.mark.parametrize("kind", ["empirical", "monte_carlo"])
def test_other_kinds_are_those_of_the_full_fisher(kind):
    options = {"kind": kind, "samples": 2, "key": jax.random.key(7), "subspace": Subspace(rank=sum(SIZES))}
    structures = ("full", "low_rank")
    run = jax.jit(lambda data: ff.fishers(apply, ff.categorical(), PARAMS, data, structures=structures, **options))
    found = run(ff.examples(X, CLASSES))
    np.testing.assert_allclose(found["low_rank"].to_dense(), found["full"].to_dense(), rtol=1e-8, atol=1e-10)


def test_a_subset_of_the_parameters(dense):
    found = find(PARAMS, ff.examples(X), subspace=Subspace(rank=18, where=head)).fisher
    inside = np.repeat([False, False, True, True], SIZES)
    expected = np.where(inside[:, None] & inside, dense["categorical"], 0)
    np.testing.assert_allclose(found.to_dense(), expected, rtol=1e-8, atol=1e-10)
    assert set(found.vectors) == {2, 3} and found.blocks() == ((2, 3), (0,), (1,))
    assert num_bytes(found) == 8 * 18 * (1 + 18)


def test_batches_and_padding_change_nothing():
    expected = find(PARAMS, ff.examples(X[:3]), subspace=Subspace(rank=4))
    x = X.at[5].set(jnp.nan)
    padded = ff.Examples(x, CLASSES, jnp.array([0, 1, 2, 5, 5]), jnp.asarray(3))
    again = find(PARAMS, padded, subspace=Subspace(rank=4), batch_size=2)
    np.testing.assert_allclose(again.fisher.to_dense(), expected.fisher.to_dense(), rtol=1e-9, atol=1e-12)


def test_clients_in_one_program_equal_one_by_one():
    rows, sizes = map(jnp.asarray, pad_rows([np.array([4]), np.array([0, 1, 2, 3]), np.array([3, 1])]))
    models = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.5 * leaf, -leaf]), PARAMS)
    keys = jax.random.split(KEY, 3)
    run = partial(find, subspace=Subspace(rank=3, where=head), batch_size=2)
    together = jax.vmap(run, (0, ff.Examples(None, None, 0, 0), 0))(
        models, ff.Examples(X, CLASSES, rows, sizes), keys
    ).fisher
    v = jax.tree.map(jnp.ones_like, PARAMS)
    moved = jax.vmap(lambda fisher: fisher.matvec(v))(together)
    for i in range(3):
        params, one, result = jax.tree.map(lambda leaf, i=i: leaf[i], (models, together, moved))
        alone = run(params, ff.Examples(X, CLASSES, rows[i], sizes[i]), keys[i]).fisher
        np.testing.assert_allclose(one.to_dense(), alone.to_dense(), rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(explicit.flat(result), explicit.flat(alone.matvec(v)), rtol=1e-8, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("covered", [None, (0, 1, 3)], ids=["all", "some"])
def test_rows_kept_pulled_back_again_or_never_written_give_the_same_pairs(covered, monkeypatch):
    """A convolution's rows are written out, a dense layer's are factors, a scale's are gradients of its own."""

    def convolved(params, x):
        images = jnp.tanh(jax.lax.conv(x, params["kernel"], (1, 1), "SAME")) * params["scale"][:, None, None]
        return images.reshape(len(x), -1) @ params["weight"] + params["bias"]

    kernel, scale = zoo.normal(0, 2, 1, 3, 3), 1 + zoo.normal(1, 2)
    params = {"bias": zoo.normal(2, 3), "kernel": kernel, "scale": scale, "weight": zoo.normal(3, 32, 3)}
    data = ff.Examples(zoo.normal(4, 20, 1, 4, 4), jnp.zeros(20, int), jnp.arange(20), jnp.asarray(17))
    subspace, found, seen = Subspace(5, 5, 2, covered), [], []
    monkeypatch.setattr(_kept_rows, "take", lambda *given: seen.append(0) or take(*given))
    for room in (2**20, 2**14, 0):
        monkeypatch.setattr(_kept_rows, "ROOM", room)
        seen.clear()
        run = jax.jit(lambda *given: top_eigenpairs(convolved, ff.categorical(), *given, KEY, subspace=subspace))
        found.append((run(params, data).fisher.to_dense(), len(seen)))
    kept, again, never = found
    assert kept[1] < again[1] and never[1] == 1  # once for shapes; then in one loop, or in one for each product
    np.testing.assert_allclose(kept[0], never[0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(again[0], never[0], rtol=1e-6, atol=1e-9)
    flat, tree = jax.flatten_util.ravel_pytree(params)
    outputs = jax.vmap(lambda x: convolved(params, x[None])[0])(data.x[:17])
    jacobians = jax.vmap(lambda x: jax.jacobian(lambda p: convolved(tree(p), x[None])[0])(flat))(data.x[:17])
    rows = jax.vmap(ff.categorical().fisher_factor)(outputs) @ jacobians
    inside = np.repeat([covered is None or n in covered for n in range(4)], [3, 18, 2, 96])
    explicit_one = jnp.einsum("nkd,nke->de", rows, rows) / 17 * inside[:, None] * inside
    values = np.linalg.eigvalsh(explicit_one)[::-1][:5]
    np.testing.assert_allclose(np.linalg.eigvalsh(kept[0])[::-1][:5], values, rtol=1e-2)


# Algebra.


def build(seed, rank=3, covered=(0, 2)):
    """A random one over two leaves."""
    shapes = tuple(leaf.shape for leaf in jax.tree.leaves(PARAMS))
    sizes = [int(np.prod(shapes[leaf])) for leaf in covered]
    basis = jnp.linalg.qr(zoo.normal(seed, sum(sizes), rank))[0].T
    parts = np.split(np.asarray(basis), np.cumsum(sizes)[:-1], axis=1)
    vectors = {leaf: jnp.asarray(part.reshape(rank, *shapes[leaf])) for leaf, part in zip(covered, parts, strict=True)}
    values = jnp.sort(zoo.normal(seed + 1, rank) ** 2)[::-1]
    return LowRank(values, vectors, shapes, jax.tree.structure(PARAMS))


def stack(fishers):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *fishers)


def test_algebra_agrees_with_the_dense_matrix():
    fisher, v = build(0), jax.tree.map(lambda leaf: zoo.normal(9, *leaf.shape), PARAMS)
    matrix, flat = np.asarray(fisher.to_dense()), explicit.flat(v)
    assert isinstance(fisher, Fisher)
    assert jax.tree.structure(fisher.matvec(v)) == jax.tree.structure(fisher.diagonal()) == jax.tree.structure(PARAMS)
    np.testing.assert_allclose(explicit.flat(fisher.matvec(v)), matrix @ flat, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(explicit.flat(fisher.diagonal()), np.diag(matrix), rtol=1e-10, atol=1e-14)
    assert float(quadratic(fisher, v)) == pytest.approx(flat @ matrix @ flat, rel=1e-10)
    assert float(trace(fisher)) == pytest.approx(np.trace(matrix), rel=1e-10)
    np.testing.assert_allclose(fisher.scale(2.5).to_dense(), 2.5 * matrix, rtol=1e-12, atol=1e-15)
    values = np.linalg.eigvalsh(matrix)[::-1]
    np.testing.assert_allclose(values[:3], fisher.values, rtol=1e-10)
    assert abs(values[3:]).max() < 1e-14
    np.testing.assert_array_equal(explicit.block_diagonal(matrix, fisher, PARAMS), matrix)
    assert jax.tree.structure(jax.jit(lambda f: f.scale(1.0))(fisher)) == jax.tree.structure(build(5))


def test_parameters_of_another_precision():
    fisher, v = build(0), jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
    moved = fisher.matvec(v)
    assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(explicit.flat(moved), explicit.flat(fisher.matvec(PARAMS)), rtol=1e-5, atol=1e-6)


# Many as one.


def test_recompression_keeps_the_largest_eigenpairs_and_tells_what_it_drops():
    fishers, weights = [build(seed, 4) for seed in (0, 10, 20)], jnp.array([0.2, 1.5, 0.7])
    matrix = sum(w * np.asarray(f.to_dense()) for w, f in zip(weights, fishers, strict=True))
    values, vectors = np.linalg.eigh(matrix)
    for rank in (5, 11, 40):
        found, dropped = jax.jit(recompress, static_argnums=2)(stack(fishers), weights, rank)
        kept = vectors[:, -rank:] * values[-rank:] @ vectors[:, -rank:].T if rank < 12 else matrix
        np.testing.assert_allclose(found.to_dense(), kept, rtol=1e-8, atol=1e-12)
        assert found.values.shape == (min(rank, 12),) and found.shapes == fishers[0].shapes
        assert float(dropped) == pytest.approx(np.trace(matrix - np.asarray(found.to_dense())), rel=1e-8, abs=1e-12)
        gap = np.linalg.eigvalsh(matrix - np.asarray(found.to_dense()))
        assert gap[0] > -1e-12 and gap[-1] <= float(dropped) + 1e-12


def test_recompression_of_equal_clients_is_that_client():
    found, dropped = recompress(stack([build(0)] * 5), jnp.full(5, 0.2), 3)
    np.testing.assert_allclose(found.to_dense(), build(0).to_dense(), rtol=1e-10, atol=1e-14)
    assert float(dropped) < 1e-12


def test_more_eigenpairs_than_parameters():
    wide = [build(seed, 18, (2, 3)) for seed in (0, 10)]
    found, dropped = recompress(stack(wide), jnp.ones(2), 30)
    assert found.values.shape == (18,) and float(dropped) == 0
    np.testing.assert_allclose(found.to_dense(), sum(f.to_dense() for f in wide), rtol=1e-8, atol=1e-12)


# Refusals.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank: got 0, expected 1 to the 43 parameters"),
        ({"rank": 19, "where": head}, "rank: got 19, expected 1 to the 18 parameters"),
        ({"oversampling": -1}, "oversampling: got -1"),
        ({"power_steps": -1}, "power_steps: got -1"),
        ({"where": lambda path: False}, r"where: .* none of \['a'\], \['b'\], \['c'\], \['scale'\]"),
    ],
)
def test_bad_subspaces_are_named(changes, message):
    subspace = dataclasses.replace(Subspace(), **changes)
    with pytest.raises(ValueError, match=message):
        ff.fisher(apply, ff.categorical(), PARAMS, ff.examples(X), structure="low_rank", key=KEY, subspace=subspace)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": None}, "key: got None, expected a random key, since low_rank starts"),
        ({"kind": "best"}, "kind: got 'best'"),
        ({"skip": 0.1}, "skip: got 0.1 with low_rank"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ff.fisher(apply, ff.categorical(), PARAMS, ff.examples(X), **{"structure": "low_rank", "key": KEY} | options)


def test_recompression_checks_its_arguments():
    with pytest.raises(ValueError, match="rank: got 0"):
        recompress(stack([build(0)]), jnp.ones(1), 0)
    with pytest.raises(ValueError, match=r"weights: got shape \(2,\), expected \(1,\)"):
        recompress(stack([build(0)]), jnp.ones(2), 1)
