"""Options as words after a rule's name."""

import dataclasses
import functools
import sys
import types

import numpy as np
import pytest

import fedfisher_jax as ff
from fedfisher_jax.merge import catalogue
from fedfisher_jax.merge._entry import known_options
from fedfisher_jax.merge._options import named

LINEAR = (lambda w, x: x @ w, ff.categorical())


def solved(name, **options):
    rule = catalogue.named_rule(name, *LINEAR, **options)
    sent = [
        ff.Payload(np.asarray(2.0), np.full((2, 3), float(n)), ff.Diagonal(np.full((2, 3), 1.0 + n))) for n in range(2)
    ]
    return np.asarray(ff.merge_payloads(rule, sent).params)


def test_a_name_is_taken_apart():
    assert named("recalibrate,ridge=0.1@fc1,fc2:100") == ("recalibrate", {"ridge": "0.1"}, ("fc1", "fc2:100"))
    assert named("fedavg") == ("fedavg", {}, ())
    for wrong in ("a,b", "a,b=", "a,=1", "a,b=1,b=2"):
        with pytest.raises(ValueError, match="expected OPTION=VALUE"):
            named(wrong)


def test_an_option_is_the_constructors_argument():
    options = solved("fedfisher-diag,damping=5,iterations=3")
    solver = ff.conjugate_gradients(damping=5.0, iterations=3)
    np.testing.assert_array_equal(options, solved("fedfisher-diag", solver=solver))
    assert not np.allclose(options, solved("fedfisher-diag"))
    same = solved("fedfisher-diag,iterations=100")  # the other options keep the rule's own defaults
    np.testing.assert_array_equal(same, solved("fedfisher-diag"))
    fipa = catalogue.named_rule("fipa,rank=3,power-steps=4", *LINEAR).measure
    assert (fipa.subspace.rank, fipa.subspace.power_steps, fipa.subspace.oversampling) == (3, 4, 10)
    assert catalogue.named_rule("fedfish,estimator=squares,scale=mean", *LINEAR).squares
    assert catalogue.named_rule("fisher-merge,kind=empirical", *LINEAR, offers={"kind": "exact"}).measure.kind == (
        "empirical"
    )


def test_an_option_counts_over_those_of_a_variant():
    seen = {}

    @functools.wraps(ff.fipa)
    def spy(apply, likelihood, **options):
        seen.update(options)
        return ff.fipa(apply, likelihood)

    rules = {"fipa": catalogue.RULES["fipa"]._replace(constructor=spy)}
    catalogue.named_rule("fipa,rho=2,tau=0.5@memory,public", *LINEAR, rules=rules)
    assert seen["past"] == ff.merge.PastFishers(rho=2.0)
    assert seen["step"] == dataclasses.replace(ff.merge.public_fipa_step(), tau=0.5)
    found = ff.capture(
        lambda w, x: x @ w["b"] @ w["a"], {"a": np.zeros((2, 3)), "b": np.zeros((4, 2))}, np.zeros((1, 4))
    )
    last = catalogue.named_rule("fipa,oversampling=5@last", *LINEAR, offers={"captured": found}).measure.subspace
    assert (last.oversampling, last.where) == (5, (0,))


def test_every_rule_takes_its_own_options():
    for name, entry in catalogue.RULES.items():
        known = known_options(entry)
        assert "apply" not in known and "likelihood" not in known and "captured" not in known, name
    assert "damping" in catalogue.options_of("fedlpa") and "damping" not in catalogue.options_of("regmean")
    assert {"steps", "weight"} <= set(catalogue.options_of("pseudo-data")) and catalogue.options_of("fedavg") == ()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fedfisher-kfac,dampin=1", "'dampin', expected one of batch_size, damping, iterations"),
        ("fedfisher-kfac,damping=x", "damping: got 'x', expected float"),
        ("otfusion,rescale=1", "rescale: got '1', expected true, false"),
        ("fedavg,rank=1", "got the option 'rank', expected one of none"),
        ("fipa,off_span=there", "fipa: off_span"),
        ("fedfish@squares", "got fedfish@squares, expected options after commas: batch_size, eps, estimator"),
        ("nobody,a=1", "got 'nobody', expected one of fedavg"),
    ],
)
def test_what_is_wrong_is_named(name, words):
    with pytest.raises(ValueError, match="rules: ") as error:
        catalogue.named_rule(name, *LINEAR)
    assert words in str(error.value)


def test_a_users_rule_has_options_too(monkeypatch):
    module = types.ModuleType("my_optional_rule")
    module.mine = lambda apply, likelihood, *, floor=0.5: ff.fisher_merge(apply, likelihood, floor=floor)
    monkeypatch.setitem(sys.modules, "my_optional_rule", module)
    assert catalogue.options_of("my_optional_rule:mine") == ("floor",)
    assert catalogue.named_rule("my_optional_rule:mine,floor=0.25", *LINEAR).name == "fisher-merge"
    with pytest.raises(ValueError, match="got the option 'flor', expected one of floor"):
        catalogue.named_rule("my_optional_rule:mine,flor=1", *LINEAR)


def test_a_flag_gives_an_option_to_those_that_have_it():
    assert catalogue.with_option("fedfisher-kfac+recalibrate@fc1", "damping", 2.0) == (
        "fedfisher-kfac,damping=2.0+recalibrate@fc1"
    )
    assert catalogue.with_option("fedfisher-kfac,damping=1", "damping", 2.0) == "fedfisher-kfac,damping=1"
    assert not catalogue.goes_on("fedfisher-kfac+pfnm,gamma=2") and catalogue.goes_on("fedavg")
