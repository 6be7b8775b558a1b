"""The index of experiments/ names every script and every folder of results, and nothing that is not there."""

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
ROWS = re.findall(r"^\| (.*) \| (.*) \| (.*) \| (.*) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)[2:]


def test_every_script_is_in_the_index():
    scripts = {
        ".".join(path.relative_to(FOLDER).with_suffix("").parts)
        for path in FOLDER.glob("*/*.py")
        if "__main__" in path.read_text()
    }
    assert {name for _, command, _, _ in ROWS for name in re.findall(r"`(\w+\.\w+)", command)} == scripts


def test_every_folder_of_results_is_in_the_index_once():
    folders = [str(path.relative_to(FOLDER / "results")) for path in (FOLDER / "results").glob("*/*") if path.is_dir()]
    kept = sorted(folder for folder in folders if not folder.startswith("quick/"))
    assert sorted(name.strip("`") for *_, name in ROWS if name != "none") == kept
