"""The scripts of experiments/ as modules, and their command lines."""

import importlib
import json
import sys

import pytest


@pytest.fixture
def script(monkeypatch, tmp_path):
    """script("topic.name", *flags) runs a script in this process; returns its table, summary and lines of results."""

    def run(name, *flags, figure=True):
        out = tmp_path / "out"
        module = importlib.import_module(f"experiments.{name}")
        monkeypatch.setattr(sys, "argv", [str(module.__file__), *flags, "--out", str(out)])
        module.main()
        assert not figure or (out / "figure.png").read_bytes().startswith(b"\x89PNG")
        lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        return (out / "table.md").read_text(), json.loads((out / "summary.json").read_text()), lines

    return run
