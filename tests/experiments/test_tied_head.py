"""The curvature that the tied table is compared with."""

import jax
import jax.numpy as jnp

import fedfisher_jax as ff
from experiments.checkpoints.tied_head import without_tied
from fedfisher_jax import models


def test_the_table_alone_becomes_diagonal():
    network = models.build_transformer(7, 4, width=4, depth=1, heads=2, tied=True)
    params = network.init(jax.random.key(0))
    found = ff.capture(network.apply, params, jnp.zeros((1, 4), jnp.int32))
    plain = without_tied(found, params)
    assert set(plain.fallback) - set(found.fallback) == {"['embedding']"}
    assert len(plain.layers) == len(found.layers) - 1
    covered = {leaf for layer in plain.layers for leaf in layer.leaves}
    assert covered.isdisjoint(plain.fallback_leaves)
    assert sorted(covered | set(plain.fallback_leaves)) == list(range(len(jax.tree.leaves(params))))
