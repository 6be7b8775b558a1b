"""FedFisher with low-rank payloads: the laws of every rule, and the full Fisher at full rank."""

from functools import cache, partial

import explicit
import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedfisher_jax as ff
from fedfisher_jax.curvature import Subspace
from fedfisher_jax.merge import catalogue, fold

SOLVER = ff.conjugate_gradients(tolerance=1e-12, iterations=1000)


def last_layer(path):
    return path.startswith("['c']")


@cache
def rule(structure="low_rank", solver=SOLVER, **subspace):
    apply = federation.net("dense")[0]
    options = {"subspace": Subspace(**subspace)} if subspace else {}
    return ff.fedfisher(apply, federation.LIKELIHOOD, structure=structure, solver=solver, **options)


@pytest.mark.slow
@pytest.mark.parametrize("law", [*federation.IDENTITY, *federation.FOLD])
def test_laws(law):
    law(rule(), "dense", atol=1e-8)


@pytest.mark.slow
def test_full_rank_is_the_full_fisher():
    size = explicit.flat(federation.net("dense")[1]).size
    each = (rule(rank=size), rule("full"))
    found, expected = (ff.merge_payloads(one, federation.payloads(one.measure, "dense")) for one in each)
    federation.close(found.params, expected.params, atol=1e-7)
    before, after = (expected.diagnostics[f"objective_{when}"] for when in ("start", "end"))
    assert float(after) < 0.5 * float(before)


@pytest.mark.slow
def test_the_merge_minimises_the_objective():
    """Against a dense solve of (H + λ) δ = r, whose mean diagonal entry sets λ."""
    sent = federation.payloads(rule(rank=4).measure, "dense")
    weights = np.array(federation.SIZES) / sum(federation.SIZES)
    params = np.stack([explicit.flat(payload.params) for payload in sent])
    fishers = np.stack([payload.statistics.to_dense() for payload in sent])
    curvature, anchor = np.einsum("m,mij->ij", weights, fishers), weights @ params
    pull = np.einsum("m,mij,mj->i", weights, fishers, params - anchor)
    shift = 0.3 * np.trace(curvature) / len(curvature)
    expected = anchor + np.linalg.solve(curvature + shift * np.eye(len(curvature)), pull)
    found = ff.merge_payloads(rule(rank=4), sent)
    np.testing.assert_allclose(explicit.flat(found.params), expected, atol=1e-8)
    assert bool(found.diagnostics["converged"])


def test_leaves_that_are_not_covered_are_averaged():
    one = rule(rank=5, where=last_layer)
    sent = federation.payloads(one.measure, "dense")
    average = ff.fedavg(federation.net("dense")[0], federation.LIKELIHOOD)
    merged, mean = (ff.merge_payloads(r, sent).params for r in (one, average))
    federation.close({k: merged[k] for k in "ab"}, {k: mean[k] for k in "ab"}, atol=1e-12)
    assert abs(explicit.flat(merged["c"]) - explicit.flat(mean["c"])).max() > 1e-2


def test_solving_again_compiles_nothing():
    one, traced = rule(rank=4), []

    @jax.jit
    def solve(summary):
        traced.append(summary)
        return one.solve(summary, None).params

    sent = federation.payloads(one.measure, "dense")
    for order in (sent, sent[::-1]):
        solve(fold(one, jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(one.lift, order))))
    assert len(traced) == 1


def test_measures_with_equal_subspaces_are_one():
    build = partial(catalogue.named_rule, "fedfisher-lowrank", *federation.net("dense")[:1], federation.LIKELIHOOD)
    assert build().name == "fedfisher-lowrank"
    assert build().measure == build(subspace=Subspace()).measure != build(subspace=Subspace(rank=3)).measure
