"""How the Fisher is estimated: exactly, from drawn or given labels, against the explicit matrix; padding, batches."""

import explicit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from rows import pad_rows
from two_layers import CLASSES, LIKELIHOODS, NETWORK, N, X, apply, measure, run

import fedfisher_jax as ff
from fedfisher_jax.curvature import trace


def assert_close(one, other, rtol=1e-10):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-14)


# Exact, empirical, Monte-Carlo.


@pytest.mark.slow
@pytest.mark.parametrize("skip", [1e-12, 0.1, 0.3])
def test_skipped_columns_lower_the_exact_fisher_within_the_bound(skip):
    likelihood = ff.categorical()
    exact, found = measure(), measure(skip=skip, batch_size=2)
    assert_close(found["kronecker"].inputs, exact["kronecker"].inputs)
    lost = np.asarray(exact["full"].to_dense() - found["full"].to_dense())
    assert np.linalg.eigvalsh(lost).min() > -1e-12
    np.testing.assert_allclose(explicit.flat(found["diagonal"].values), np.diag(found["full"].to_dense()), rtol=1e-9)
    # By brute force: the most columns that may go.
    jacobian = jax.jacobian(lambda p: apply(p, X))(NETWORK)
    factors = np.asarray(jax.vmap(likelihood.fisher_factor)(apply(NETWORK, X)))
    weights = (factors**2).sum(-1).ravel()
    order = np.argsort(weights)
    gone = order[np.cumsum(weights[order]) <= skip * weights.sum()]
    flat = np.concatenate([np.asarray(leaf).reshape(N, 3, -1) for leaf in jax.tree.leaves(jacobian)], -1)
    columns = np.einsum("nkc,ncp->nkp", factors, flat).reshape(N * 3, -1)[gone]
    np.testing.assert_allclose(lost, columns.T @ columns / N, rtol=1e-8, atol=1e-12)
    assert (len(gone) > 0) == (skip > 1e-3)


def test_skipping_does_not_feel_padding_and_needs_exact():
    row, padded = jnp.arange(3), jnp.array([0, 1, 2, 4, 4, 4, 4])
    short = run(NETWORK, ff.Examples(X, CLASSES, row, jnp.asarray(3)), skip=0.1)
    assert_close(run(NETWORK, ff.Examples(X, CLASSES, padded, jnp.asarray(3)), skip=0.1), short)
    for wrong in ({"skip": 0.1, "kind": "empirical"}, {"skip": 1.0}, {"skip": -0.1}):
        with pytest.raises(ValueError, match="skip"):
            measure(**wrong)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_exact_is_the_explicit_matrix(name):
    likelihood, y = LIKELIHOODS[name]
    found = measure(likelihood=likelihood, y=y, batch_size=2)
    expected = np.asarray(explicit.fisher(apply, likelihood, NETWORK, X, y))
    np.testing.assert_allclose(found["full"].to_dense(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(explicit.flat(found["diagonal"].values), np.diag(expected), rtol=1e-9)
    np.testing.assert_allclose(explicit.flat(found["full"].diagonal()), np.diag(expected), rtol=1e-9)


def test_exact_does_not_look_at_targets():
    assert_close(measure(y=CLASSES), measure(y=CLASSES[::-1]), rtol=0)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_empirical_is_the_mean_square_of_gradients(name):
    likelihood, y = LIKELIHOODS[name]
    found = measure(likelihood=likelihood, y=y, kind="empirical", batch_size=2)
    each = np.asarray(explicit.gradients(apply, likelihood, NETWORK, X, y))
    np.testing.assert_allclose(found["full"].to_dense(), each.T @ each / N, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(explicit.flat(found["diagonal"].values), (each**2).mean(0), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_monte_carlo_converges_to_exact(name):
    """The mean of 400 independent estimates lies within five of its standard errors, for every entry."""
    likelihood, y = LIKELIHOODS[name]

    def one(key):
        return measure(("diagonal", "full"), likelihood=likelihood, y=y, kind="monte_carlo", key=key, samples=2)

    found = jax.vmap(one)(jax.random.split(jax.random.key(0), 400))
    exact = measure(likelihood=likelihood, y=y)["full"].to_dense()
    draws = np.asarray(found["full"].matrix)
    error = draws.std(0) / 20
    assert (abs(draws.mean(0) - exact) <= 5 * error + 1e-12).all()
    assert (abs(1.1 * draws.mean(0) - exact) > 5 * error).any()  # ten per cent too much would show
    diagonals = np.stack([np.diag(draw) for draw in draws])
    each = [leaf.reshape(400, -1) for leaf in jax.tree.leaves(found["diagonal"].values)]
    np.testing.assert_allclose(np.concatenate(each, 1), diagonals, rtol=1e-9, atol=1e-14)


def test_more_samples_vary_less():
    def spread(samples):
        def one(key):
            return trace(measure(("diagonal",), kind="monte_carlo", key=key, samples=samples)["diagonal"])

        return np.var(jax.vmap(one)(jax.random.split(jax.random.key(1), 400)))

    # A variance from 400 draws has a relative standard error of about 2·√(2/400) in their ratio of 16.
    assert 16 / 2 < spread(1) / spread(16) < 16 * 2


def test_monte_carlo_keys_follow_the_place_of_an_example():
    """Not the batch size, and not padding."""
    options = {"kind": "monte_carlo", "key": jax.random.key(3), "samples": 2}
    expected = measure(**options)
    assert_close(measure(batch_size=2, **options), expected)
    padded = ff.Examples(X, CLASSES, jnp.array([0, 1, 2, 3, 4, 0, 0, 0]), jnp.asarray(N))
    assert_close(run(NETWORK, padded, **options), expected)
    other = measure(**options | {"key": jax.random.key(4)})
    assert abs(float(trace(other["diagonal"]) / trace(expected["diagonal"])) - 1) > 1e-3


# Examples.


def test_masks_padding_and_batches_change_nothing():
    rows = np.array([3, 0, 4])
    expected = measure(x=X[rows], y=CLASSES[rows], kind="empirical")
    assert_close(run(NETWORK, ff.examples(X, CLASSES, mask=np.isin(np.arange(N), rows)), kind="empirical"), expected)
    for batch_size in (1, 2, 4):
        padded = ff.Examples(X, CLASSES, jnp.array([3, 0, 4, 1, 1]), jnp.asarray(3))
        assert_close(run(NETWORK, padded, kind="empirical", batch_size=batch_size), expected)


def test_padding_may_hold_anything():
    """Rows past the size that are not even finite."""
    x = X.at[1].set(jnp.nan)
    padded = ff.Examples(x, CLASSES, jnp.array([3, 0, 1, 1]), jnp.asarray(2))
    assert_close(run(NETWORK, padded), measure(x=X[jnp.array([3, 0])], y=CLASSES[jnp.array([3, 0])]))


def test_the_mean_over_examples_is_the_mean_of_their_fishers():
    parts = [measure(x=X[i : i + 1], y=CLASSES[i : i + 1]) for i in range(N)]
    whole = measure()
    for structure in ("diagonal", "full"):
        mean = jax.tree.map(lambda *leaves: sum(leaves) / N, *[part[structure] for part in parts])
        assert_close(whole[structure], mean)


def test_clients_in_one_program_equal_one_by_one():
    rows, sizes = map(jnp.asarray, pad_rows([np.array([4]), np.array([0, 1, 2]), np.array([3, 1])]))
    models = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.5 * leaf, -leaf]), NETWORK)
    keys = jax.random.split(jax.random.key(0), 3)

    def one(params, data, key):
        return run(params, data, key, kind="monte_carlo", batch_size=2)

    axes = (0, ff.Examples(None, None, 0, 0), 0)
    together = jax.vmap(one, axes)(models, ff.Examples(X, CLASSES, rows, sizes), keys)
    for i in range(3):
        params, result = jax.tree.map(lambda leaf, i=i: leaf[i], (models, together))
        assert_close(result, one(params, ff.Examples(X, CLASSES, rows[i], sizes[i]), keys[i]), rtol=1e-9)


def test_sequences_sum_over_their_positions():
    """Outputs [T, C] are T·C outputs of one example."""

    def positions(params, x):
        return jnp.tanh(x @ params["a"] + params["b"]) @ params["c"]

    params = {name: NETWORK[name] for name in "abc"}
    x, y = zoo.normal(6, 3, 5, 4), jnp.asarray(np.random.default_rng(1).integers(0, 3, (3, 5)))
    found = ff.fishers(positions, ff.categorical(), params, ff.examples(x, y), structures=("diagonal", "full"))
    flattened = ff.fishers(
        positions, ff.categorical(), params, ff.examples(x.reshape(15, 4)), structures=("diagonal", "full")
    )
    assert_close(found, jax.tree.map(lambda leaf: 5 * leaf, flattened), rtol=1e-9)


@pytest.mark.parametrize("kind", ["exact", "monte_carlo", "empirical"])
def test_everything_is_positive_semi_definite(kind):
    found = measure(kind=kind, key=jax.random.key(0))
    for fisher in found.values():
        matrix = np.asarray(fisher.to_dense())
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-14)
        values = np.linalg.eigvalsh(matrix)
        assert values[0] > -1e-12 * values[-1] and values[-1] > 0


# The face.


def test_structures_do_not_depend_on_which_others_are_asked_for():
    together = measure()
    for structure, expected in together.items():
        assert_close(measure((structure,))[structure], expected)
    alone = ff.fisher(apply, ff.categorical(), NETWORK, ff.examples(X, CLASSES), structure="kronecker")
    assert_close(alone, together["kronecker"])


def test_a_capture_can_be_handed_in():
    captured = ff.capture(apply, NETWORK, X, structured=False)
    found = ff.fishers(apply, ff.categorical(), NETWORK, ff.examples(X), captured=captured)
    assert_close(found["diagonal"], measure()["diagonal"], rtol=1e-9)
    assert set(found["kronecker"].rest) == {0, 1, 2, 3} and not found["kronecker"].layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structures": ("diag",)}, "structure.*'diag'.*diagonal, full, kronecker"),
        ({"kind": "true"}, "kind: got 'true', expected one of exact, monte_carlo, empirical"),
        ({"kind": "monte_carlo"}, "key: got None, expected a random key, since monte_carlo draws targets"),
        ({"kind": "monte_carlo", "key": jax.random.key(0), "samples": 0}, "samples: got 0, expected at least 1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        measure(**options)


def test_a_full_fisher_of_a_large_model_is_refused_before_any_work():
    params = {"w": jax.ShapeDtypeStruct((200, 200), jnp.float32)}
    with pytest.raises(ValueError, match="structure: got a full Fisher of 40000 parameters.*at most 20000"):
        ff.fisher(lambda p, x: x @ p["w"], ff.gaussian(), params, ff.examples(np.ones((2, 200))), structure="full")


def test_many_examples_of_a_bfloat16_layer():
    """The bias' entry of A is one, however many there are: a running sum in bfloat16 stops at 256 times a batch."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20_000, 5)), jnp.float32)
    params = {"b": jnp.zeros(3, jnp.float32), "w": jnp.ones((5, 3), jnp.float32)}
    found = {}
    for dtype in (jnp.bfloat16, jnp.float32):

        def apply(p, x, t=dtype):
            return (x.astype(t) @ p["w"].astype(t) + p["b"].astype(t)).astype(jnp.float32)

        options = {"structures": ("diagonal", "kronecker", "full"), "batch_size": 64}
        found[dtype] = ff.curvature.fishers(apply, ff.gaussian(), params, ff.examples(x), **options)
    narrow, wide = found[jnp.bfloat16], found[jnp.float32]
    assert narrow["kronecker"].inputs[0].dtype == jnp.float32
    np.testing.assert_allclose(narrow["kronecker"].inputs[0][-1, -1], 1, rtol=1e-6)
    for name in wide:
        for a, b in zip(jax.tree.leaves(narrow[name]), jax.tree.leaves(wide[name]), strict=True):
            np.testing.assert_allclose(a, b, atol=0.01)


def test_skipping_hides_no_nan():
    x = jnp.asarray([[1.0, 2.0], [3.0, 1.0], [jnp.nan, 0.0]])
    found = ff.fisher(lambda w, x: x @ w, ff.categorical(), jnp.ones((2, 2)), ff.examples(x), skip=0.1)
    assert jnp.isnan(found.values).any()
