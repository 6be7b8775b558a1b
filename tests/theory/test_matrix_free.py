import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from fedfisher_jax.theory import decomposition, inputs, matrix_free, two_layer

from .common import client


@pytest.fixture(scope="module")
def pair():
    """A two-layer network with both layers trained, as itself and as any network."""
    data = inputs.gaussian(jax.random.key(2), 2, 3, 3, dtype=jnp.float64)
    start = two_layer.init(jax.random.key(1), 3, 20, jnp.float64)
    return start, data, matrix_free.ClientData(data.x, data.y[..., None], data.weights)


def as_any(params, x):
    return two_layer.apply(params, x)[:, None]


def test_agrees_with_the_closed_forms_of_two_layer_networks(pair):
    start, data, same = pair
    got = jax.jit(lambda s: matrix_free.diagnose(as_any, s, same, 50, 0.5, chunk=2))(start)
    want = jax.jit(lambda s: decomposition.diagnose(s, data, 50, got.step_size, train_output=True))(start)
    np.testing.assert_allclose(got.eigenvalues, want.eigenvalues, rtol=1e-7)
    assert float(got.local_loss) == pytest.approx(float(want.local_loss), rel=1e-9)
    for rule in ("full", "diagonal", "average", "pooled"):
        a, b = got.errors[rule], want.errors[rule]
        for name in ("loss", "laplace", "excess", "to_locals", "to_pooled"):
            assert float(getattr(a, name)) == pytest.approx(float(getattr(b, name)), rel=1e-6, abs=1e-10), (rule, name)


def test_several_outputs_against_the_explicit_jacobian():
    def apply(params, x):
        return jnp.tanh(x @ params["in"]) @ params["out"]

    keys = jax.random.split(jax.random.key(0), 4)
    local = {"in": jax.random.normal(keys[0], (2, 3, 4)), "out": jax.random.normal(keys[1], (2, 4, 2))}
    x, y = jax.random.normal(keys[2], (2, 5, 3)), jax.random.normal(keys[3], (2, 5, 2))
    data = matrix_free.ClientData(x, y, jnp.array([[0.1] * 5, [0.2, 0.2, 0.1, 0.0, 0.0]]))
    rows, thetas = [], []
    for i in range(2):
        flat, rebuild = ravel_pytree(client(local, i))
        jac = jax.jacobian(lambda v, x=x[i], r=rebuild: apply(r(v), x).reshape(-1))(flat)
        rows.append(np.sqrt(np.repeat(np.asarray(data.weights[i]), 2))[:, None] * np.asarray(jac))
        thetas.append(np.asarray(flat))
    dense = np.concatenate(rows)
    np.testing.assert_allclose(
        jax.jit(lambda p: matrix_free.gram(apply, p, data, chunk=3))(local), dense @ dense.T, atol=1e-12
    )
    fishers = [r.T @ r for r in rows]
    mean = 0.5 * thetas[0] + 0.5 * thetas[1]
    total = sum(fishers)
    right = sum(f @ (t - mean) for f, t in zip(fishers, thetas, strict=True))
    want = mean + np.linalg.pinv(total, rcond=1e-11, hermitian=True) @ right
    models, spectrum = jax.jit(lambda p: matrix_free.merge(apply, p, data))(local)
    got = np.asarray(ravel_pytree(models["full"])[0])
    assert np.linalg.norm(got - want) <= 1e-7 * np.linalg.norm(want)
    assert int(spectrum.kept.sum()) == np.linalg.matrix_rank(dense)  # padded rows drop out
    diagonals = jax.jit(lambda p: matrix_free.diagonal(apply, p, data))(local)
    for i in range(2):
        np.testing.assert_allclose(ravel_pytree(client(diagonals, i))[0], (rows[i] ** 2).sum(axis=0), atol=1e-12)


def test_kfac_against_dense_kronecker_products():
    def apply(params, x):
        return jnp.tanh(x @ params["in"]) @ params["out"]

    keys = jax.random.split(jax.random.key(3), 4)
    local = {"in": jax.random.normal(keys[0], (2, 3, 2)), "out": jax.random.normal(keys[1], (2, 2, 2))}
    x, y = jax.random.normal(keys[2], (2, 6, 3)), jax.random.normal(keys[3], (2, 6, 2))
    weights = jnp.array([[0.1] * 6, [0.1] * 4 + [0.0] * 2])
    x = x.at[1, 4:].set(jnp.nan)  # padding, whatever it holds
    got = jax.jit(
        lambda p: matrix_free.kfac(apply, p, matrix_free.hide_padding(matrix_free.ClientData(x, y, weights)))
    )(local)
    for leaf, inputs_of in (("in", lambda p, a: a), ("out", lambda p, a: np.tanh(a @ p["in"]))):
        total, right, mean = 0.0, 0.0, np.asarray(jnp.tensordot(jnp.array([0.6, 0.4]), local[leaf], 1)).reshape(-1)
        for i, count in ((0, 6), (1, 4)):
            params = client(local, i)
            a = np.asarray(inputs_of(params, np.asarray(x[i, :count])))
            hidden = np.tanh(np.asarray(x[i, :count]) @ params["in"])
            back = [np.eye(2)] * count
            if leaf == "in":  # of both outputs by each hidden unit's sum
                back = [np.asarray(params["out"]).T * (1 - h**2) for h in hidden]
            block = np.kron(a.T @ a / count, sum(b.T @ b for b in back) / count)
            share = (0.6, 0.4)[i]
            total, right = total + share * block, right + share * block @ (np.asarray(params[leaf]).reshape(-1) - mean)
        want = mean + np.linalg.pinv(total, rcond=1e-11, hermitian=True) @ right
        np.testing.assert_allclose(np.asarray(got[leaf]).reshape(-1), want, rtol=1e-5, atol=1e-7)


def test_further_merges_are_told(pair):
    start, _, same = pair
    further = {"first": lambda apply, local, data: jax.tree.map(lambda leaf: leaf[0], local)}
    got = jax.jit(lambda s: matrix_free.diagnose(as_any, s, same, 2, 0.5, further=further))(start)
    assert set(got.errors) == {"full", "diagonal", "average", "pooled", "first"}


def test_step_is_in_units_of_the_largest_tangent_eigenvalue(pair):
    start, _, same = pair
    got = jax.jit(lambda s: matrix_free.diagnose(as_any, s, same, 1, 0.5))(start)
    jac = [jax.jacobian(lambda p, x=x: as_any(p, x)[:, 0])(start) for x in same.x]
    dense = [np.concatenate([np.asarray(j.w).reshape(3, -1), np.asarray(j.a)], axis=1) / 3**0.5 for j in jac]
    largest = max(np.linalg.eigvalsh(j @ j.T)[-1] for j in dense)
    assert float(got.step_size) == pytest.approx(0.5 / largest, rel=1e-8)
