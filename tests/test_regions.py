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
from fedfisher_jax.payload import _files_of_a_merge as files_of
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


def start_of(folder):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model_file.read(folder / "start.safetensors").params)]


def equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
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


@pytest.mark.slow
def test_payloads_that_are_read_again_and_again_give_the_merge_of_memory(folder, tmp_path, capsys):
    """With a region among the files, and one silo that leaves. Two solvers that stop at residuals of 1e-4 differ by
    that times the conditioning; tests/merge/test_fold.py solves to 1e-12 and compares with a dense solve."""
    sent = files(folder, "fedfisher-kfac")
    region = fold(folder, sent[2:5], tmp_path / "r.safetensors")
    for more in ((), ("--without", 3)):
        want, report = merged(folder, sent, tmp_path / "memory.safetensors", *more)
        again = region, *sent[:2], *sent[5:], "--in-memory", 1000, *more
        got, said = merged(folder, [*again], tmp_path / "passes.safetensors")
        gap, moved = (sum(np.sum((a - b) ** 2) for a, b in zip(want, o, strict=True)) for o in (got, start_of(folder)))
        assert np.sqrt(gap) < 1e-3 * np.sqrt(moved)
        assert said["diagnostics"]["converged"] and [one["digest"] for one in said["contributors"]] == [
            one["digest"] for one in report["contributors"]
        ]
        for one, other in zip(said["contributors"], report["contributors"], strict=True):
            assert one["distance_from_merged"] == pytest.approx(other["distance_from_merged"], rel=1e-3)


@pytest.mark.slow
def test_a_region_of_few_products_says_how_near_it_is(folder, tmp_path, capsys):
    """With as many products as silos nothing is lost, over regions of regions; with one, the error is said."""
    sent = files(folder, "fedfisher-kfac")
    want, report = merged(folder, sent, tmp_path / "memory.safetensors")
    moved = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(want, start_of(folder), strict=True)))
    east = fold(folder, sent[1:3], tmp_path / "east.safetensors", "--rank", 7, "--names")
    both = fold(folder, [east, *sent[3:5]], tmp_path / "both.safetensors", "--rank", 7, "--names")
    got, said = merged(folder, [both, sent[0], *sent[5:]], tmp_path / "got.safetensors")
    gap = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(got, want, strict=True)))
    assert gap < 1e-3 * moved and said["diagnostics"]["converged"]
    assert said["diagnostics"]["objective_end"] == pytest.approx(report["diagnostics"]["objective_end"], rel=1e-4)
    assert [one["name"] for one in said["contributors"]] == [f"silo {n}" for n in range(SILOS)]
    capsys.readouterr()
    one = fold(folder, sent, tmp_path / "one.safetensors", "--rank", 1)
    assert "off by at most" in capsys.readouterr().out
    rough, _ = merged(folder, [one], tmp_path / "rough.safetensors")
    gap = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(rough, want, strict=True)))
    assert gap < 0.5 * moved  # seven models far apart, by one product
    start = ["--start", folder / "start.safetensors", "--out", tmp_path / "out.safetensors"]
    refused("nobody can be taken: fold that again without it", capsys, "merge", one, *start, "--without", 3)
    refused("which are folded by --rank alone", capsys, "fold", one, *start)
    refused("rank: fedavg stacks no Kronecker products", capsys, "fold", *files(folder, "fedavg"), *start, "--rank", 2)
    whole = one.read_bytes()
    for words, change in HOSTILE.items():
        one.write_bytes(resealed(whole, change))
        refused(words, capsys, "merge", one, *start)


def of(arrays, part):
    return next(name for name in arrays if name.startswith(part))


HOSTILE = {
    "shifts: expected 3 numbers": lambda header, arrays: header["shifts"].append(1.0),
    "dropped: expected 3 numbers": lambda header, arrays: header.update(dropped=[1.0, -1.0, 0.0]),
    "expected a positive semi-definite": lambda header, arrays: arrays.update(
        {of(arrays, "terms/inputs"): -arrays[of(arrays, "terms/inputs")]}
    ),
    "is missing": lambda header, arrays: arrays.pop(of(arrays, "pull")),
    "expected finite": lambda header, arrays: arrays.update({"value": np.full((), np.nan)}),
    "rank: got 0": lambda header, arrays: arrays.update({n: np.zeros(()) for n in arrays if n.startswith("terms/")}),
}


def test_a_file_that_changes_between_passes_is_refused(folder, tmp_path):
    start = model_file.read(folder / "start.safetensors")
    (tmp_path / "p.safetensors").write_bytes(files(folder, "fedavg", 1)[0].read_bytes())
    terms = files_of.Terms(start.params, start=start.fingerprint)
    part = files_of.parts_of([tmp_path / "p.safetensors"], terms)[0]
    again = lambda: list(files_of.payloads_of(part, terms, sound=True))  # noqa: E731
    assert again()[0][1].about.silo == 1
    (tmp_path / "p.safetensors").write_bytes(files(folder, "fedavg", 2)[0].read_bytes())
    with pytest.raises(payload.PayloadError, match="changed while it was being read"):
        again()


def test_the_order_of_grouping_changes_no_byte_of_a_region(folder, tmp_path, capsys):
    one = fold(folder, files(folder, "fedfisher-diag"), tmp_path / "one.safetensors", "--names")
    command("inspect", one, "--start", folder / "start.safetensors")
    printed = " ".join(capsys.readouterr().out.split())
    assert "sum of silos' contributions" in printed and "0 silo 0, 1 silo 1, " in printed
    assert f"examples │ {sum(range(10, 10 + SILOS))} " in printed and "high/weight" in printed
    first = fold(folder, files(folder, "fedfisher-diag", 3, 6, 2), tmp_path / "first.safetensors", "--names")
    rest = fold(folder, files(folder, "fedfisher-diag", 0, 1, 4, 5), tmp_path / "rest.safetensors", "--names")
    two = fold(folder, [rest, first], tmp_path / "two.safetensors", "--names")
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


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_who_leaves_is_in_nothing_but_the_record(rule, folder, tmp_path):
    before, _ = merged(folder, files(folder, rule), tmp_path / "g.safetensors")
    old = sha256(tmp_path / "g.safetensors")
    got, report = merged(folder, files(folder, rule), tmp_path / "g.safetensors", "--without", 3, 5)
    want, never = merged(folder, files(folder, rule, 0, 1, 2, 4, 6), tmp_path / "never.safetensors")
    equal(got, want)
    assert any(not np.array_equal(a, b) for a, b in zip(got, before, strict=True))
    assert report["contributors"] == never["contributors"] and "leaving" not in never
    assert [(one["silo"], one["file"], one["sha256"]) for one in report["leaving"]["left"]] == [
        (number, f"{number}.safetensors", sha256(files(folder, rule, number)[0])) for number in (3, 5)
    ]
    assert report["leaving"]["before"] == {"model": old, "region": None}
    assert report["leaving"]["after"]["model"] == report["sha256"] == sha256(tmp_path / "g.safetensors")
    assert [one["file"] for one in report["leaving"]["merged"]] == [f"{n}.safetensors" for n in (0, 1, 2, 4, 6)]
    region = fold(folder, files(folder, rule), tmp_path / "r.safetensors", "--without", 3)
    left, _ = merged(folder, [region], tmp_path / "left.safetensors")
    equal(left, merged(folder, files(folder, rule, 0, 1, 2, 4, 5, 6), tmp_path / "want.safetensors")[0])


def test_a_silo_leaves_a_region_that_stacks(folder, tmp_path):
    region = fold(folder, files(folder, "fedfisher-kfac"), tmp_path / "r.safetensors")
    got, report = merged(folder, [region], tmp_path / "g.safetensors", "--without", 3)
    equal(got, merged(folder, files(folder, "fedfisher-kfac", 0, 1, 2, 4, 5, 6), tmp_path / "n.safetensors")[0])
    assert [one["silo"] for one in report["leaving"]["left"]] == [3]
    assert report["leaving"]["before"] == {"model": None, "region": None}


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_who_comes_late_and_who_leaves_later_need_their_own_files_alone(rule, folder, tmp_path):
    """A region of the first five, one that comes late, and two that leave: model and region as if never seen."""
    region, out = tmp_path / "all.safetensors", tmp_path / "g.safetensors"
    merged(folder, files(folder, rule, 0, 1, 2, 3, 4), out, "--into", region)
    late, report = merged(folder, files(folder, rule, 6), out, "--into", region)
    equal(late, merged(folder, files(folder, rule, 0, 1, 2, 3, 4, 6), tmp_path / "n.safetensors")[0])
    assert [one["silo"] for one in report["contributors"]] == [0, 1, 2, 3, 4, 6]
    before = {"model": sha256(out), "region": sha256(region)}
    own = () if rule == "fedfisher-kfac" else ("--payloads", *files(folder, rule, 1, 3))
    start = ["--start", folder / "start.safetensors", "--out", out]
    command("leave", region, "--silo", 3, 1, *own, *start, "--record", tmp_path / "left.json")
    never = merged(folder, files(folder, rule, 0, 2, 4, 6), tmp_path / "never.safetensors")[0]
    equal([np.asarray(leaf) for leaf in jax.tree.leaves(model_file.read(out).params)], never)
    assert region.read_bytes() == fold(folder, files(folder, rule, 0, 2, 4, 6), tmp_path / "r.safetensors").read_bytes()
    record = json.loads((tmp_path / "left.json").read_text())
    assert record == json.loads(out.with_suffix(".json").read_text())["leaving"] and record["not_removed"]
    assert [one["silo"] for one in record["left"]] == [1, 3] and record["before"] == before
    assert record["after"] == {"model": sha256(out), "region": sha256(region), "silos": [0, 2, 4, 6]}
    assert record["merged"] == [{"file": "all.safetensors", "sha256": before["region"]}]


@pytest.mark.parametrize("rule", ["fedfisher-diag", pytest.param("fedfisher-kfac", marks=pytest.mark.slow)])
def test_a_silo_leaves_one_of_three_regions(rule, folder, tmp_path):
    numbers = {"north": (0, 5), "south": (1, 3, 6), "west": (2, 4)}
    three = [fold(folder, files(folder, rule, *own), tmp_path / f"{name}.safetensors") for name, own in numbers.items()]
    out = tmp_path / "g.safetensors"
    equal(merged(folder, three, out)[0], merged(folder, files(folder, rule), tmp_path / "all.safetensors")[0])
    own = () if rule == "fedfisher-kfac" else ("--payloads", *files(folder, rule, 3))
    more = "--start", folder / "start.safetensors", "--out", out, "--record", tmp_path / "left.json"
    command("leave", three[1], "--silo", 3, *own, *more)
    never = merged(folder, files(folder, rule, 0, 1, 2, 4, 5, 6), tmp_path / "never.safetensors")[0]
    equal(merged(folder, three, out)[0], never)


def test_who_cannot_leave_a_sum_is_told_why(folder, tmp_path, capsys):
    region = fold(folder, files(folder, "fedavg", 0, 3), tmp_path / "r.safetensors")
    start = ["--start", folder / "start.safetensors", "--out", tmp_path / "g.safetensors"]
    start += ["--record", tmp_path / "left.json"]
    other = payload.read(files(folder, "fedavg", 3)[0])
    changed = other[0]._replace(params=jax.tree.map(lambda leaf: leaf + 1, other[0].params))
    for name, sent in (("changed", changed), ("longer", other[0]._replace(weight=2 * other[0].weight))):
        payload.write(tmp_path / f"{name}.safetensors", sent, other[1].about)
        given = "--silo", 3, "--payloads", tmp_path / f"{name}.safetensors"
        refused("is another payload of silo 3 than the one in", capsys, "leave", region, *given, *start)
    refused("take it out by its payload file", capsys, "leave", region, "--silo", 3, *start)
    zero, one, three = (files(folder, "fedavg", number)[0] for number in (0, 1, 3))
    given = "leave", region, "--silo", 3, "--payloads"
    refused("got silo 1, expected a silo that is within a sum", capsys, *given, one, *start)
    refused("expected those of silos that leave", capsys, *given, zero, three, *start)
    assert not (tmp_path / "left.json").exists() and not (tmp_path / "g.safetensors").exists()
    refused("which is a silo's payload", capsys, "merge", zero, *start[:-2], "--into", one)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


@pytest.mark.slow
def test_a_robust_merge_holds_all_payloads_however_few_bytes_are_for_them(folder, tmp_path):
    """The rule that it wraps would read them again for each step."""
    paths, how = files(folder, "fedfisher-kfac"), ("--robust", "cap")
    held, _ = merged(folder, paths, tmp_path / "held.safetensors", *how)
    small, _ = merged(folder, paths, tmp_path / "small.safetensors", *how, "--in-memory", 1)
    for a, b in zip(small, held, strict=True):
        np.testing.assert_array_equal(a, b)
