"""Regions: files that stand for many silos give the merge of their silos' own files; silos that leave are not in it."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import resealed

import fedfisher_jax as ff
from fedfisher_jax import payload
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.merge import catalogue
from fedfisher_jax.payload import _container as container
from fedfisher_jax.silos import _model_file as model_file

RULES = {"fedavg": None, "fedfisher-diag": None, "fisher-merge": None, "analytic": None, "fedfisher-kfac": "8 bits"}
SILOS = 7


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Payload files of seven silos for every rule, of models that differ, measured on their data."""
    here = tmp_path_factory.mktemp("regions")
    command("init", "--model", "mlp", "--input-shape", 6, "--outputs", 3, "--out", here / "start.safetensors")
    start = model_file.read(here / "start.safetensors")
    draw = np.random.default_rng(0)
    for name in RULES:
        (here / name).mkdir()
        rule = catalogue.named_rule(name, start.network.apply, ff.categorical())
        measure = jax.jit(
            lambda model, data, rule=rule: rule.measure(ff.Update(model, start.params), data, jax.random.key(0))
        )
        for number in range(SILOS):
            size = 10 + number
            x, y = draw.normal(size=(size, 6)).astype(np.float32), draw.integers(0, 3, size)
            model = jax.tree.map(
                lambda leaf: leaf + jnp.asarray(0.1 * draw.normal(size=leaf.shape), leaf.dtype), start.params
            )
            sent = measure(model, ff.examples(x, y))
            kind = None if sent.kind is None else sent.kind.name
            said = payload.About(name, "categorical", start.fingerprint, kind, silo=number, name=f"silo {number}")
            chosen = payload.plan.fit(sent, said, 2.0) if RULES[name] else None
            payload.write(here / name / f"{number}.safetensors", sent, said, chosen)
    return here


def files(folder, rule, *numbers):
    return [folder / rule / f"{number}.safetensors" for number in numbers or range(SILOS)]


def merged(folder, paths, out, *more):
    command("merge", *paths, "--start", folder / "start.safetensors", "--out", out, *more)
    params = model_file.read(out).params
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)], json.loads(out.with_suffix(".json").read_text())


def fold(folder, paths, out, *more):
    command("fold", *paths, "--start", folder / "start.safetensors", "--out", out, *more)
    return out


def equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rule", RULES)
def test_regions_of_regions_give_the_merge_of_all_files_to_the_bit(rule, folder, tmp_path):
    want, report = merged(folder, files(folder, rule), tmp_path / "all.safetensors")
    east = fold(folder, files(folder, rule, 5, 1), tmp_path / "east.safetensors")
    west = fold(folder, files(folder, rule, 6, 0, 3), tmp_path / "west.safetensors")
    both = fold(folder, [west, east], tmp_path / "both.safetensors")
    got, again = merged(folder, [both, *files(folder, rule, 4, 2)], tmp_path / "got.safetensors")
    equal(got, want)
    kept = ("silo", "examples", "weight", "digest")
    assert [[one[k] for k in kept] for one in again["contributors"]] == [
        [one[k] for k in kept] for one in report["contributors"]
    ]
    assert [one["name"] for one in again["contributors"]] == ["", "", "silo 2", "", "silo 4", "", ""]
    other, _ = merged(folder, [east, west, *files(folder, rule, 2, 4)], tmp_path / "other.safetensors")
    equal(other, want)
    whole = fold(folder, files(folder, rule), tmp_path / "whole.safetensors", "--names")
    assert fold(folder, [both, *files(folder, rule, 2, 4)], tmp_path / "parts.safetensors").stat().st_size > 0
    alone, said = merged(folder, [whole], tmp_path / "alone.safetensors")
    equal(alone, want)
    assert [one["name"] for one in said["contributors"]] == [f"silo {n}" for n in range(SILOS)]


def test_the_order_of_grouping_changes_no_byte_of_a_region(folder, tmp_path):
    one = fold(folder, files(folder, "fedfisher-diag"), tmp_path / "one.safetensors")
    first = fold(folder, files(folder, "fedfisher-diag", 3, 6, 2), tmp_path / "first.safetensors")
    rest = fold(folder, files(folder, "fedfisher-diag", 0, 1, 4, 5), tmp_path / "rest.safetensors")
    two = fold(folder, [rest, first], tmp_path / "two.safetensors")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("rule", ["fedavg", "fedfisher-diag", "analytic"])
def test_a_merge_of_files_is_that_of_memory_but_for_the_rounding_of_a_sum(rule, folder, tmp_path):
    """The sum is that of float64, rounded once; where it is well conditioned, memory's float32 sum gives the same."""
    start = model_file.read(folder / "start.safetensors")
    made = catalogue.named_rule(rule, start.network.apply, ff.categorical())
    sent = [payload.read(path, start.params)[0] for path in files(folder, rule)]
    memory = jax.tree.leaves(ff.merge_payloads(made, sent, start.params).params)
    lifted = [jax.jit(lambda one: ff.merge.lift(made, one, start.params))(one) for one in sent]
    add = lambda *leaves: jnp.asarray(sum(np.asarray(leaf, np.float64) for leaf in leaves), leaves[0].dtype)  # noqa: E731
    want = jax.tree.leaves(made.solve(jax.tree.map(add, *lifted), start.params).params)
    got, report = merged(folder, files(folder, rule), tmp_path / "g.safetensors")
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    if rule != "analytic":
        for a, b in zip(got, memory, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
        for one, own in zip(report["contributors"], sent, strict=True):
            gaps = [
                np.sum((np.asarray(p, float) - g) ** 2) for p, g in zip(jax.tree.leaves(own.params), got, strict=True)
            ]
            assert one["distance_from_merged"] == pytest.approx(np.sqrt(sum(gaps)), rel=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_who_leaves_is_in_nothing_but_the_record(rule, folder, tmp_path):
    before, _ = merged(folder, files(folder, rule), tmp_path / "g.safetensors")
    old = hashlib.sha256((tmp_path / "g.safetensors").read_bytes()).hexdigest()
    got, report = merged(folder, files(folder, rule), tmp_path / "g.safetensors", "--without", 3, 5)
    want, never = merged(folder, files(folder, rule, 0, 1, 2, 4, 6), tmp_path / "never.safetensors")
    equal(got, want)
    assert any(not np.array_equal(a, b) for a, b in zip(got, before, strict=True))
    assert report["contributors"] == never["contributors"] and "left" not in never
    assert [(one["silo"], one["file"]) for one in report["left"]] == [(3, "3.safetensors"), (5, "5.safetensors")]
    assert report["before"] == old
    region = fold(folder, files(folder, rule), tmp_path / "r.safetensors", "--without", 3)
    left, _ = merged(folder, [region], tmp_path / "left.safetensors")
    equal(left, merged(folder, files(folder, rule, 0, 1, 2, 4, 5, 6), tmp_path / "want.safetensors")[0])


def test_a_silo_leaves_a_region_that_stacks(folder, tmp_path):
    region = fold(folder, files(folder, "fedfisher-kfac"), tmp_path / "r.safetensors")
    got, report = merged(folder, [region], tmp_path / "g.safetensors", "--without", 3)
    equal(got, merged(folder, files(folder, "fedfisher-kfac", 0, 1, 2, 4, 5, 6), tmp_path / "n.safetensors")[0])
    assert [one["silo"] for one in report["left"]] == [3] and report["before"] is None


def refused(words, capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        command(*arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_what_cannot_be_folded_or_left_is_one_line(folder, tmp_path, capsys):
    start = ["--start", folder / "start.safetensors", "--out", tmp_path / "out.safetensors"]
    region = fold(folder, files(folder, "fedavg", 0, 3), tmp_path / "r.safetensors")
    capsys.readouterr()
    refused("without: got 9, which is in none", capsys, "merge", region, *start, "--without", 9)
    refused("3 is within the sum of", capsys, "merge", region, *files(folder, "fedavg", 1), *start, "--without", 3)
    refused("without: got all silos", capsys, "merge", *files(folder, "fedavg", 1), *start, "--without", 1)
    refused("silo: number 3 is in", capsys, "merge", region, *files(folder, "fedavg", 3), *start)
    refused("rule: 'fisher-merge', but 'fedavg'", capsys, "merge", region, *files(folder, "fisher-merge", 1), *start)
    refused("holds a sum for fedavg, which fisher-merge", capsys, "merge", region, *start, "--rule", "fisher-merge")
    refused("would write over", capsys, "fold", region, "--start", folder / "start.safetensors", "--out", region)


def change_header(header, arrays, **values):
    header |= values


CHANGES = {
    "examples": lambda header, arrays: header["silos"][0].update(examples=1000),
    "weight": lambda header, arrays: arrays.update({"high/weight": np.asarray(2 * arrays["high/weight"])}),
    "low": lambda header, arrays: arrays.update({"low/weight": np.ones(())}),
    "finite": lambda header, arrays: arrays.update({"high/constant": np.full((), np.nan)}),
    "announces": lambda header, arrays: arrays.update({"high/more": np.ones(())}),
    "expected no negative": lambda header, arrays: arrays.update(
        {n: -a for n, a in arrays.items() if n.startswith("high/fisher")}
    ),
    "float64": lambda header, arrays: arrays.update({"high/weight": np.ones((), np.float32)}),
    "a number is there twice": lambda header, arrays: header["silos"][1].update(silo=0),
    "silo: expected": lambda header, arrays: header["silos"][1].update(silo=True),
    "expected printable": lambda header, arrays: header["silos"][1].update(name="\x1b]0;owned"),
    "digest": lambda header, arrays: header["silos"][1].update(digest="x" * 64),
    "privacy": lambda header, arrays: header["silos"][1].update(privacy=[1]),
    "bits": lambda header, arrays: header["silos"][1].update(bits=-1),
    "silos: expected objects": lambda header, arrays: header["silos"].append(3),
    "region: expected format": lambda header, arrays: change_header(header, arrays, format=2),
    "silos: expected a list": lambda header, arrays: change_header(header, arrays, silos=[]),
}


@pytest.mark.parametrize("words", CHANGES)
def test_a_hostile_region_is_refused(words, folder, tmp_path, capsys):
    region = fold(folder, files(folder, "fedfisher-diag", 0, 3), tmp_path / "r.safetensors")
    region.write_bytes(resealed(region.read_bytes(), CHANGES[words]))
    refused(words, capsys, "merge", region, "--start", folder / "start.safetensors", "--out", tmp_path / "g")


def test_a_hostile_stack_is_refused(folder, tmp_path, capsys):
    region = fold(folder, files(folder, "fedfisher-kfac", 0, 3), tmp_path / "r.safetensors")
    said, _ = container.unpack(region.read_bytes(), payload.Limits(), "r")
    entry = next(iter(container.unpack(region.read_bytes(), payload.Limits(), "r")[1]))
    assert [one["silo"] for one in said["silos"]] == [0, 3]

    def strange(header, arrays):
        arrays["7/params/w"] = arrays[entry]

    def missing(header, arrays):
        del arrays[entry]

    whole = region.read_bytes()
    for change, words in ((strange, "belongs to no silo"), (missing, "is missing")):
        region.write_bytes(resealed(whole, change))
        refused(words, capsys, "merge", region, "--start", folder / "start.safetensors", "--out", tmp_path / "g")


def test_a_robust_merge_of_files_is_that_of_memory(folder, tmp_path, capsys):
    """The options reach the rule, the report says so, an odd file is named, and a sum cannot be looked into."""
    start = model_file.read(folder / "start.safetensors")
    sent, header = payload.read(files(folder, "fedavg", 3)[0], start.params)
    far = jax.tree.map(lambda leaf, at: at + 100 * (leaf - at), sent.params, start.params)
    payload.write(tmp_path / "odd.safetensors", sent._replace(params=far), header.about)
    paths = [*files(folder, "fedavg", 0, 1, 2, 4, 5, 6), tmp_path / "odd.safetensors"]
    got, report = merged(folder, paths, tmp_path / "g.safetensors", "--robust", "krum", "--faulty", 1, "--cap", 0.5)
    assert "silo 3: its numbers lie" in capsys.readouterr().err
    assert report["robust"] == {"how": "krum", "faulty": 1, "cap": 0.5}
    odd = max(report["contributors"], key=lambda one: one["distance_from_others"])
    assert odd["silo"] == 3
    rule = ff.merge.robust(ff.fedavg(start.network.apply, ff.categorical()), "krum", faulty=1, cap=0.5)
    memory = ff.merge_payloads(rule, [payload.read(path, start.params)[0] for path in paths], start.params)
    for a, b in zip(got, jax.tree.leaves(memory.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    region = fold(folder, files(folder, "fedavg"), tmp_path / "r.safetensors")
    more = "--start", folder / "start.safetensors"
    refused("holds a sum, in which no silo can be told", capsys, "merge", region, *more, "--robust", "krum")
    refused("faulty, cap: need robust", capsys, "merge", *paths, *more, "--cap", 0.5)
