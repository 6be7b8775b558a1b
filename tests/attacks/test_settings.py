"""What one command refuses, every command refuses; and what is none is said in one line before any work."""

from pathlib import Path

import numpy as np
import pytest
from commands import command, refused

RUN = ("run", "--dataset", "d.npz", "--out", "r")
MEASURE = ("measure", "--data", "d.npz", "--out", "p.safetensors")
MERGE = ("merge", "p.safetensors", "--out", "m.safetensors")
INIT = ("init", "--input-shape", 8, "--outputs", 3, "--out", "other.safetensors")
EXAMPLE = ("example", "--out", "e")

OUT_OF_RANGE = {
    "--seed": ((RUN, MEASURE, INIT, EXAMPLE), (-1, 2**32, 10**40)),
    "--data-seed": ((RUN,), (-1, 2**32, 10**40)),
    "--damping": ((RUN, MERGE), ("inf", "nan", -1)),
    "--momentum": ((RUN, MEASURE), (3, 1, -0.1, "nan", "inf")),
    "--learning-rate": ((RUN, MEASURE), (0, -1, "inf", "nan")),
    "--epochs": ((RUN, MEASURE, EXAMPLE), (0, -1, 2**31, 10**40)),
    "--batch-size": ((RUN, MEASURE), (0, -1, 2**31)),
    "--samples": ((RUN, MEASURE), (0, 2**31)),
    "--clients": ((RUN,), (0, -1, 10**40)),
    "--silo": ((MEASURE,), (-1, 2**31, 10**40)),
    "--budget": ((MEASURE, EXAMPLE), (0, -1, "inf", "nan")),
    "--max-bytes": ((MERGE,), (0, -1)),
}
CASES = [
    (words, name, value) for name, (commands, values) in OUT_OF_RANGE.items() for words in commands for value in values
]


@pytest.mark.parametrize(("words", "name", "value"), CASES, ids=lambda x: x[0] if isinstance(x, tuple) else str(x)[:12])
def test_numbers_out_of_range_are_refused_before_any_work(words, name, value, folder):
    before = sorted(path.name for path in folder.iterdir())
    line = refused(*words, f"{name}={value}")
    assert line.startswith(f"fedfisher: {name[2:].replace('-', '_')}: got {str(value)[:5]}") and "expected" in line
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("value", [0, 2**31, 2**32 - 1])
def test_seeds_of_32_bits_are_taken(value, folder):
    assert command(*INIT, "--seed", value)[0] == 0


def test_a_column_too_few_is_named(folder):
    with np.load("d.npz") as data:
        np.savez("narrow.npz", x=data["x"][:, 1:], y=data["y"])
    for words in (("measure", "--out", "p.safetensors"), ("evaluate", "start.safetensors", "--part", "train")):
        line = refused(*words, "--data", "narrow.npz")
        assert "data: got examples of shape (7,), expected (8,)" in line
    assert not Path("p.safetensors").exists()


@pytest.mark.parametrize("epsilon", [1000, 1e6])
def test_a_promise_that_is_nearly_none_costs_no_time(epsilon, folder):
    status, text = command(*MEASURE, "--epochs", 1, "--rule", "fedavg", "--epsilon", epsilon)
    assert status == 0, text
