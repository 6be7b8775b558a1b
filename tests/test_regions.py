"""Regions: files that stand for many silos give the merge of their silos' own files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import region_files
from region_files import RULES, SILOS, command, equal, files, fold, merged, refused, start_of
from samples import resealed

import fedfisher_jax as ff
from fedfisher_jax import payload
from fedfisher_jax.merge import catalogue
from fedfisher_jax.payload import _files_of_a_merge as files_of
from fedfisher_jax.silos import _model_file as model_file

folder = region_files.folder


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
