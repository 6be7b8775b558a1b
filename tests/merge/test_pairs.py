"""Every rule with what every rule measures: merged as by its own measure, or refused in one line that says why."""

import json
from functools import cache
from pathlib import Path

import chex
import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import fedfisher_jax as ff
from fedfisher_jax import cli
from fedfisher_jax.merge import DenseSettings, Kind, Update, catalogue
from fedfisher_jax.merge._fold import require_squares
from fedfisher_jax.privacy import secure_merge

NAMES = tuple(name for name in catalogue.RULES if name != "natural-gradient")  # which is several exchanges
QUICK: dict = {
    "analytic": {"features": ()},
    "dense": {"settings": DenseSettings(rounds=1, generator_steps=1)},
    "fedbens": {"steps": 5},
}
# What each rule merges beside what it measures itself. FedAvg and, with the model's layers, OTFusion read the models
# alone; others are one measure under several names.
ALIKE = [{"fisher-merge", "fedfisher-diag", "fedfish"}, {"fedfisher-kfac", "fedfish-kfac"}]
ONE_MODEL = ("fedavg", "otfusion")


def is_right(rule, measured):
    if rule in ONE_MODEL:
        return measured not in ("fedbens", "analytic", "recalibrate")  # of two models, and of none
    return rule == measured or any({rule, measured} <= same for same in ALIKE)


@cache
def rule_of(name):
    apply, _, _, captured = federation.net("dense")
    offers = {"captured": captured}
    exact = {"solver": ff.conjugate_gradients(iterations=2000, tolerance=1e-12)} if name in catalogue.SOLVED else {}
    return catalogue.named_rule(name, apply, federation.LIKELIHOOD, offers=offers, **exact, **QUICK.get(name, {}))


@cache
def payloads_of(name):
    _, start, shape, _ = federation.net("dense")
    sent = []
    for client in range(3):
        params = federation.perturbed(start, client)
        squares = jax.tree.map(jnp.square, federation.perturbed(start, 10 + client))
        mine = federation.data(shape, client)
        sent.append(rule_of(name).measure(Update(params, start, squares), mine, federation.KEY))
    return sent


@cache
def own_model(name):
    return ff.merge_payloads(rule_of(name), payloads_of(name), federation.net("dense")[1]).params


def refusal(rule, function):
    with pytest.raises(ValueError) as caught:
        function()
    line = str(caught.value)
    assert line.startswith(f"rule: {rule} takes ") and "; the payload holds " in line and line.isprintable()
    return line


@pytest.mark.parametrize("measured", NAMES)
@pytest.mark.parametrize("name", NAMES)
def test_in_memory(name, measured):
    rule, sent, start = rule_of(name), payloads_of(measured), federation.net("dense")[1]
    merge = lambda: ff.merge_payloads(rule, sent, start)  # noqa: E731
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sent)
    merge_stacked = lambda: ff.federate.merge_clients(rule, stacked, start)  # noqa: E731
    if not is_right(name, measured):
        refusal(name, merge)
        refusal(name, merge_stacked)
        if rule.combine == "add":
            refusal(name, lambda: secure_merge(rule, sent, start))
        return
    chex.assert_trees_all_close(merge().params, own_model(name), rtol=1e-6, atol=1e-9)
    if name not in ("dense", "fedbens"):  # whose searches amplify what a compiler rounds
        chex.assert_trees_all_close(merge_stacked().params, own_model(name), rtol=1e-6, atol=1e-9)
    if rule.combine == "add":
        chex.assert_trees_all_close(secure_merge(rule, sent, start).params, own_model(name), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_exact_and_drawn_fishers_are_one_statistic_and_empirical_ones_another():
    apply, start, shape, captured = federation.net("dense")
    rules = {
        kind: ff.fedfisher(apply, federation.LIKELIHOOD, kind=kind, captured=captured)
        for kind in ("exact", "monte_carlo", "empirical")
    }
    sent = {
        kind: [rule.measure(Update(start), federation.data(shape, 0), federation.KEY)] for kind, rule in rules.items()
    }
    for kind in ("exact", "monte_carlo"):
        ff.merge_payloads(rules["exact"], sent[kind])
        ff.merge_payloads(rules["monte_carlo"], sent[kind])
        line = refusal("fedfisher-kfac", lambda k=kind: ff.merge_payloads(rules[k], sent["empirical"]))
        assert "kronecker (empirical)" in line
        refusal("fedfisher-kfac", lambda k=kind: ff.merge_payloads(rules["empirical"], sent[k]))
    ff.merge_payloads(rule_of("fedlpa"), sent["empirical"])


def test_payloads_made_by_hand_and_rules_of_ones_own_are_checked_by_structure_alone():
    sent = [payload._replace(kind=None) for payload in payloads_of("fedfisher-kfac")]
    ff.merge_payloads(rule_of("fedfisher-kfac"), sent)
    refusal("fedfisher-diag", lambda: ff.merge_payloads(rule_of("fedfisher-diag"), sent))
    mine = ff.Rule("mine", None, lambda p, start: p.params, lambda s, start: ff.Merged(s, {}), "add")
    ff.merge_payloads(mine, payloads_of("fedbens"))


@pytest.mark.parametrize("name", ["fedfisher-diag", "fedfisher-kfac", "fedfisher-full", "regmean", "regmean-kron"])
def test_an_objective_below_zero_is_an_error(name):
    """Curvatures that are negative where the check of diagonals does not see it: stacked ones are not looked into."""
    rule, sent = rule_of(name), payloads_of(name)
    broken = [payload._replace(statistics=payload.statistics.scale(-1.0)) for payload in sent]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *broken)
    with pytest.raises(ValueError, match="^objective_start: got -.*, expected at least 0 of a sum of squares"):
        ff.federate.merge_clients(rule, stacked)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fisher-merge", "fedfisher-diag", "fedfisher-full", "regmean", "regmean-kron"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_rounding_is_no_error(name, dtype):
    """Equal clients far from zero: Q is the difference of numbers that are 1e8 times as large as it could be."""
    rule, sent = rule_of(name), payloads_of(name)
    far = jax.tree.map(lambda leaf: leaf + 1e3, sent[0].params)
    equal = [jax.tree.map(lambda leaf: leaf.astype(dtype), payload._replace(params=far)) for payload in sent]
    merged = ff.merge_payloads(rule, equal)
    assert merged.diagnostics["objective_start"] >= 0 and merged.diagnostics["objective_end"] >= 0


def test_objectives_that_are_none_are_let_through():
    rule = rule_of("fedfisher-diag")
    require_squares(rule, ff.Merged(None, {"objective_start": 0.0, "objective_end": 1.0}))
    require_squares(rule, ff.Merged(None, {"iterations": -1}))
    assert Kind("exact") == Kind("exact") != Kind("empirical")


# In files --------------------------------------------------------------------------------------------------------

IN_FILES = tuple(name for name in NAMES if name not in ("otfusion", "pfnm", "dense", "fedbens"))
# In files the kind is known and told to rules that can measure it: K-FAC of empirical factors is what FedLPA merges.
ALIKE_IN_FILES = [*ALIKE, {"fedfisher-kfac", "fedlpa"}]


@pytest.fixture(scope="module")
def silos(tmp_path_factory):
    """Payload files of two silos for every rule that has such."""
    folder, draw = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    start = folder / "start.safetensors"
    cli.main(["init", "--model", "mlp", "--input-shape", "4", "--outputs", "2", "--out", str(start)])
    for silo in range(2):
        x, y = draw.normal(size=(30, 4)).astype(np.float32) + silo, draw.integers(0, 2, 30)
        np.savez(folder / f"{silo}.npz", x=x, y=y)
        for name in IN_FILES:
            (folder / name).mkdir(exist_ok=True)
            call = ["measure", "--data", folder / f"{silo}.npz", "--start", start, "--silo", silo, "--rule", name]
            trained = () if name in ("analytic", "recalibrate") else ("--epochs", 2)
            cli.main([str(word) for word in (*call, *trained, "--out", folder / name / f"{silo}.safetensors")])
    return folder


def merged(silos, name, measured, out):
    cli.main(
        ["merge", str(silos / measured), "--start", str(silos / "start.safetensors"), "--rule", name, "--out", out]
    )
    return safetensors.numpy.load_file(out), json.loads(Path(out).with_suffix(".json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("measured", IN_FILES)
@pytest.mark.parametrize("name", NAMES)
def test_in_files(name, measured, silos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if is_right(name, measured):
        own = "fedavg" if name in ONE_MODEL else name
    elif (name, measured) == ("fedfisher-kfac", "fedlpa"):
        own = "fedlpa"
    else:
        with pytest.raises(SystemExit, match="2"):
            merged(silos, name, measured, "m.safetensors")
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and f"rule: {name} takes " in lines[0] and "; the payload holds " in lines[0], lines
        assert not list(tmp_path.iterdir())
        return
    found, record = merged(silos, name, measured, "m.safetensors")
    expected, _ = merged(silos, own if own == "fedlpa" else name, own, "own.safetensors")
    assert record["rule"] == name
    for entry, array in expected.items():
        np.testing.assert_allclose(found[entry], array, rtol=2e-4, atol=2e-5)
