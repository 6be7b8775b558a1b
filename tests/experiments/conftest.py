"""The scripts of experiments/ as modules, and their command lines."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture
def script(monkeypatch, tmp_path):
    """script(name, *flags) runs a script in this process; returns its table, its summary and its lines of results."""

    def run(name, *flags, figure=True):
        monkeypatch.syspath_prepend(str(FOLDER))
        out = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{name}.py"), *flags, "--out", str(out)])
        importlib.import_module(name).main()
        assert not figure or (out / "figure.png").read_bytes().startswith(b"\x89PNG")
        lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        return (out / "table.md").read_text(), json.loads((out / "summary.json").read_text()), lines

    return run
