"""FIPA against explicit matrices, the centralised Gauss–Newton step and FedAvg."""

import explicit
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from jax.flatten_util import ravel_pytree

import fedfisher_jax as ff
from fedfisher_jax.curvature import Subspace
from fedfisher_jax.federate import rounds
from fedfisher_jax.merge import Update, fipa
from fedfisher_jax.merge import _rule as rule_module
from fedfisher_jax.merge._fipa import joint_step

PARAMS = {"a": zoo.normal(0, 3, 4), "b": zoo.normal(1, 4), "c": zoo.normal(2, 4, 2)}
SIZE = sum(leaf.size for leaf in PARAMS.values())
GAUSSIAN = ff.gaussian()
ROWS = [slice(0, 20), slice(20, 26), slice(26, 40)]
X, Y = zoo.normal(3, 40, 3) * 2, zoo.normal(4, 40, 2)


def apply(params, x):
    return jnp.tanh(x @ params["a"] + params["b"]) @ params["c"]


def fisher_of(rows):
    return np.asarray(explicit.fisher(apply, GAUSSIAN, PARAMS, X[rows], Y[rows]))


def gradient_of(rows):
    return np.asarray(explicit.gradients(apply, GAUSSIAN, PARAMS, X[rows], Y[rows])).mean(0)


def unravel(vector):
    return ravel_pytree(PARAMS)[1](jnp.asarray(vector))


def payloads_of(rule, steps):
    sent = []
    for number, (rows, step) in enumerate(zip(ROWS, steps, strict=True)):
        end = jax.tree.map(jnp.add, PARAMS, unravel(step))
        update = Update(end, PARAMS)
        payload = rule.measure(update, ff.examples(X[rows], Y[rows]), jax.random.key(number))
        sent.append(rule_module.moved(payload, PARAMS))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *sent)


def step_of(payloads, **options):
    return np.asarray(ravel_pytree(joint_step(payloads, **options)[0])[0])


FULL = fipa(apply, GAUSSIAN, rank=SIZE, subspace=Subspace(power_steps=4))
WEIGHTS = np.array([20, 6, 14]) / 40
RANDOM = np.random.default_rng(5).normal(size=(3, SIZE))


@pytest.fixture(scope="module")
def random_payloads():
    return payloads_of(FULL, RANDOM)


def test_local_gauss_newton_steps_make_the_centralised_one():
    local = [-np.linalg.pinv(fisher_of(rows), rcond=1e-10) @ gradient_of(rows) for rows in ROWS]
    found = step_of(payloads_of(FULL, local))
    whole = slice(0, 40)
    expected = -np.linalg.solve(fisher_of(whole), gradient_of(whole))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("off_span", ["stay", "fedavg"])
@pytest.mark.parametrize("tau", [0.0, 0.05])
@pytest.mark.parametrize("rank", [2, SIZE])
def test_the_step_is_that_of_explicit_matrices(off_span, tau, rank, random_payloads):
    payloads = random_payloads
    if rank < SIZE:
        payloads = payloads_of(fipa(apply, GAUSSIAN, rank=rank), RANDOM)
    matrices = np.asarray(jax.vmap(lambda f: f.to_dense())(payloads.statistics))
    total = np.tensordot(WEIGHTS, matrices, 1)
    pull = np.einsum("m,mpq,mq->p", WEIGHTS, matrices, RANDOM)
    mean = WEIGHTS @ RANDOM
    sizes, turn = np.linalg.eigh(total)
    inside = sizes > 1e-10 * sizes[-1]
    span = turn[:, inside] @ turn[:, inside].T
    damping = tau * sizes[-1]
    target = pull + (damping * mean if off_span == "fedavg" else 0)
    inverse = turn[:, inside] @ np.diag(1 / (sizes[inside] + damping)) @ turn[:, inside].T
    expected = inverse @ target + (mean - span @ mean if off_span == "fedavg" else 0)
    found = step_of(payloads, off_span=off_span, tau=tau, cutoff=1e-10)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8 * np.abs(expected).max())


def test_much_damping_is_fedavg(random_payloads):
    found = step_of(random_payloads, off_span="fedavg", tau=1e9)
    np.testing.assert_allclose(found, WEIGHTS @ RANDOM, rtol=1e-7)


def test_one_client_returns_its_model_where_the_span_reaches_and_everywhere_with_fedavg():
    one = jax.tree.map(lambda leaf: leaf[:1], payloads_of(fipa(apply, GAUSSIAN, rank=3), RANDOM))
    np.testing.assert_allclose(step_of(one, off_span="fedavg"), RANDOM[0], rtol=1e-9, atol=1e-12)
    basis = np.asarray(jax.vmap(lambda u: ravel_pytree(u)[0])({k: v[0] for k, v in one.statistics.vectors.items()}))
    np.testing.assert_allclose(step_of(one), basis.T @ (basis @ RANDOM[0]), rtol=1e-9, atol=1e-12)


def test_the_rank_is_the_subspaces_unless_it_is_given():
    ranks = {None: 3, 2: 2}
    for given, expected in ranks.items():
        rule = fipa(apply, GAUSSIAN, rank=given, subspace=Subspace(3))
        assert payloads_of(rule, RANDOM).statistics.values.shape[-1] == expected
    with pytest.raises(ValueError, match="bound: got 2, expected at least the rank, 3"):
        fipa(apply, GAUSSIAN, bound=2, subspace=Subspace(3))


@pytest.mark.parametrize("off_span", ["stay", "fedavg"])
def test_a_subset_of_parameters(off_span):
    """Only the last layer has a Fisher; the others stay or are averaged."""
    rule = fipa(apply, GAUSSIAN, rank=4, off_span=off_span, subspace=Subspace(where=lambda path: path == "['c']"))
    payloads = payloads_of(rule, RANDOM)
    moved = joint_step(payloads, off_span=off_span)[0]
    mean = unravel(WEIGHTS @ RANDOM)
    for name in ("a", "b"):
        np.testing.assert_allclose(moved[name], mean[name] if off_span == "fedavg" else 0, rtol=1e-12, atol=1e-14)
    assert np.abs(np.asarray(moved["c"])).min() > 0


def test_a_round_of_the_engine():
    train = ff.LocalTraining(apply, GAUSSIAN, optax.sgd(0.05), epochs=3, batch_size=8)
    who = ff.cohort(X, Y, [np.arange(40)[rows] for rows in ROWS])
    losses = {}
    for name, rule in (("fipa", fipa(apply, GAUSSIAN, rank=5, off_span="fedavg", tau=1e-3)), ("start", None)):
        params = PARAMS
        if rule is not None:
            plan = rounds.Federation(train, rule, 3)
            state = rounds.init(plan, PARAMS, 3, jax.random.key(0))
            params = rounds.scan(plan, state, who, 3)[0].params
        losses[name] = float(ff.evaluate(apply, GAUSSIAN, params, X, Y).loss)
    assert losses["fipa"] < 0.8 * losses["start"]


@pytest.mark.parametrize("off_span", ["stay", "fedavg"])
def test_a_bound_that_nothing_exceeds_changes_nothing(off_span):
    payloads = payloads_of(fipa(apply, GAUSSIAN, rank=4), RANDOM)
    options = {"off_span": off_span, "tau": 0.01, "cutoff": 1e-10}
    moved, told = joint_step(payloads, bound=3 * 4, **options)
    assert told["dropped_trace"] < 1e-12 * told["largest_eigenvalue"]
    np.testing.assert_allclose(ravel_pytree(moved)[0], step_of(payloads, **options), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("bound", [4, 7])
def test_a_bounded_span_is_cut_client_by_client_and_tells_how_much(bound):
    payloads = payloads_of(fipa(apply, GAUSSIAN, rank=4), RANDOM)
    matrices = WEIGHTS[:, None, None] * np.asarray(jax.vmap(lambda f: f.to_dense())(payloads.statistics))
    kept, dropped = np.zeros((SIZE, SIZE)), 0.0
    for matrix in matrices:
        sizes, turn = np.linalg.eigh(kept + matrix)
        kept, dropped = turn[:, -bound:] * sizes[-bound:] @ turn[:, -bound:].T, dropped + sizes[:-bound].sum()
    expected = np.linalg.pinv(kept, rcond=1e-10) @ np.einsum("mpq,mq->p", matrices, RANDOM)
    moved, told = jax.jit(lambda p: joint_step(p, bound=bound, cutoff=1e-10))(payloads)
    np.testing.assert_allclose(ravel_pytree(moved)[0], expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())
    np.testing.assert_allclose(told["dropped_trace"], dropped, rtol=1e-8)
    assert 0 < np.linalg.norm(matrices.sum(0) - kept, 2) <= dropped and told["joint_rank"] == bound


@pytest.mark.parametrize("wrong", [{"off_span": "go"}, {"tau": -1.0}, {"cutoff": -1.0}, {"bound": 9}], ids=str)
def test_refusals(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        fipa(apply, GAUSSIAN, **wrong)
