"""Past rounds as one more client, against the objective written out in dense matrices."""

import chex
import explicit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

import fedfisher_jax as ff
from fedfisher_jax.merge import PastFishers, fold, lift, with_past

GAUSSIAN, KEY, RHO, BETA = ff.gaussian(), jax.random.key(0), 2.0, 0.7
START = {"a": zoo.normal(0, 3, 2), "b": zoo.normal(1, 2, 2)}


def apply(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


def round_of(rule, number):
    """Payloads of two clients of 3 and 5 examples."""
    sent = []
    for client, count in enumerate((3, 5)):
        params = jax.tree.map(lambda leaf, s=10 * number + client: leaf + 0.1 * zoo.normal(s, *leaf.shape), START)
        data = ff.examples(zoo.normal(100 + 10 * number + client, count, 3))
        sent.append(rule.measure(ff.Update(params, START), data, KEY))
    return sent


def folded(rule, sent):
    """The summary of a round."""
    lifted = [lift(rule, one, START) for one in sent]
    return fold(rule, jax.tree.map(lambda *leaves: jnp.stack(leaves), *lifted))


@pytest.mark.parametrize(
    "name", ["fedfish", *(pytest.param(n, marks=pytest.mark.slow) for n in ("fedfisher-diag", "fedfisher-kfac"))]
)
def test_the_past_holds_what_it_knows(name):
    """The minimiser of Σ w (θ − θ_i)ᵀ F_i (θ − θ_i) + ρ (θ − start)ᵀ F̄ (θ − start), by dense matrices."""
    structure = "kronecker" if name == "fedfisher-kfac" else "diagonal"
    if name == "fedfish":
        rule = ff.fedfish(apply, GAUSSIAN, eps=0.0)
    else:
        solver = ff.conjugate_gradients(damping=0.0, iterations=200, tolerance=1e-12)
        rule = ff.fedfisher(apply, GAUSSIAN, structure=structure, solver=solver)
    remembering = with_past(rule, PastFishers(RHO, BETA), round_of(rule, 0)[0].statistics)
    kept, start, shares = remembering.carry.init(START), explicit.flat(START), np.asarray([3, 5]) / 8
    known, exact, mass = np.zeros((len(start), len(start))), 0.0, 0.0
    for number in range(3):
        sent = round_of(rule, number)
        merged, kept = remembering.carry.solve(folded(rule, sent), START, kept)
        fishers = [share * np.asarray(one.statistics.to_dense()) for share, one in zip(shares, sent, strict=True)]
        ends = [explicit.flat(one.params) for one in sent]
        matrix = sum(fishers) + RHO * known
        pull = sum(f @ end for f, end in zip(fishers, ends, strict=True)) + RHO * known @ start
        np.testing.assert_allclose(explicit.flat(merged.params), np.linalg.solve(matrix, pull), rtol=1e-6, atol=1e-8)
        exact, mass = BETA * exact + (1 - BETA) * sum(fishers), BETA * mass + 1 - BETA
        known = np.asarray(jax.tree.map(lambda leaf, by=mass: leaf / by, kept[0]).to_dense())
        off = np.linalg.norm(known - exact / mass) / np.linalg.norm(exact / mass)
    assert off == pytest.approx(0.054 if structure == "kronecker" else 0, abs=1e-3)
    chex.assert_trees_all_equal_shapes_and_dtypes(kept, remembering.carry.init(START))  # so that rounds can scan


def test_what_cannot_remember_is_refused():
    rule = ff.fedfish(apply, GAUSSIAN)
    fisher = round_of(rule, 0)[0].statistics
    kronecker = ff.fedfish(apply, GAUSSIAN, structure="kronecker")
    for wrong in (with_past(rule, PastFishers(), fisher), ff.then(rule, rule), kronecker):
        with pytest.raises(ValueError, match="rule: got fedfish"):
            with_past(wrong, PastFishers(), fisher)
