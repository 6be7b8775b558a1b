"""The benchmark for accelerators, on the processor and at a size of seconds."""

import pytest


@pytest.mark.slow
def test_training_fishers_and_the_solve_are_timed(script):
    table, summary, lines = script("benchmarks.accelerator", "--quick", figure=False)
    kinds = [(line["settings"]["kind"], line["settings"].get("group")) for line in lines]
    assert {("training", 0), ("fisher", 0), ("solve", 0)} <= set(kinds)
    assert not [line for line in lines if "failed" in line["result"]]
    assert all(min(line["result"]["seconds"]) > 0 for line in lines)
    assert summary["peak_gflops"] > 0 and "| training | lenet | 2 | all |" in table
