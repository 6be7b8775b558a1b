"""Regions' objectives with few Kronecker products: together they are the clients' own, and none is indefinite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedfisher_jax as ff
from fedfisher_jax.solve._passes import Clients, Passes, objective_by_passes
from fedfisher_jax.solve._products import _shift, objective_of, recompressed, together

RANDOM = np.random.default_rng(5)
COUNT = 6
WEIGHTS = np.asarray([1.0, 4.0, 2.0, 3.0, 1.0, 2.0])


def apply(params, x):
    return jnp.tanh(x @ params["v"]) @ params["w"]


def draw():
    return {"v": jnp.asarray(RANDOM.normal(size=(4, 3))), "w": jnp.asarray(RANDOM.normal(size=(3, 2)))}


@pytest.fixture(scope="module")
def clients():
    models = [draw() for _ in range(COUNT)]
    data = [ff.examples(jnp.asarray(RANDOM.normal(size=(1, 4)))) for _ in models]  # one each: factors of rank one
    each = [ff.fisher(apply, ff.gaussian(), *both, structure="kronecker") for both in zip(models, data, strict=True)]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
    return Clients(jnp.asarray(WEIGHTS), stack(models), stack(each))


def part(clients, rows):
    """The clients of some rows as `recompressed` takes them, two at a time."""
    rows = np.asarray(rows)
    chunks = [rows[n : n + 2] for n in range(0, len(rows), 2)]
    passes = Passes(lambda: (jax.tree.map(lambda leaf, r=r: leaf[r], clients) for r in chunks))
    return float(WEIGHTS[rows].sum()), objective_by_passes(passes), passes


def solved(problem):
    return ff.conjugate_gradients(damping=0.05, tolerance=1e-11)(problem)


def assert_same(ours, theirs, rtol):
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-9)
    for name in ("objective_start", "objective_end"):
        assert float(ours.diagnostics[name]) == pytest.approx(float(theirs.diagnostics[name]), rel=1e-6)


def dense(objective):
    flat, rebuild = jax.flatten_util.ravel_pytree(objective.anchor)
    columns = [jax.flatten_util.ravel_pytree(objective.curvature.matvec(rebuild(row)))[0] for row in jnp.eye(flat.size)]
    return np.stack(columns)


@pytest.mark.slow
def test_with_as_many_products_as_clients_regions_of_regions_lose_nothing(clients):
    everyone = ff.solve.objective(clients.fishers, clients.params, clients.weights)
    east = recompressed([], part(clients, [4, 1]), COUNT)
    west = recompressed([east], part(clients, [0, 5]), COUNT)
    rest = part(clients, [2, 3])
    both = together([objective_of(west), rest[1]], [west.weight, rest[0]])
    assert_same(solved(both), solved(everyone), 1e-7)
    np.testing.assert_allclose(dense(both), dense(everyone), atol=1e-12)
    assert west.weight == 8 and np.all(west.dropped < 1e-10) and np.all(west.shifts < 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_what_is_cut_is_as_far_off_as_said_and_not_indefinite(clients, rank):
    everyone = ff.solve.objective(clients.fishers, clients.params, clients.weights)
    kept = recompressed([], part(clients, range(COUNT)), rank)
    ours, theirs = dense(objective_of(kept)), dense(everyone)
    assert np.linalg.eigvalsh(ours).min() > -1e-9 * np.linalg.eigvalsh(ours).max()
    diagonal = np.diag(dense(objective_of(kept._replace(shifts=0 * kept.shifts))))
    assert np.all(diagonal > np.diag(theirs) - 1e-12)
    bare = kept._replace(shifts=0 * kept.shifts, spare=jax.tree.map(jnp.zeros_like, kept.spare))
    unshifted = dense(objective_of(bare))
    assert np.linalg.norm(unshifted - theirs) == pytest.approx(np.linalg.norm(kept.dropped), rel=1e-8)
    np.testing.assert_allclose(np.linalg.norm(unshifted), np.linalg.norm(kept.kept), rtol=1e-8)
    least, found = max(0.0, -np.linalg.eigvalsh(unshifted).min()), max(_shift(bare, n) for n in range(2))
    assert (least > 1e-3) == (rank == 3)  # here; the first product alone never has a negative eigenvalue
    assert least <= found + 1e-9 and found <= 1.1 * least + 1e-9
    least = ff.conjugate_gradients()(everyone).params  # where value and gradient are exact
    assert float(objective_of(kept).value(least)) == pytest.approx(float(everyone.value(least)))
    slopes = [
        jax.tree.map(lambda r, h: h - r, q.pull, q.curvature.matvec(jax.tree.map(jnp.subtract, least, q.anchor)))
        for q in (objective_of(kept), everyone)
    ]
    for a, b in zip(*map(jax.tree.leaves, slopes), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
