"""The benchmark of merges of many files, at a size of seconds."""

import pytest


@pytest.mark.slow
def test_the_memory_of_a_merge_of_many_files(script):
    table, summary, lines = script("benchmarks.files", "--quick", "--rules", "fedfisher-kfac")
    assert all(line["result"]["peak_bytes"] > line["result"]["idle_bytes"] > 0 for line in lines)
    assert set(summary["memory_ratio_8_vs_2"]) == {"fedfisher-kfac"}
    assert "| fedfisher-kfac | 8 |" in table
