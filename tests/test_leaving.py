"""Silos that come late or leave: models and regions are as if who left had never been there."""

import json

import jax
import numpy as np
import pytest
import region_files
from region_files import RULES, command, equal, files, fold, merged, refused, sha256

from fedfisher_jax import payload
from fedfisher_jax.silos import _model_file as model_file

folder = region_files.folder


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


def test_who_leaves_a_model_of_a_robust_merge_leaves_by_that_merge(folder, tmp_path, capsys):
    region, out, how = tmp_path / "r.safetensors", tmp_path / "g.safetensors", ("--robust", "median")
    merged(folder, files(folder, "fedavg"), out, "--into", region, *how)
    start = ["--start", folder / "start.safetensors", "--out", out, "--record", tmp_path / "left.json"]
    before = region.read_bytes()
    refused("was merged with --robust median: say so", capsys, "leave", region, "--silo", 3, *start)
    assert region.read_bytes() == before and not (tmp_path / "left.json").exists()
    command("leave", region, "--silo", 3, *start, *how)
    want, _ = merged(folder, files(folder, "fedavg", 0, 1, 2, 4, 5, 6), tmp_path / "never.safetensors", *how)
    equal([np.asarray(leaf) for leaf in jax.tree.leaves(model_file.read(out).params)], want)


def test_a_sum_says_by_which_options_its_contributions_were_made(folder, tmp_path, capsys):
    """Sums of other options do not add up; options of the solver alone are free."""
    region, out, mean = tmp_path / "r.safetensors", tmp_path / "g.safetensors", ("--rule", "fedfish,scale=mean")
    sent = files(folder, "fedfisher-diag")
    merged(folder, sent[:3], out, "--into", region, *mean)
    start = ["--start", folder / "start.safetensors", "--out", out, "--record", tmp_path / "left.json"]
    gone = "leave", region, "--silo", 2, "--payloads", sent[2], *start
    words = "holds a sum by fedfish,scale=mean, whose contributions are others than those of fedfish"
    refused(words, capsys, *gone, "--rule", "fedfish")
    refused(words, capsys, "merge", region, *start[:-2], "--rule", "fedfish")
    command(*gone, *mean)
    want, _ = merged(folder, sent[:2], tmp_path / "never.safetensors", *mean)
    equal([np.asarray(leaf) for leaf in jax.tree.leaves(model_file.read(out).params)], want)
    free = fold(folder, sent, tmp_path / "free.safetensors", "--rule", "fedfisher-diag,damping=1")
    merged(folder, [free], tmp_path / "f.safetensors", "--rule", "fedfisher-diag,damping=3")


def test_who_leaves_leaves_the_model_by_the_settings_that_it_was_merged_by(folder, tmp_path, capsys):
    """Another rule, damping, cap or number of faulty silos is another model than that which they leave."""
    region, out, stay = tmp_path / "r.safetensors", tmp_path / "g.safetensors", (0, 1, 2, 4, 5, 6)
    start = ["--start", folder / "start.safetensors", "--out", out, "--record", tmp_path / "left.json"]
    gone = "leave", region, "--silo", 3, *start
    for how, others, words in (
        (("--damping", 3), ((), ("--damping", 1)), "say --rule fedfisher-kfac,damping=3"),
        (
            ("--robust", "cap", "--cap", 0.5),
            (("--robust", "cap"), ("--robust", "geometric-median", "--cap", 0.5)),
            "was merged with --robust cap --cap 0.5: say so",
        ),
        ((), (("--rule", "fedavg"), ("--robust", "cap")), "say"),
    ):
        region.unlink(missing_ok=True)
        merged(folder, files(folder, "fedfisher-kfac"), out, "--into", region, *how)
        before = region.read_bytes()
        for other in others:
            refused(words, capsys, *gone, *other)
        assert region.read_bytes() == before and not (tmp_path / "left.json").exists()
        command(*gone, *how)
        want, _ = merged(folder, files(folder, "fedfisher-kfac", *stay), tmp_path / "never.safetensors", *how)
        equal([np.asarray(leaf) for leaf in jax.tree.leaves(model_file.read(out).params)], want)
        (tmp_path / "left.json").unlink()
    region.unlink()
    merged(folder, files(folder, "fedfisher-kfac"), out, "--into", region, "--damping", 3)
    command(*gone, "--rule", "fedfisher-kfac,damping=3.0")  # said otherwise


def test_files_that_cannot_be_written_are_named_by_their_flags(folder, tmp_path, capsys):
    region, out = tmp_path / "r.safetensors", tmp_path / "g.safetensors"
    merged(folder, files(folder, "fedfisher-kfac"), out, "--into", region)
    start = ["--start", folder / "start.safetensors"]
    gone = "leave", region, "--silo", 3, *start
    refused("out: got '.', expected the name of a file", capsys, *gone, "--out", ".")
    refused("record: got '.', expected the name of a file", capsys, *gone, "--out", out, "--record", ".")
    one = files(folder, "fedfisher-kfac", 0)[0]
    refused("into: got '.', expected the name of a file", capsys, "merge", one, *start, "--into", ".")
    refused("names: needs --into", capsys, "merge", one, *start, "--names")
