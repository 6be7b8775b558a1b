"""The index of experiments/ names every script and every folder of results, and nothing that is not there."""

import re
import shlex
from pathlib import Path

import tyro

from fedfisher_jax.cli._settings import RunSettings, check
from fedfisher_jax.cli._sweep_file import with_file
from fedfisher_jax.cli._sweep_settings import SweepSettings, cells_of

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
ROWS = re.findall(r"^\| (.*) \| (.*) \| (.*) \| (.*) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)[2:]


def test_every_script_is_in_the_index():
    scripts = {
        ".".join(path.relative_to(FOLDER).with_suffix("").parts)
        for path in FOLDER.glob("*/*.py")
        if "__main__" in path.read_text()
    }
    assert {name for _, command, _, _ in ROWS for name in re.findall(r"`(\w+\.\w+)", command)} == scripts


def test_every_file_of_settings_is_in_the_index_and_is_read():
    files = sorted(FOLDER.glob("*/*.toml"))
    files = [path for path in files if path.name != "pyproject.toml"]
    named = {name for _, command, _, _ in ROWS for name in re.findall(r"--file experiments/(\S+\.toml)", command)}
    assert named == {str(path.relative_to(FOLDER)) for path in files} and files
    for path in files:
        settings = tyro.cli(SweepSettings, args=with_file(["sweep", "--file", str(path)], SweepSettings)[1:])
        assert str(settings.out) == f"experiments/results/{path.relative_to(FOLDER).with_suffix('')}"
        for _, cell in cells_of(settings):
            check(cell)


def test_the_commands_of_pages_have_settings_that_go_together(monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    pages = sorted((FOLDER.parent / "docs").glob("*.md"))
    found = [
        line
        for page in pages
        for line in re.findall(r"^    fedfisher ((?:run|sweep) .*)", page.read_text(), re.MULTILINE)
    ]
    assert len(found) > 25
    for line in found:
        name, *words = shlex.split(line, comments=True)
        if {"sweep.toml", "…"} & set(words):  # a reader's own file; what is left out
            continue
        if name == "run":
            check(tyro.cli(RunSettings, args=words))
        else:
            for _, cell in cells_of(tyro.cli(SweepSettings, args=with_file([name, *words], SweepSettings)[1:])):
                check(cell)


def test_every_folder_of_results_is_in_the_index_once():
    folders = [str(path.relative_to(FOLDER / "results")) for path in (FOLDER / "results").glob("*/*") if path.is_dir()]
    kept = sorted(folder for folder in folders if not folder.startswith("quick/"))
    assert sorted(name.strip("`") for *_, name in ROWS if name != "none") == kept
