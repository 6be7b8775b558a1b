import os
from pathlib import Path

import kill
import pytest

from fedfisher_jax import _files as report


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """Six here; `python tests/kill.py 50` kills as often as one likes."""
    assert sum(kill.killed_writers(tmp_path, 6).values()) == 6


@pytest.mark.slow
def test_killed_commands_leave_whole_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and back
    found = kill.killed_commands(Path(os.getcwd()), 4)
    assert sum(found.values()) == 4 and {name for name, *_ in found} == {"again.safetensors", "global.safetensors"}


@pytest.mark.slow
def test_a_report_behind_its_model_is_told_by_the_fingerprint(tmp_path, monkeypatch):
    """A merge that ends between its two files, as if it was killed there."""
    monkeypatch.chdir(tmp_path)
    *_, merge = kill.silo(Path(os.getcwd())).values()
    kill.require_told(tmp_path, "older", "older")
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(report, "write_json", interrupted)
        kill.cli.main(merge)
    kill.require_told(tmp_path, "complete", "older")
    with pytest.raises(AssertionError, match="a report that is older"):
        kill.require_told(tmp_path, "older", "older")
    kill.cli.main(merge)
    kill.require_told(tmp_path, "complete", "complete")


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("content", [b"ne", b"old ", None])
def test_what_is_neither_old_nor_new_is_seen(content, tmp_path):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AssertionError, match="half-written or lost"):
        kill.outcome(path, b"old", b"new")


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "table.md"
    report.write_atomically(path, "old")
    monkeypatch.setattr(report.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        report.write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
