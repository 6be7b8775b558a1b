import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax.theory import decomposition, inputs, matrix_free, merges, two_layer

from .common import client, dense_rows, flatten


@pytest.fixture(scope="module")
def case():
    data = inputs.gaussian(jax.random.key(2), 2, 4, 3, dtype=jnp.float64)
    start = two_layer.init(jax.random.key(1), 3, 48, jnp.float64)
    test = inputs.gaussian(jax.random.key(9), 1, 5, 3, dtype=jnp.float64)
    run = jax.jit(lambda s: decomposition.diagnose(s, data, 60, 0.5, test=test))(start)
    return start, data, run, two_layer.train(start, data, 60, 0.5)


@pytest.mark.slow
def test_losses_are_what_they_say(case):
    start, data, run, local = case
    mse = lambda p, i: float(jnp.mean((two_layer.apply(p, data.x[i]) - data.y[i]) ** 2))  # noqa: E731
    assert float(run.local_loss) == pytest.approx(np.mean([mse(client(local, i), i) for i in range(2)]), rel=1e-10)
    assert float(run.init_loss) == pytest.approx(np.mean([mse(start, i) for i in range(2)]), rel=1e-10)
    average = two_layer.Params(local.w.mean(axis=0), start.a)
    want = np.mean([mse(average, i) for i in range(2)])
    found = run.errors["average"]
    assert float(found.loss) == pytest.approx(want, rel=1e-10)
    assert float(found.excess) == pytest.approx(want - float(run.local_loss), rel=1e-8)
    gap = [two_layer.apply(average, data.x[i]) - two_layer.apply(client(local, i), data.x[i]) for i in range(2)]
    assert float(found.laplace) == pytest.approx(float(np.mean(np.square(gap))), rel=1e-10)


def test_distances_movement_and_patterns(case):
    start, data, run, local = case
    found, average = run.errors["average"], local.w.mean(axis=0)
    far = [np.linalg.norm(average - local.w[i]) for i in range(2)]
    assert float(found.to_locals) == pytest.approx(np.sqrt(np.mean(np.square(far))), rel=1e-10)
    assert float(found.movement) == pytest.approx(np.linalg.norm(average - start.w, axis=0).max(), rel=1e-10)
    moved = np.linalg.norm(local.w - start.w, axis=1)
    assert float(run.local_movement) == pytest.approx(moved.max(), rel=1e-10)
    assert float(run.mean_movement) == pytest.approx(moved.mean(), rel=1e-10)
    flips = [(data.x[i] @ local.w[i] > 0) != (data.x[i] @ start.w > 0) for i in range(2)]
    assert float(run.local_flipped) == pytest.approx(np.mean(flips), abs=1e-12)
    assert np.mean(flips) > 0
    assert float(run.errors["pooled"].to_pooled) == 0
    assert float(run.errors["pooled"].loss) == float(run.pooled_loss)


def test_eigenvalues_are_those_of_the_explicit_matrices(case):
    start, data, run, local = case
    dense = dense_rows(local, data)
    np.testing.assert_allclose(run.eigenvalues, np.linalg.eigvalsh(dense @ dense.T), rtol=1e-8)
    assert (float(run.gram_min), float(run.gram_max)) == (float(run.eigenvalues[0]), float(run.eigenvalues[-1]))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start)
    ntk = dense_rows(stacked, data._replace(weights=jnp.ones((2, 4))))
    assert float(run.ntk_min) == pytest.approx(np.linalg.eigvalsh(ntk @ ntk.T)[0], rel=1e-8)


def test_the_loss_splits_into_local_and_laplace_error(case):
    *_, run, _ = case
    for found in run.errors.values():
        assert float(found.loss) ** 0.5 <= float(run.local_loss) ** 0.5 + float(found.laplace) ** 0.5 + 1e-12


def test_full_and_kfac_reach_zero_objective_when_rows_are_independent_and_the_others_do_not(case):
    *_, run, _ = case
    assert float(run.gram_min) > 0
    assert all(float(run.errors[rule].objective) < 1e-20 for rule in ("full", "kfac"))
    assert all(float(run.errors[rule].objective) > 1e-6 for rule in ("average", "diagonal"))


def test_test_loss_is_on_the_unseen_examples(case):
    start, data, run, local = case
    test = inputs.gaussian(jax.random.key(9), 1, 5, 3, dtype=jnp.float64)
    full = merges.full(merges.full_objective(local, data))
    assert flatten(full).shape == (144,)
    want = float(jnp.mean((two_layer.apply(full, test.x[0]) - test.y[0]) ** 2))
    assert float(run.errors["full"].test_loss) == pytest.approx(want, rel=1e-8)


def padded(data, value=None):
    """Two rows of weight 0 more for every client: copies of its first example, or `value`."""

    def longer(leaf, fill):
        fill = leaf[:, :1] if fill is None else fill
        return jnp.concatenate([leaf, jnp.broadcast_to(fill, (len(leaf), 2, *leaf.shape[2:]))], axis=1)

    return two_layer.ClientData(longer(data.x, value), longer(data.y, value), longer(data.weights, 0.0))


@pytest.mark.parametrize("value", [None, 0.0, np.nan], ids=["copies", "zeros", "nan"])
def test_rows_of_weight_zero_change_nothing(case, value):
    start, data, _, _ = case
    runs = [jax.jit(decomposition.diagnose)(start, given, 60, 0.5) for given in (data, padded(data, value))]
    for (path, want), got in zip(jax.tree.leaves_with_path(runs[0]), jax.tree.leaves(runs[1]), strict=True):
        name = jax.tree_util.keystr(path)
        if name in (".eigenvalues", ".target"):  # a zero for each of the four rows
            assert name == ".target" or not np.asarray(got[:4]).any()
            want, got = np.sort(np.abs(want)), np.sort(np.abs(got))[4:]
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-12, err_msg=name)


def test_a_client_of_weight_zero_changes_nothing(case):
    start, data, _, _ = case
    more = two_layer.ClientData(*(jnp.concatenate([leaf, leaf[:1]]) for leaf in data))
    more = more._replace(weights=more.weights.at[-1].set(0.0))
    want, got = (jax.jit(decomposition.diagnose)(start, given, 60, 0.5) for given in (data, more))
    for (path, a), b in zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got), strict=True):
        name = jax.tree_util.keystr(path)
        if name not in (".eigenvalues", ".target"):  # which have a zero for each of its rows
            np.testing.assert_allclose(b, a, rtol=1e-7, atol=1e-12, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, np.nan], ids=["copies", "nan"])
def test_rows_of_weight_zero_change_nothing_of_any_network(case, value):
    start, data, _, _ = case
    apply = lambda params, x: two_layer.apply(params, x)[:, None]  # noqa: E731
    given = [d._replace(y=d.y[..., None]) for d in (data, padded(data, value))]
    want, got = (jax.jit(lambda s, d: matrix_free.diagnose(apply, s, d, 20, 0.5))(start, d) for d in given)
    assert not np.asarray(got.eigenvalues[:4]).any()
    got = got._replace(eigenvalues=got.eigenvalues[4:])
    for (path, a), b in zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-7, atol=1e-12, err_msg=jax.tree_util.keystr(path))
