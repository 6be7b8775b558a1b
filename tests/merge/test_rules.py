"""Laws of every rule, in float64: one client, equal clients, order, any folding; and what is refused."""

import hashlib
import sys
from functools import cache
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedfisher_jax as ff
from fedfisher_jax.federate import merge_clients
from fedfisher_jax.merge import catalogue, check_payload, combine, fold, merge_one_by_one

RULES = ("fedavg", "fisher-merge", "fedfisher-diag", "fedfisher-kfac", "fedfisher-full")
likelihood = ff.categorical()


def apply(params, x):
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]


@cache
def rule_and_payloads(name, count=4):
    """Clients of different sizes and models."""
    options = {"solver": ff.conjugate_gradients(tolerance=1e-12)} if name.startswith("fedfisher") else {}
    rule = catalogue.named_rule(name, apply, likelihood, **options)
    rng = np.random.default_rng(0)
    payloads = []
    for number in range(count):
        params = {"b": rng.normal(size=3), "v": rng.normal(size=(3, 4)), "w": rng.normal(size=(5, 3))}
        data = ff.examples(rng.normal(size=(6 + number, 5)), rng.integers(0, 4, 6 + number))
        params = jax.tree.map(jnp.asarray, params)
        payloads.append(rule.measure(ff.Update(params), data, jax.random.key(number)))
    return rule, tuple(payloads)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_one_client_is_returned(name):
    rule, payloads = rule_and_payloads(name, 1)
    chex.assert_trees_all_close(ff.merge_payloads(rule, payloads).params, payloads[0].params, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_equal_clients_give_their_common_model(name):
    rule, payloads = rule_and_payloads(name)
    equal = [payload._replace(params=payloads[0].params) for payload in payloads]
    chex.assert_trees_all_close(ff.merge_payloads(rule, equal).params, payloads[0].params, rtol=1e-7)


@pytest.mark.parametrize("name", RULES)
def test_order_does_not_matter(name):
    rule, payloads = rule_and_payloads(name)
    merged = ff.merge_payloads(rule, payloads).params
    chex.assert_trees_all_close(ff.merge_payloads(rule, payloads[::-1]).params, merged, rtol=1e-7)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_the_fold_may_be_split_anywhere(name, cut):
    rule, payloads = rule_and_payloads(name)
    stack = lambda some: fold(rule, jax.tree.map(lambda *x: jnp.stack(x), *(rule.lift(one, None) for one in some)))  # noqa: E731
    halves = combine(rule, stack(payloads[:cut]), stack(payloads[cut:]))
    chex.assert_trees_all_close(rule.solve(halves, None).params, ff.merge_payloads(rule, payloads).params, rtol=1e-7)


def test_fedavg_weighs_by_examples():
    rule, payloads = rule_and_payloads("fedavg")
    shares = np.array([6, 7, 8, 9]) / 30
    expected = sum(p * payload.params["v"] for p, payload in zip(shares, payloads, strict=True))
    np.testing.assert_allclose(ff.merge_payloads(rule, payloads).params["v"], expected, rtol=1e-12)


def test_fisher_merge_is_the_quotient():
    rule, payloads = rule_and_payloads("fisher-merge")
    top = sum(p.weight * p.statistics.values["w"] * p.params["w"] for p in payloads)
    expected = top / sum(p.weight * p.statistics.values["w"] for p in payloads)
    np.testing.assert_allclose(ff.merge_payloads(rule, payloads).params["w"], expected, rtol=1e-9)


def test_equal_measures_are_one():
    build = lambda name: catalogue.named_rule(name, apply, likelihood).measure  # noqa: E731
    assert build("fisher-merge") == build("fedfisher-diag") != build("fedfisher-kfac")


BROKEN = {
    "got a tree .*, expected the first": lambda p: p._replace(params={"w": p.params["w"]}),
    r"params\['w'\]: got shape \(3, 5\), expected \(5, 3\)": lambda p: p._replace(
        params=p.params | {"w": p.params["w"].T}
    ),
    r"params\['b'\]: got NaN or infinity, expected finite": lambda p: p._replace(
        params=p.params | {"b": p.params["b"] * jnp.nan}
    ),
    r"weight: got 0\.0, expected a positive": lambda p: p._replace(weight=jnp.zeros(())),
    r"statistics\['b'\]: got -.*, expected no negative": lambda p: p._replace(statistics=p.statistics.scale(-1.0)),
}


@pytest.mark.parametrize("words", BROKEN)
def test_refusals_name_the_entry(words):
    rule, payloads = rule_and_payloads("fedfisher-diag")
    with pytest.raises(ValueError, match=rf"payloads\[2\].*{words}"):
        ff.merge_payloads(rule, [*payloads[:2], BROKEN[words](payloads[2]), payloads[3]])


@pytest.mark.parametrize("step", [jnp.asarray(5), jnp.asarray(True)], ids=["integer", "boolean"])
def test_parameters_that_a_mean_would_round_to_zero_are_refused(step):
    rule, sent = ff.fedavg(apply, likelihood), ff.Payload(1.0, {"w": jnp.ones(2), "step": step})
    words = rf"params\['step'\]: got {step.dtype}, expected floating-point numbers"
    for merge in (ff.merge_payloads, merge_one_by_one):
        with pytest.raises(TypeError, match=r"payloads\[0\]." + words):
            merge(rule, [sent, sent])
    with pytest.raises(TypeError, match=words):
        merge_clients(rule, jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * 2), sent))


STARTS = {
    r"\['w'\]: got shape \(3, 1\), expected \(2,\)": {"w": jnp.zeros((3, 1))},
    r": got a tree .*'v'.*, expected the parameters', .*'w'": {"v": jnp.zeros(2)},
}


@pytest.mark.parametrize("words", STARTS)
def test_a_start_that_is_not_like_the_parameters_is_refused_by_every_merge(words):
    ones = {"w": jnp.ones(2)}
    rule, sent, start = ff.fedfish(apply, likelihood), ff.Payload(1.0, ones, ff.Diagonal(ones)), STARTS[words]
    for merge in (ff.merge_payloads, merge_one_by_one):
        with pytest.raises(ValueError, match="start" + words):
            merge(rule, [sent, sent], start)
    with pytest.raises(ValueError, match="start" + words):
        merge_clients(rule, jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), sent), start)


def test_a_start_may_have_other_types():
    rule, sent = ff.fedavg(apply, likelihood), ff.Payload(jnp.asarray(1.0), {"w": jnp.full(2, 0.5, jnp.float32)})
    start = {"w": np.zeros(2, np.float64)}
    assert ff.merge_payloads(rule, [sent, sent], start).params["w"].tolist() == [0.5, 0.5]


def test_every_fisher_of_a_payload_is_looked_at():
    rule, payloads = rule_and_payloads("fedfisher-diag")
    modes = [p._replace(statistics=(p.statistics, {"more": p.statistics})) for p in payloads]
    broken = modes[1]._replace(
        statistics=(modes[1].statistics[0], {"more": modes[1].statistics[1]["more"].scale(-1.0)})
    )
    check_payload(modes[1], modes[0])
    with pytest.raises(ValueError, match=r"payload.statistics\[1\]\['more'\]\['b'\]: got -.*, expected no negative"):
        check_payload(broken, modes[0])


def test_no_payloads():
    with pytest.raises(ValueError, match="payloads: expected at least one"):
        ff.merge_payloads(ff.fedavg(apply, likelihood), [])


def test_unknown_names():
    with pytest.raises(ValueError, match="rules: got 'best', expected one of fedavg"):
        catalogue.named_rule("best", apply, likelihood)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = undefined_name", "cannot import .*NameError: name 'undefined_name'"),
        ("def f(:", "cannot import .*SyntaxError"),
        ("import sys; sys.exit(3)", "cannot import .*SystemExit: 3"),
        ("def g(): pass", "cannot import .*AttributeError"),
        ("raise BufferError('two\\nlines')", "cannot import .*BufferError: two lines$"),
        ("f = 3", "is a int, expected a function"),
        ("def f(apply, likelihood): raise KeyError('k')", "failed: KeyError: 'k'"),
        ("def f(apply, likelihood): exit(3)", "failed: SystemExit: 3"),
        ("def f(apply): return None", "failed: TypeError"),
        ("def f(apply, likelihood): return None", "returned NoneType, expected a Rule"),
    ],
)
def test_a_users_rule_that_fails_in_any_way_is_one_line(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"users_rule_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    Path(name + ".py").write_text(text)
    with pytest.raises(ValueError, match=f"^rules: '{name}:f' ({words})|^rules: {words}"):
        catalogue.named_rule(f"{name}:f", lambda w, x: x @ w, ff.categorical())
    with pytest.raises(ValueError, match="structure: got 'sparse'"):
        ff.fedfisher(apply, likelihood, structure="sparse")


NARROW = ("fedavg", "fisher-merge", "fedfisher-diag", "fedfisher-kfac", "fedfisher-full", "fedfisher-lowrank")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, jnp.bfloat16) for name in (*NARROW, "fedlpa", "regmean", "regmean-kron")]
    + [("fedavg", jnp.float16), ("fedfisher-kfac", jnp.float16)],
)
def test_narrow_models_are_merged_in_float32_and_come_back_as_they_were(name, dtype):
    """Clients of unlike sizes: 300 is more than bfloat16 can count to, and 70,000 more than float16 holds."""
    rng = np.random.default_rng(0)
    shapes = {"b": 3, "v": (3, 4), "w": (5, 3)}
    models = [{k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()} for _ in range(3)]
    batches = [ff.examples(rng.normal(size=(40, 5)), rng.integers(0, 4, 40)) for _ in models]

    def merged(kind):
        def apply_in(params, x):
            return apply(params, x.astype(kind))

        rule, sent = catalogue.named_rule(name, apply_in, likelihood), []
        for number, (params, data) in enumerate(zip(models, batches, strict=True)):
            params = jax.tree.map(lambda leaf: leaf.astype(kind), params)
            one = rule.measure(ff.Update(params), data, jax.random.key(0))
            sent.append(one._replace(weight=jnp.asarray([300.0, 70_000.0, 257.0][number])))
        return ff.merge_payloads(rule, sent).params

    narrow, wide = merged(dtype), merged(jnp.float32)
    chex.assert_trees_all_equal_dtypes(narrow, models[0])
    away = max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, models[:2]), strict=True))
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        np.testing.assert_allclose(a.astype(float), b.astype(float), atol=0.02 * away)


RULES_WITH_OPTIONS = [
    (ff.fedfisher, "batch_size, captured, kind, samples, skip, solver, structure, subspace"),
    (ff.fisher_merge, "batch_size, captured, floor, kind"),
    (ff.merge.fedlpa, "batch_size, captured, samples, skip, solver, subspace"),
    (ff.merge.regmean, "batch_size, captured, compression, off_diagonal, solver, uniform"),
    (ff.merge.released_regmean, "batch_size, captured"),
    (ff.merge.regmean_kron, "batch_size, captured, off_diagonal, solver"),
    (ff.merge.fedbens, "batch_size, captured, kind, optimizer, others, precision"),
    (ff.fedfish, "batch_size, captured, eps, estimator, floor, samples, scale"),
    (ff.fipa, "batch_size, captured, kind, past, rank, step, subspace"),
]


@pytest.mark.parametrize(("rule", "known"), RULES_WITH_OPTIONS, ids=lambda given: getattr(given, "__name__", ""))
def test_a_misspelt_option_is_refused_with_the_known_ones(rule, known):
    with pytest.raises(TypeError, match="^option: got 'batchsize', expected one of ") as caught:
        rule(lambda w, x: x @ w, ff.categorical(), batchsize=8)
    listed = str(caught.value).split("expected one of ")[1].split(", ")
    assert set(known.split(", ")) <= set(listed)
    assert listed == sorted(listed)
