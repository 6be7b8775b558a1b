"""EKFAC's Fisher against explicit matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fedfisher_jax as ff
from experiments.fedfisher.eigenvalues import corrected

pytestmark = pytest.mark.slow


def apply(params, x):
    """A linear layer with a bias."""
    return x @ params["w"] + params["b"]


def test_its_matrix():
    """(U ⊗ W) diag(Λ) (U ⊗ W)ᵀ, Λ being the diagonal of the full Fisher in that basis."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"b": jax.random.normal(keys[0], (3,)), "w": jax.random.normal(keys[1], (4, 3))}
    x = jax.random.normal(keys[2], (5, 4))
    full, kronecker = (
        ff.fisher(apply, ff.categorical(), params, ff.examples(x), structure=name) for name in ("full", "kronecker")
    )
    fisher = corrected(apply, params, kronecker, x)
    (layer,), ((u, w),) = kronecker.layers, fisher.bases
    order = np.ravel(layer.to_matrix(jax.tree.leaves(ravel_pytree(params)[1](jnp.arange(15.0))))).astype(int)
    turn = np.kron(u, w)
    moments = np.diag(turn.T @ full.to_dense()[order][:, order] @ turn)
    np.testing.assert_allclose(np.ravel(fisher.moments[0]), moments, atol=1e-6)
    dense = turn @ np.diag(moments) @ turn.T
    flat = lambda tree: np.asarray(ravel_pytree(tree)[0])[order]  # noqa: E731
    np.testing.assert_allclose(flat(fisher.matvec(params)), dense @ flat(params), atol=1e-5)
    np.testing.assert_allclose(flat(fisher.diagonal()), np.diag(dense), atol=1e-6)
    np.testing.assert_allclose(flat(fisher.scale(3.0).matvec(params)), 3 * dense @ flat(params), atol=1e-5)
