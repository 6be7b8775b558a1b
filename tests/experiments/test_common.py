import json
import math
import subprocess
import sys

import numpy as np
import pytest

from experiments.lib import common

SCRIPT = common.ROOT / "experiments" / "theory" / "width.py"
GRID = [{"method": m, "seed": s} for m in "ab" for s in range(3)]


def test_a_killed_script_goes_on_where_it_stopped(tmp_path):
    calls = []

    def run(method, seed):
        calls.append((method, seed))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return {"accuracy": np.float32(seed + 0.5)}

    with pytest.raises(KeyboardInterrupt):
        common.run_all(tmp_path, GRID, run)
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"settings": {"method": "b", "se')  # the line that a kill tears
    records = common.run_all(tmp_path, GRID, run)
    assert calls == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 0), ("b", 1), ("b", 2)]
    assert [r["settings"] for r in records] == GRID
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["settings"] for line in lines] == GRID
    np.testing.assert_array_equal(common.column(records, "accuracy", method="b"), [0.5, 1.5, 2.5])


def test_a_run_is_its_settings_in_any_order(tmp_path):
    common.run_all(tmp_path, [{"a": 1, "b": (2, 3)}], lambda a, b: {"x": 1})
    records = common.run_all(tmp_path, [{"b": [2, 3], "a": 1}], lambda a, b: {"x": 2})
    assert records[0]["result"] == {"x": 1}


def test_a_table_of_other_numbers_under_an_old_name_is_another_run(tmp_path):
    def numbers(value):
        np.savez(tmp_path / "mine.npz", x=np.full(3, value))
        grid = [{"dataset": str(tmp_path / "mine.npz"), "seed": 0}]
        return common.run_all(tmp_path, grid, lambda dataset, seed: {"x": float(np.load(dataset)["x"][0])})

    assert [numbers(value)[0]["result"]["x"] for value in (1, 1, 2, 1)] == [1, 1, 2, 1]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2  # the first numbers came back


def test_two_scripts_at_once_are_kept_apart(tmp_path):
    def within(seed):
        with pytest.raises(ValueError, match="another run is writing"):
            common.run_all(tmp_path, [{"seed": 1}], lambda seed: {})
        return {}

    common.run_all(tmp_path, [{"seed": 0}], within)


def test_results_are_strict_json_and_read_back_as_numbers(tmp_path):
    result = {"array": np.arange(3.0), "bad": math.inf, "nested": {"n": np.int64(2)}}
    records = common.run_all(tmp_path, [{"seed": 0}], lambda seed: result)
    line = (tmp_path / "results.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["result"]["nested"] == {"n": 2}
    assert math.isnan(common.column(records, "bad")[0])
    np.testing.assert_array_equal(common.column(records, "array")[0], [0, 1, 2])


def test_flags_of_a_script_and_its_default_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "experiments" / "theory" / "width.py")])
    results = tmp_path / "experiments" / "results"
    assert common.command_line(common.Settings, args=[]).out == results / "theory" / "width"
    quick = common.command_line(common.Settings, args=["--quick", "--seed", "4"])
    assert (quick.out, quick.seed) == (results / "quick" / "theory" / "width", 4)
    given = common.command_line(common.Settings, args=["--out", str(tmp_path / "here")])
    assert given.out == tmp_path / "here" and given.out.is_dir()


def test_report_writes_everything_and_names_no_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out", str(tmp_path)])
    fig, axes = common.figure(1, 2)
    axes[0, 1].plot([1, 2])
    common.report(
        tmp_path, common.markdown_table(["m", "loss"], [[1, common.mean_std([1.0, 3.0])]]), {"x": np.nan}, fig
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.png", "summary.json", "table.md"]
    assert (tmp_path / "table.md").read_text().startswith("| m | loss |\n| :-- | --: |\n| 1 | 2.0±1.4 |\n")
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["x"] is None
    assert summary["provenance"]["command"] == f"python -m experiments.theory.width --out {tmp_path.name}"
    assert str(tmp_path) not in json.dumps(summary)
    assert {"python", "jax", "numpy"} <= set(summary["provenance"]["versions"])


def test_runs_carry_the_commit_that_made_them(tmp_path, monkeypatch):
    (tmp_path / "results.jsonl").write_text('{"settings": {}, "result": {}}\n')
    for commit, count in (("abc", 2), ("def+", 1)):
        monkeypatch.setattr(common.provenance, "commit", lambda commit=commit: commit)
        for number in range(count):
            common.append_result(tmp_path / "results.jsonl", {"settings": {commit: number}, "result": {}})
    common.report(tmp_path, "table\n", {})
    assert "(runs: 1 at unrecorded, 2 at abc, 1 at def+)" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["provenance"]["runs"]["abc"] == 2


def test_a_commit_says_when_the_sources_differ_from_it(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "script.py").write_text("old = 1")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(common.provenance, "ROOT", tmp_path)
    asked = common.provenance.commit.__wrapped__  # past the cache of this process
    clean = asked()
    (tmp_path / "table.md").write_text("results are no sources")
    assert len(clean) >= 7 and asked() == clean
    (tmp_path / "script.py").write_text("new = 1")
    assert asked() == f"{clean}+"


@pytest.mark.parametrize(
    "line", ['{"settings": {}', "[]", '{"settings": {}}', "{}", "null", "\\ud800", "[" * 100_000, "\udcff"]
)
def test_a_damaged_line_is_named(line, tmp_path):
    good = '{"settings": {}, "result": {}}\n'
    path = tmp_path / "results.jsonl"
    path.write_bytes((good + line + "\n" + good).encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"results\.jsonl: line 2: got .*expected an object with settings, result"):
        common.read_results(path)
