"""Regions that cannot be: files that were changed, or do not go together, are refused in one line."""

import numpy as np
import pytest
import region_files
from region_files import files, fold, refused
from samples import resealed

from fedfisher_jax import payload
from fedfisher_jax.payload import _container as container

folder = region_files.folder


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
    "lifted: expected printable text": lambda header, arrays: change_header(header, arrays, lifted="\x1b]0;owned"),
    "holds a sum by fedavg,x=1": lambda header, arrays: change_header(header, arrays, lifted="fedavg,x=1"),
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
