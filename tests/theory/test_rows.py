import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax.theory import rows as fisher
from fedfisher_jax.theory.two_layer import Params

from .common import dense_rows, flatten, problem

CASES = [("ntk", False), ("ntk", True), ("mean_field", False), ("mean_field", True)]


@pytest.mark.parametrize(("scaling", "train_output"), CASES)
def test_rows_act_as_the_explicit_jacobian(scaling, train_output):
    start, local, data = problem(6, scaling=scaling, train_output=train_output)
    dense = dense_rows(local, data, scaling, train_output)
    rows = fisher.jacobian_rows(local, data, scaling, train_output)
    np.testing.assert_allclose(fisher.gram(rows), dense @ dense.T, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(fisher.push(rows, start).reshape(-1), dense @ flatten(start, train_output), atol=1e-13)
    u = jax.random.normal(jax.random.key(3), (len(dense),))
    np.testing.assert_allclose(flatten(fisher.pull(rows, u), train_output), u @ dense, atol=1e-13)
    per_client = (dense**2).reshape(2, 4, -1).sum(axis=1)
    got = fisher.diagonal(rows)
    for i in range(2):
        np.testing.assert_allclose(
            flatten(Params(got.w[i], got.a[i]), train_output), per_client[i], rtol=1e-10, atol=1e-15
        )


def test_every_client_acts_on_its_own_offset():
    _, local, data = problem(6)
    dense = dense_rows(local, data).reshape(2, 4, -1)
    rows = fisher.jacobian_rows(local, data)
    want = np.stack([dense[i] @ np.asarray(local.w[i]).reshape(-1) for i in range(2)])
    np.testing.assert_allclose(fisher.push(rows, local), want, atol=1e-13)


@pytest.mark.parametrize("dims", [3, 6])  # fewer and more inputs than examples
def test_kronecker_rows_are_the_kronecker_fisher(dims):
    _, local, data = problem(5, dims=dims)
    dense = dense_rows(local, data).reshape(2, 4, dims, 5)
    rows = fisher.kronecker_rows(fisher.jacobian_rows(local, data), data)
    blocks = []
    for i in range(2):
        x = np.asarray(data.x[i])
        scalars = np.asarray(rows.left[i])
        np.testing.assert_allclose(dense[i], np.einsum("nd,nm->ndm", x, scalars), atol=1e-14)
        blocks.append(np.kron(x.T @ x / 4, scalars.T @ scalars))  # p_i A_i ⊗ G_i on w [d, m] row-major
    total = sum(blocks)
    size = fisher.kronecker_gram(rows).shape[0]
    explicit = np.stack([np.asarray(fisher.kronecker_pull(rows, e)).reshape(-1) for e in jnp.eye(size)])
    np.testing.assert_allclose(explicit.T @ explicit, total, atol=1e-13)
    np.testing.assert_allclose(fisher.kronecker_gram(rows), explicit @ explicit.T, atol=1e-13)
    per_client = explicit.reshape(2, size // 2, -1)
    want = np.stack([per_client[i] @ np.asarray(local.w[i]).reshape(-1) for i in range(2)])
    np.testing.assert_allclose(fisher.kronecker_push(rows, local.w).reshape(2, -1), want, atol=1e-13)
