"""FIPA against explicit matrices, the centralised Gauss–Newton step and FedAvg."""

from dataclasses import replace

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
from fedfisher_jax.merge import PAPER_FIPA, FipaStep, PastFishers, Update, fipa, public_fipa_step
from fedfisher_jax.merge import _rule as rule_module
from fedfisher_jax.merge._joint_step import joint_step

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
    return np.asarray(ravel_pytree(joint_step(payloads, replace(PAPER_FIPA, **options))[0])[0])


FULL = fipa(apply, GAUSSIAN, rank=SIZE, subspace=Subspace(power_steps=4))
WEIGHTS = np.array([20, 6, 14]) / 40
RANDOM = np.random.default_rng(5).normal(size=(3, SIZE))


@pytest.fixture(scope="module")
def random_payloads():
    return payloads_of(FULL, RANDOM)


@pytest.mark.slow
def test_local_gauss_newton_steps_make_the_centralised_one():
    local = [-np.linalg.pinv(fisher_of(rows), rcond=1e-10) @ gradient_of(rows) for rows in ROWS]
    found = step_of(payloads_of(FULL, local))
    whole = slice(0, 40)
    expected = -np.linalg.solve(fisher_of(whole), gradient_of(whole))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


@pytest.mark.slow
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


@pytest.mark.slow
def test_one_client_returns_its_model_where_the_span_reaches_and_everywhere_with_fedavg():
    one = jax.tree.map(lambda leaf: leaf[:1], payloads_of(fipa(apply, GAUSSIAN, rank=3), RANDOM))
    np.testing.assert_allclose(step_of(one, off_span="fedavg"), RANDOM[0], rtol=1e-9, atol=1e-12)
    basis = np.asarray(jax.vmap(lambda u: ravel_pytree(u)[0])({k: v[0] for k, v in one.statistics.vectors.items()}))
    np.testing.assert_allclose(step_of(one), basis.T @ (basis @ RANDOM[0]), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_the_rank_is_the_subspaces_unless_it_is_given():
    ranks = {None: 3, 2: 2}
    for given, expected in ranks.items():
        rule = fipa(apply, GAUSSIAN, rank=given, subspace=Subspace(3))
        assert payloads_of(rule, RANDOM).statistics.values.shape[-1] == expected
    with pytest.raises(ValueError, match="bound: got 2, expected at least the rank, 3"):
        fipa(apply, GAUSSIAN, step=FipaStep(bound=2), subspace=Subspace(3))


@pytest.mark.parametrize("off_span", ["stay", "fedavg"])
def test_a_subset_of_parameters(off_span):
    """Only the last layer has a Fisher; the others stay or are averaged."""
    rule = fipa(apply, GAUSSIAN, rank=4, subspace=Subspace(where=lambda path: path == "['c']"))
    payloads = payloads_of(rule, RANDOM)
    moved = joint_step(payloads, replace(PAPER_FIPA, off_span=off_span))[0]
    mean = unravel(WEIGHTS @ RANDOM)
    for name in ("a", "b"):
        np.testing.assert_allclose(moved[name], mean[name] if off_span == "fedavg" else 0, rtol=1e-12, atol=1e-14)
    assert np.abs(np.asarray(moved["c"])).min() > 0


def test_a_round_of_the_engine():
    train = ff.LocalTraining(apply, GAUSSIAN, optax.sgd(0.05), epochs=3, batch_size=8)
    who = ff.cohort(X, Y, [np.arange(40)[rows] for rows in ROWS])
    losses = {}
    for name, rule in (("fipa", fipa(apply, GAUSSIAN, rank=5)), ("start", None)):
        params = PARAMS
        if rule is not None:
            plan = rounds.Federation(train, rule, 3)
            state = rounds.init(plan, PARAMS, 3, jax.random.key(0))
            params = rounds.scan(plan, state, who, 3)[0].params
        losses[name] = float(ff.evaluate(apply, GAUSSIAN, params, X, Y).loss)
    assert losses["fipa"] < 0.8 * losses["start"]


@pytest.mark.slow
@pytest.mark.parametrize("off_span", ["stay", "fedavg"])
def test_a_bound_that_nothing_exceeds_changes_nothing(off_span):
    payloads = payloads_of(fipa(apply, GAUSSIAN, rank=4), RANDOM)
    options = {"off_span": off_span, "tau": 0.01, "cutoff": 1e-10}
    moved, told = joint_step(payloads, replace(PAPER_FIPA, bound=3 * 4, **options))
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
    moved, told = jax.jit(lambda p: joint_step(p, replace(PAPER_FIPA, bound=bound, cutoff=1e-10)))(payloads)
    np.testing.assert_allclose(ravel_pytree(moved)[0], expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())
    np.testing.assert_allclose(told["dropped_trace"], dropped, rtol=1e-8)
    assert 0 < np.linalg.norm(matrices.sum(0) - kept, 2) <= dropped and told["joint_rank"] == bound


@pytest.mark.parametrize(
    ("made", "wrong"),
    [(FipaStep, {"off_span": "go"}), (FipaStep, {"tau": -1.0}), (FipaStep, {"cutoff": -1.0}), (FipaStep, {"clip": 0.0})]
    + [(FipaStep, {"rate": 0.0}), (public_fipa_step, {"gamma": 0.0}), (PastFishers, {"rho": -1.0})]
    + [(PastFishers, {"decay": 1.0}), (PastFishers, {"rank": 0})],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_refusals(made, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        made(**wrong)
    with pytest.raises(ValueError, match="bound: got 9, expected at least the rank, 10"):
        fipa(apply, GAUSSIAN, step=FipaStep(bound=9))


def test_the_default_step_is_clipped_to_the_clients_steps_and_its_rate_shortens_it(random_payloads):
    """Much longer than the clients' before: one badly conditioned direction decides."""
    together = np.sqrt((RANDOM**2).sum())
    free = step_of(random_payloads)
    assert np.linalg.norm(free) > 0.1 * together
    for times in (0.1, 0.02):
        moved, told = joint_step(random_payloads, replace(PAPER_FIPA, clip=times, rate=0.5))
        found = np.asarray(ravel_pytree(moved)[0])
        np.testing.assert_allclose(np.linalg.norm(found), 0.5 * times * together, rtol=1e-12)
        np.testing.assert_allclose(found, free * np.linalg.norm(found) / np.linalg.norm(free), rtol=1e-9)
        np.testing.assert_allclose(told["shortened"], times * together / np.linalg.norm(free), rtol=1e-9)
    one = jax.tree.map(lambda leaf: leaf[:1], random_payloads)
    np.testing.assert_allclose(ravel_pytree(joint_step(one, FipaStep())[0])[0], RANDOM[0], rtol=1e-9, atol=1e-12)


def test_the_form_of_public_codes(random_payloads):
    matrices = np.asarray(jax.vmap(lambda f: f.to_dense())(random_payloads.statistics))
    total, pull = np.tensordot(WEIGHTS, matrices, 1), np.einsum("m,mpq,mq->p", WEIGHTS, matrices, RANDOM)
    expected = 0.5 * 0.3 * np.linalg.solve(total + 0.3 * np.eye(SIZE), pull)
    found = ravel_pytree(joint_step(random_payloads, public_fipa_step(gamma=0.5, tau=0.3))[0])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_memory_of_past_rounds_is_that_of_explicit_matrices():
    """Three rounds with all eigenpairs kept; with ρ = 0 every round is one without memory, and so is the first one."""
    step, past = FipaStep(tau=0.05, clip=None), PastFishers(rho=3.0, decay=0.8, rank=SIZE)
    rule = fipa(apply, GAUSSIAN, rank=6, step=step, past=past)
    without = fipa(apply, GAUSSIAN, rank=6, step=step, past=replace(past, rho=0.0))
    kept, nothing = rule.carry.init(PARAMS), without.carry.init(PARAMS)
    running = np.zeros((SIZE, SIZE))
    for number in range(3):
        steps = np.random.default_rng(number).normal(size=(3, SIZE))
        payloads = payloads_of(rule, steps)
        sent = payloads._replace(params=jax.tree.map(jnp.add, PARAMS, payloads.params))
        matrices = np.asarray(jax.vmap(lambda f: f.to_dense())(payloads.statistics))
        fresh = np.tensordot(WEIGHTS, matrices, 1)
        mean, pull = WEIGHTS @ steps, np.einsum("m,mpq,mq->p", WEIGHTS, matrices, steps)
        total = fresh + (3.0 * running / (1 - 0.8**number) if number else 0)
        damping = 0.05 * np.linalg.eigvalsh(total)[-1]
        expected = np.linalg.solve(total + damping * np.eye(SIZE), pull + damping * mean)
        found, kept = rule.carry.solve(sent, PARAMS, kept)
        np.testing.assert_allclose(
            ravel_pytree(found.params)[0] - ravel_pytree(PARAMS)[0], expected, rtol=1e-6, atol=1e-8
        )
        plain, nothing = without.carry.solve(sent, PARAMS, nothing)
        expected = ravel_pytree(without.solve(sent, PARAMS).params)[0]
        np.testing.assert_allclose(ravel_pytree(plain.params)[0], expected, rtol=1e-9, atol=1e-11)
        running = 0.8 * running + 0.2 * fresh
        np.testing.assert_allclose(kept.fisher.to_dense(), running, rtol=0, atol=1e-10 * np.abs(running).max())


@pytest.mark.slow
def test_what_a_small_memory_leaves_out_is_told_and_rounds_keep_it():
    rule = fipa(apply, GAUSSIAN, rank=5, past=PastFishers(rank=3), subspace=Subspace(where=(0, 2)))
    train = ff.LocalTraining(apply, GAUSSIAN, optax.sgd(0.05), epochs=1, batch_size=8)
    who = ff.cohort(X, Y, [np.arange(40)[rows] for rows in ROWS])
    plan = rounds.Federation(train, rule, 3)
    state = rounds.init(plan, PARAMS, 3, jax.random.key(0))
    exact = np.zeros((SIZE, SIZE))
    for number in range(1, 3):
        sent = [
            rule.measure(Update(state.params, state.params), ff.examples(X[r], Y[r]), jax.random.key(0)) for r in ROWS
        ]
        exact = 0.9 * exact + 0.1 * sum(
            w * np.asarray(payload.statistics.to_dense()) for w, payload in zip(WEIGHTS, sent, strict=True)
        )
        state, report = rounds.step(plan, state, who, strategy="sequential")
        off = np.linalg.norm(exact - np.asarray(state.carried.fisher.to_dense()), 2) / (1 - 0.9**number)
        assert 0 < off <= report.diagnostics["past_dropped_trace"] * (1 + 1e-9)
    with pytest.raises(ValueError, match="fipa, which keeps past rounds"):
        ff.then(ff.fedavg(apply, GAUSSIAN), rule)


@pytest.mark.parametrize("make", [fipa, ff.fedfisher], ids=["fipa", "fedfisher"])
def test_a_parameter_without_entries_is_merged_too(make):
    draw = np.random.default_rng(0)
    apply, start = (lambda params, x: x @ params["w"]), {"e": jnp.zeros((0, 4)), "w": jnp.ones((3, 2))}
    options = {"rank": 2} if make is fipa else {"structure": "low_rank", "subspace": Subspace(2)}
    rule = make(apply, ff.categorical(), **options)
    data = ff.examples(jnp.asarray(draw.normal(size=(6, 3))), jnp.asarray(draw.integers(0, 2, 6)))
    sent = rule.measure(ff.Update(start, start), data, jax.random.key(0))
    merged = ff.merge_payloads(rule, [sent, sent], start).params
    assert merged["e"].shape == (0, 4)
    np.testing.assert_allclose(merged["w"], start["w"])
