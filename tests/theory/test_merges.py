import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax.theory import decomposition, merges, sample_space
from fedfisher_jax.theory import rows as fisher

from .common import client, dense_rows, dense_solution, flatten, full_objective, merge, problem

WIDTHS = [2, 6, 40]  # under-parameterised (6 weights, 8 rows), a little over, far over


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("train_output", [False, True])
def test_full_is_the_dense_pseudo_inverse_solution(width, train_output):
    _, local, data = problem(width, train_output=train_output)
    want, *_ = dense_solution(local, data, train_output=train_output)
    got = flatten(merges.full(full_objective(local, data, "ntk", train_output)), train_output)
    assert np.linalg.norm(got - want) <= 1e-8 * np.linalg.norm(want)


def descend(total, right, steps, step_size):
    """Explicit gradient descent on ½Q in parameter space, relative to the average."""
    body = lambda _, d: d - step_size * (total @ d - right)  # noqa: E731
    return np.asarray(jax.jit(lambda d: jax.lax.fori_loop(0, steps, body, d))(jnp.zeros(len(right))))


def test_full_is_the_limit_of_a_hundred_thousand_gradient_steps():
    _, local, data = problem(12, examples=3)
    _, mean, total, right = dense_solution(local, data)
    problem_ = full_objective(local, data)
    assert float(problem_.spectrum.values[0] / problem_.spectrum.values[-1]) > 2e-4  # or 10⁵ steps are not the limit
    step = float(sample_space.largest_step(problem_.spectrum))
    want = mean + descend(jnp.asarray(total), jnp.asarray(right), 100_000, step)
    got = flatten(merges.full(problem_))
    assert np.linalg.norm(got - want) <= 1e-8 * np.linalg.norm(want)


@pytest.mark.parametrize("steps", [1, 7, 300])
@pytest.mark.parametrize("width", WIDTHS)
def test_iterates_equal_an_explicit_loop(width, steps):
    _, local, data = problem(width)
    _, mean, total, right = dense_solution(local, data)
    problem_ = full_objective(local, data)
    step = float(sample_space.largest_step(problem_.spectrum))
    u = sample_space.iterate(problem_.spectrum, step, steps)
    want = descend(jnp.asarray(total), jnp.asarray(right), steps, step)
    got = flatten(merges.place(problem_, u)) - mean
    np.testing.assert_allclose(got, want, atol=1e-11 * np.abs(want).max())
    assert float(sample_space.distance(problem_.spectrum, u)) == pytest.approx(np.linalg.norm(want), rel=1e-10)


def test_objective_is_the_weighted_sum_over_clients():
    _, local, data = problem(2)
    rows = dense_rows(local, data).reshape(2, 4, -1)
    problem_ = full_objective(local, data)
    u = jax.random.normal(jax.random.key(0), (8,))
    theta = flatten(merges.place(problem_, u))
    want = sum(np.sum((rows[i] @ (theta - flatten(client(local, i)))) ** 2) for i in range(2))
    assert float(sample_space.objective(problem_.spectrum, u)) == pytest.approx(want, rel=1e-10)


def test_null_space_stays_at_the_average():
    _, local, data = problem(40)
    problem_ = full_objective(local, data)
    _, _, right = np.linalg.svd(dense_rows(local, data))
    null = right[8:]  # [P − R, P]
    for u in (sample_space.minimiser(problem_.spectrum), sample_space.iterate(problem_.spectrum, 0.3, 50)):
        moved = flatten(merges.place(problem_, u)) - flatten(problem_.average)
        assert np.linalg.norm(moved) > 1e-3
        assert np.abs(null @ moved).max() < 1e-12


def test_kfac_and_diagonal_solve_their_dense_systems():
    _, local, data = problem(5)
    problem_ = full_objective(local, data)
    thetas = np.stack([flatten(client(local, i)) for i in range(2)])
    mean = thetas.mean(axis=0)
    rows = dense_rows(local, data).reshape(2, 4, -1)
    diagonals = (rows**2).sum(axis=1)
    seen = diagonals.sum(axis=0) > 0
    want = np.where(seen, (diagonals * thetas).sum(axis=0) / np.where(seen, diagonals.sum(axis=0), 1), mean)
    np.testing.assert_allclose(flatten(merges.diagonal(problem_, local)), want, rtol=1e-10)
    left = np.asarray(problem_.rows.left)
    x = np.asarray(data.x)
    blocks = [np.kron(x[i].T @ x[i] / 4, left[i].T @ left[i]) for i in range(2)]
    total = sum(blocks)
    right = sum(b @ t for b, t in zip(blocks, thetas, strict=True)) - total @ mean
    want = mean + np.linalg.pinv(total, rcond=1e-12, hermitian=True) @ right
    got = flatten(merges.kfac(problem_, local, data))
    assert np.linalg.norm(got - want) <= 1e-8 * np.linalg.norm(want)


def test_kfac_output_layer_is_its_full_block():
    _, local, data = problem(5, train_output=True)
    problem_ = full_objective(local, data, "ntk", True)
    rows = dense_rows(local, data, train_output=True)[:, -5:].reshape(2, 4, 5)
    fishers = np.einsum("inp,inq->ipq", rows, rows)
    mean, total = np.asarray(local.a).mean(axis=0), fishers.sum(axis=0)
    right = np.einsum("ipq,iq->p", fishers, np.asarray(local.a)) - total @ mean
    want = mean + np.linalg.pinv(total, rcond=1e-12, hermitian=True) @ right
    np.testing.assert_allclose(merges.kfac(problem_, local, data).a, want, rtol=1e-7)


@pytest.mark.parametrize("rule", merges.RULES)
def test_one_client_and_equal_clients_return_their_model(rule):
    _, local, data = problem(6, num_clients=1)
    got = merge(rule, full_objective(local, data), local, data)
    np.testing.assert_allclose(got.w, local.w[0], atol=1e-12)
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), (local, data))
    local2, data2 = twice[0], twice[1]._replace(weights=twice[1].weights / 2)
    got = merge(rule, full_objective(local2, data2), local2, data2)
    np.testing.assert_allclose(got.w, local.w[0], atol=1e-9)


@pytest.mark.parametrize("rule", merges.RULES)
def test_the_order_of_clients_does_not_matter(rule):
    _, local, data = problem(6, num_clients=3)
    order = jnp.array([2, 0, 1])
    shuffled = jax.tree.map(lambda leaf: leaf[order], (local, data))
    a = merge(rule, full_objective(local, data), local, data)
    b = merge(rule, full_objective(*shuffled), *shuffled)
    np.testing.assert_allclose(a.w, b.w, atol=1e-9)


@pytest.mark.parametrize("rule", merges.RULES)
def test_padded_examples_do_not_matter(rule):
    _, local, data = problem(6)
    pad = lambda leaf: jnp.pad(leaf, ((0, 0), (0, 2)) + ((0, 0),) * (leaf.ndim - 2))  # noqa: E731
    padded = data._replace(x=pad(data.x) + 0, y=pad(data.y), weights=pad(data.weights))
    a = merge(rule, full_objective(local, data), local, data)
    b = merge(rule, full_objective(local, padded), local, padded)
    np.testing.assert_allclose(a.w, b.w, atol=1e-9)


def test_progress_per_eigendirection_is_what_descent_does():
    _, local, data = problem(40)
    problem_ = full_objective(local, data)
    spec = problem_.spectrum
    gap = decomposition.descent_gap(problem_, 0.3, 25)
    limit = fisher.push(problem_.rows, jax.tree.map(jnp.subtract, merges.full(problem_), problem_.average))
    at = merges.place(problem_, sample_space.iterate(spec, 0.3, 25))
    reached = fisher.push(problem_.rows, jax.tree.map(jnp.subtract, at, problem_.average))
    left = spec.vectors.T @ (limit - reached).reshape(-1)
    np.testing.assert_allclose(left, gap["remaining"] * (spec.vectors.T @ limit.reshape(-1)), atol=1e-12)
    assert float(gap["distance"]) == pytest.approx(
        float(jnp.sqrt(decomposition.squared_norm(jax.tree.map(jnp.subtract, at, merges.full(problem_))))), rel=1e-8
    )
    assert float(gap["objective"]) == pytest.approx(float(jnp.sum(left**2)), rel=1e-8)


def test_rules_are_checked():
    _, local, data = problem(6)
    with pytest.raises(ValueError, match="got 'fisher', expected one of full, kfac, diagonal, average"):
        merges.merge("fisher", full_objective(local, data), local, data)
