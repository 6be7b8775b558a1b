"""The nearest sum of Kronecker products, against the decomposition of the explicit rearranged matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedfisher_jax as ff
from fedfisher_jax.curvature.structures._nearest_products import nearest_products

RANDOM = np.random.default_rng(3)
WEIGHTS = np.asarray([0.5, 2.0, 1.0, 0.25])


def apply(params, x):
    return jnp.tanh(x @ params["v"]) @ params["w"] + params["b"]


@pytest.fixture(scope="module")
def fishers():
    params = {"v": RANDOM.normal(size=(4, 3)), "w": RANDOM.normal(size=(3, 2)), "b": RANDOM.normal(size=2)}
    each = [
        ff.fisher(apply, ff.gaussian(), jax.tree.map(jnp.asarray, params), ff.examples(x), structure="kronecker")
        for x in (jnp.asarray(s * RANDOM.normal(size=(5, 4))) for s in (1.0, 0.3, 2.0, 0.7))
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def rearranged(fishers, number):
    """Each product as vec(A) vec(G)ᵀ, added up: entry by entry, with no decomposition."""
    a, g = (np.asarray(side[number]) for side in (fishers.inputs, fishers.outputs))
    total = sum(w * np.kron(one, other) for w, one, other in zip(WEIGHTS, a, g, strict=True))
    n, m = a.shape[-1], g.shape[-1]
    return total, total.reshape(n, m, n, m).transpose(0, 2, 1, 3).reshape(n * n, m * m)


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_products_are_the_nearest_sum_and_say_how_near(fishers, rank):
    cut = nearest_products(fishers, WEIGHTS, rank)
    for number in range(len(fishers.layers)):
        total, matrix = rearranged(fishers, number)
        values = np.linalg.svd(matrix, compute_uv=False)
        terms = zip(cut.terms.inputs[number], cut.terms.outputs[number], strict=True)
        ours = sum(np.kron(a, g) for a, g in terms)
        np.testing.assert_allclose(np.linalg.norm(total - ours), np.linalg.norm(values[rank:]), atol=1e-10)
        np.testing.assert_allclose(cut.dropped[number], np.linalg.norm(values[rank:]), atol=1e-10)
        np.testing.assert_allclose(cut.kept[number], np.linalg.norm(ours), rtol=1e-10)
        assert np.linalg.eigvalsh(np.kron(cut.terms.inputs[number][0], cut.terms.outputs[number][0])).min() > -1e-12
    for leaf, values in fishers.rest.items():
        np.testing.assert_allclose(np.sum(cut.terms.rest[leaf], axis=0), np.tensordot(WEIGHTS, values, axes=1))
    assert len(cut.terms.outputs[0]) == rank


def test_groups_and_tables_are_cut_each_on_its_own(fishers):
    """A grouped layer is as many layers; a table's diagonal A is as its matrix."""
    from fedfisher_jax.curvature.structures._nearest_products import _cut

    a, g = np.asarray(fishers.inputs[0]), np.asarray(fishers.outputs[0])
    grouped = _cut(np.stack([a, 2 * a], 1), np.stack([g, g], 1), WEIGHTS, 2, False)
    alone = _cut(a, g, WEIGHTS, 2, False)
    np.testing.assert_allclose(
        np.einsum("rnm,rop->nmop", grouped[0][:, 1], grouped[1][:, 1]), 2 * np.einsum("rnm,rop->nmop", *alone[:2])
    )
    np.testing.assert_allclose(grouped[2:], np.sqrt(5) * np.asarray(alone[2:]))
    diagonal = np.diagonal(a, axis1=1, axis2=2)
    table = _cut(diagonal, g, WEIGHTS, 2, True)
    matrices = _cut(np.stack([np.diag(one) for one in diagonal]), g, WEIGHTS, 2, False)
    np.testing.assert_allclose(
        np.einsum("rn,rop->nop", *table[:2]), np.einsum("rnn,rop->nop", *matrices[:2]), atol=1e-12
    )
    np.testing.assert_allclose(table[2:], matrices[2:], atol=1e-12)
