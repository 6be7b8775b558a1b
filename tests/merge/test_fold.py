"""What payloads become on their way to the server: sums or stacks, in any grouping, from any kind of numbers."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import pad_rows

import fedfisher_jax as ff
from fedfisher_jax import Merged, Payload, Rule
from fedfisher_jax.curvature import Diagonal, Full
from fedfisher_jax.federate import _simulate as simulate
from fedfisher_jax.merge import _one_by_one as one_by_one
from fedfisher_jax.merge import catalogue, combine, fold, merge_one_by_one
from fedfisher_jax.merge._fedfisher import lift_sums, stacked, summed

RULES = ("fedavg", "fisher-merge", "fedfisher-diag", "fedfisher-kfac", "fedfisher-full")
ROWS = [np.arange(4), np.arange(3, 11), np.array([0]), np.arange(12)]
RANDOM = np.random.default_rng(0)
X, Y = jnp.asarray(RANDOM.normal(size=(12, 5))), jnp.asarray(RANDOM.integers(0, 3, 12))
MODELS = [{"w": jnp.asarray(RANDOM.normal(size=(5, 3))), "b": jnp.asarray(RANDOM.normal(size=3))} for _ in ROWS]


def apply(params, x):
    return x @ params["w"] + params["b"]


@functools.cache
def rule(name):
    options = {"solver": ff.conjugate_gradients(tolerance=1e-12)} if name.startswith("fedfisher") else {}
    return catalogue.named_rule(name, apply, ff.categorical(), **options)


def named(name, **options):
    return catalogue.named_rule(name, apply, ff.categorical(), **options)


@functools.cache
def payloads(name):
    measure = rule(name).measure
    return [
        measure(ff.Update(p), ff.examples(X[r], Y[r]), jax.random.key(0)) for p, r in zip(MODELS, ROWS, strict=True)
    ]


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def assert_close(one, other, rtol=1e-9):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedfisher-diag", "fedfisher-full"])
def test_sums_hold_the_same_objective_as_stacked_clients(name):
    clients = payloads(name)
    kept = stacked(stack(clients))
    sums = summed(fold(rule(name), stack([lift_sums(client) for client in clients])))
    assert_close(sums.anchor, kept.anchor)
    assert_close(sums.pull, kept.pull)
    assert_close(sums.value_at_anchor, kept.value_at_anchor)
    assert_close(sums.curvature.to_dense(), kept.curvature.to_dense())
    point = jax.tree.map(lambda leaf: leaf + 0.7, kept.anchor)
    assert_close(sums.value(point), kept.value(point))


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_combine_is_associative_and_commutative(name):
    r = rule(name)
    a, b, c = (fold(r, stack([r.lift(payload, None)])) for payload in payloads(name)[:3])
    expected = r.solve(combine(r, combine(r, a, b), c), None).params
    assert_close(r.solve(combine(r, a, combine(r, b, c)), None).params, expected)
    assert_close(r.solve(combine(r, c, combine(r, b, a)), None).params, expected, rtol=1e-7)


@pytest.mark.parametrize("name", RULES)
def test_one_program_from_models_to_the_merge(name):
    """Measured by vmap over ragged clients, folded and solved under jit: as client by client."""
    r = rule(name)
    rows, sizes = map(jnp.asarray, pad_rows(ROWS))

    @jax.jit
    def everything(models):
        data = ff.Examples(X, Y, rows, sizes)
        axes = (0, ff.Examples(None, None, 0, 0), None)
        measured = jax.vmap(r.measure, axes)(ff.Update(models, steps=jnp.zeros(len(sizes))), data, jax.random.key(0))
        return r.solve(fold(r, jax.vmap(lambda one: r.lift(one, None))(measured)), None).params

    assert_close(everything(stack(MODELS)), ff.merge_payloads(r, payloads(name)).params, rtol=1e-7)


@pytest.mark.parametrize("name", ["fedavg", "fisher-merge", "fedfisher-kfac"])
@pytest.mark.parametrize("weight", [float, int, np.int32])
def test_weights_may_be_any_number(name, weight):
    plain = [payload._replace(weight=weight(payload.weight)) for payload in payloads(name)]
    merged = ff.merge_payloads(rule(name), plain)
    assert_close(merged.params, ff.merge_payloads(rule(name), payloads(name)).params)


@pytest.mark.parametrize("name", RULES)
def test_only_the_ratio_of_weights_counts(name):
    heavier = [payload._replace(weight=1000 * payload.weight) for payload in payloads(name)]
    expected = ff.merge_payloads(rule(name), payloads(name)).params
    assert_close(ff.merge_payloads(rule(name), heavier).params, expected, rtol=1e-7)


@pytest.mark.parametrize("name", ["fisher-merge", "fedfisher-diag", "fedfisher-kfac", "fedfisher-full"])
def test_a_client_that_knows_nothing_moves_only_the_anchor(name):
    """Its Fisher is zero: without damping only null directions of the others' curvature can feel its parameters."""
    known = payloads(name)
    silent = known[0]._replace(statistics=known[0].statistics.scale(0.0), weight=known[0].weight)
    r = rule(name)
    if name != "fisher-merge":
        r = catalogue.named_rule(
            name, apply, ff.categorical(), solver=ff.conjugate_gradients(damping=0.0, tolerance=1e-13)
        )
    with_silent = r.solve(_folded(r, [*known, silent]), None)
    without = r.solve(_folded(r, known), None)
    if name == "fisher-merge":
        assert_close(with_silent.params, without.params)
    # Otherwise softmax leaves null directions (adding one number to all logits); predictions do not see them.
    assert_close(*(jax.nn.softmax(apply(merged.params, X)) for merged in (with_silent, without)), rtol=1e-5)


def _folded(r, clients):
    return fold(r, stack([r.lift(client, None) for client in clients]))


@pytest.mark.parametrize("name", ["fisher-merge", "fedfisher-diag", "fedfisher-kfac", "fedfisher-full"])
def test_a_rule_that_needs_fishers_says_so(name):
    bare = [ff.Payload(1.0, params) for params in MODELS]
    with pytest.raises(ValueError, match=f"rule: {name} takes .*; the payload holds parameters alone"):
        ff.merge_payloads(rule(name), bare)


def test_weights_of_a_payload_are_its_examples():
    assert [float(payload.weight) for payload in payloads("fedavg")] == [4, 8, 1, 12]
    assert all(payload.statistics is None for payload in payloads("fedavg"))
    assert isinstance(payloads("fisher-merge")[0].statistics, Diagonal)
    assert isinstance(payloads("fedfisher-full")[0].statistics, Full)


def test_merging_again_traces_nothing():
    """One program per rule and shapes, though each call gets new arrays."""
    traced = []

    def solve(summary, start):
        traced.append(1)
        return Merged(jax.tree.map(lambda leaf: leaf / summary.weight, summary.params), {})

    weighted = lambda p, start: p._replace(params=jax.tree.map(lambda leaf: p.weight * leaf, p.params))  # noqa: E731
    rule = Rule("mean", lambda update, data, key: Payload(1.0, update.params), weighted, solve, "add")
    for scale in (1.0, 3.0):
        payloads = Payload(jnp.asarray([1.0, 3.0]), scale * jnp.asarray([[4.0], [8.0]]))
        assert float(simulate.merge_clients(rule, payloads).params[0]) == 7 * scale
    assert len(traced) == 1


ADDING = ("fedavg", "fisher-merge", "fedfisher-diag", "fedfisher-full", "regmean")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", ADDING)
def test_payloads_merged_one_by_one_are_merged_all_at_once(name, dtype):
    sent = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), list(payloads(name)))
    start = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype), MODELS[0])
    want = simulate.merge_clients(rule(name), stack(sent), start)
    got = merge_one_by_one(rule(name), iter(sent), start)
    for a, b in zip(jax.tree.leaves(got.params), jax.tree.leaves(want.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5 if dtype == jnp.float32 else 1e-9, atol=1e-6)
    assert set(got.diagnostics) == set(want.diagnostics)


@pytest.mark.slow
def test_only_two_payloads_are_held_at_a_time():
    held = []

    def each():
        for number in range(5):
            sent = Payload(jnp.asarray(1.0), {"w": jnp.full(1000, float(number))})
            held.append(weakref.ref(sent.params["w"]))
            yield sent
            del sent
            gc.collect()
            assert sum(one() is not None for one in held) <= 2

    merged = merge_one_by_one(ff.fedavg(apply, ff.categorical()), each())
    np.testing.assert_allclose(merged.params["w"], 2.0)


STACKING = ("fedfisher-kfac", "fedfisher-lowrank", "fedfish-kfac")


@pytest.mark.slow
@pytest.mark.parametrize("name", STACKING)
@pytest.mark.parametrize("together", [1, 3])
def test_passes_over_payloads_solve_what_memory_solves(name, together, monkeypatch):
    """The dense sum in float64 is the judge of both: by chunks of one payload, and of three and then one."""
    made = named(name, solver=ff.conjugate_gradients(damping=0.1, tolerance=1e-12))
    start = jax.tree.map(jnp.zeros_like, MODELS[0])
    sent = [
        made.measure(ff.Update(p, start), ff.examples(X[r], Y[r]), jax.random.key(0))
        for p, r in zip(MODELS, ROWS, strict=True)
    ]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(sent[0]))
    monkeypatch.setattr(one_by_one, "CHUNK", together * size)
    passes = []

    def begin():
        passes.append(0)
        for one in sent:
            passes[-1] += 1
            yield one

    want = ff.merge_payloads(made, sent, start)
    got = merge_one_by_one(made, begin, start)
    assert_close(got.params, want.params, 1e-7)
    assert set(passes) == {len(sent)} and len(passes) == 1 + 4 + int(got.diagnostics["iterations"])
    assert got.diagnostics["converged"] and got.diagnostics["objective_start"] > got.diagnostics["objective_end"]
    for key in ("objective_start", "objective_end"):
        assert float(got.diagnostics[key]) == pytest.approx(float(want.diagnostics[key]), rel=1e-6)
    assert abs(int(got.diagnostics["iterations"]) - int(want.diagnostics["iterations"])) <= 1
    weights = np.asarray([len(r) for r in ROWS]) / sum(len(r) for r in ROWS)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    dense = [np.asarray(one.statistics.to_dense()) for one in sent]
    mean = weights @ np.stack([flat(one.params) for one in sent])
    pull = sum(w * f @ (flat(one.params) - mean) for w, f, one in zip(weights, dense, sent, strict=True))
    total = sum(w * f for w, f in zip(weights, dense, strict=True))
    numbers = np.split(np.arange(total.shape[0]), [3])  # of b, and of w
    shift = np.zeros(total.shape[0])
    for block in sent[0].statistics.blocks():
        rows = np.concatenate([numbers[leaf] for leaf in block])
        shift[rows] = 0.1 * np.diag(total)[rows].mean()
    np.testing.assert_allclose(flat(got.params), mean + np.linalg.solve(total + np.diag(shift), pull), rtol=1e-6)


def test_a_compiled_solver_cannot_read_payloads_again():
    made = named("fedfisher-kfac", solver=ff.solve.paper_loop(ff.solve.released_adam("kronecker")))
    with pytest.raises(TypeError, match="solver: got a compiled one, expected conjugate_gradients"):
        merge_one_by_one(made, payloads("fedfisher-kfac"))


def test_what_cannot_be_merged_one_by_one():
    with pytest.raises(ValueError, match="rule: fipa needs all payloads at once"):
        merge_one_by_one(named("fipa"), [])
    with pytest.raises(ValueError, match="payloads: got an iterator, and fedfisher-kfac goes through them again"):
        merge_one_by_one(rule("fedfisher-kfac"), iter(payloads("fedfisher-kfac")))
    with pytest.raises(ValueError, match="payloads: expected at least one"):
        merge_one_by_one(rule("fedavg"), [])
    with pytest.raises(ValueError, match="which is 2 exchanges"):
        merge_one_by_one(ff.then(rule("fedavg"), rule("fisher-merge")), payloads("fedavg"))
    with pytest.raises(ValueError, match=r"payloads\[1\]"):
        merge_one_by_one(rule("fedavg"), [payloads("fedavg")[0], payloads("fisher-merge")[1]])


def test_integer_weights_do_not_wrap():
    sent = [ff.Payload(np.int32(2_000_000_000), jnp.full(2, value, jnp.float32)) for value in (1.0, 3.0)]
    np.testing.assert_allclose(ff.merge_payloads(rule("fedavg"), sent).params, 2.0, rtol=1e-6)
