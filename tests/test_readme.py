"""The code of the README, of all pages of docs/ and of examples/ runs as it stands; its merges beat chance by far."""

import doctest
import json
import re
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest

import fedfisher_jax as ff
from fedfisher_jax.cli._commands import COMMANDS

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```(python|pycon)\n(.*?)```", re.DOTALL)
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if BLOCK.search(page.read_text())]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
OPTIONAL = ("equinox", "haiku")  # blocks that import them run where they are installed
WHOLE = {"checkpoints.md": ("torchax", "transformers")}  # pages that run only where these are installed
SLOW = ("checkpoints.md", "README.md", "index.md", "rounds.md", "theory.md", "one_shot.ipynb", "silos.ipynb")
# What a page leaves to the reader's imagination.
BEFORE = {
    "privacy.md": """
import jax, jax.numpy as jnp, optax
import fedfisher_jax as ff
network, likelihood = ff.models.build("mlp", (28, 28, 1), 10, hidden=(4,)), ff.categorical()
key, optimizer = jax.random.key(0), optax.adam(0.1)
params = network.init(key)
"""
}
# (page, how its code prints an accuracy, how many of them, and what all of them exceed)
PRINTED = {
    "README.md": (r"merged ([\d.]+)", 1, 0.5),
    "index.md": (r"merged ([\d.]+)", 1, 0.5),
    "rounds.md": (r"fedfish ([\d.]+) barrier", 1, 0.5),
    "researcher.md": (r"K-FAC ([\d.]+) ", 1, 0.3),
    "one_shot.py": (r"(?:fedfisher-kfac|regmean-kron) +([\d.]+) %", 2, 50),
    "your_own_model.py": (r"merged ([\d.]+) %", 1, 50),
    "few_rounds.py": (r"round 15 ([\d.]+) %", 1, 40),
    "silo_files.py": (r"merged ([\d.]+) %", 1, 50),
    "one_shot.ipynb": (r"fedfisher-kfac ([\d.]+)", 1, 0.5),
    "silos.ipynb": (r"examples, loss .* accuracy ([\d.]+)", 1, 0.5),
    "width.ipynb": (r"slope of the Laplace error -([\d.]+)", 1, 0.5),
    "secure_sums.py": (r"(?:plain|secure) sum +([\d.]+) %", 2, 50),
}


@pytest.fixture(autouse=True)
def registry():
    """A page may register a structure; nothing else is to know it."""
    before = dict(ff.curvature.STRUCTURES)
    yield
    ff.curvature.STRUCTURES.clear()
    ff.curvature.STRUCTURES.update(before)


def blocks(page):
    """The (kind, code) of a page's blocks, or of a notebook's cells."""
    if page.suffix == ".md":
        return BLOCK.findall(page.read_text())
    cells = json.loads(page.read_text())["cells"]
    return [("python", "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]


def run(page):
    """Run a page's blocks in one namespace; the packages for lack of which a block was left out."""
    namespace, lacking = {"__name__": page.stem}, set()
    exec(BEFORE.get(page.name, ""), namespace)
    for kind, block in blocks(page):
        needs = {
            name for name in OPTIONAL if re.search(rf"^(>>> )?import {name}\b", block, re.M) and not find_spec(name)
        }
        lacking |= needs
        if needs:
            continue
        if kind == "python":
            exec(compile(block, page.name, "exec"), namespace)
        else:
            written = []
            parsed = doctest.DocTestParser().get_doctest(block, namespace, page.name, page.name, 0)
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            assert not runner.run(parsed, out=written.append, clear_globs=False).failed, "".join(written)
            namespace.update(parsed.globs)
    return lacking


def require_printed(name, printed):
    if name in PRINTED:
        pattern, count, least = PRINTED[name]
        found = [float(value) for value in re.findall(pattern, printed)]
        assert len(found) == count and min(found) > least, printed


def cases(paths):
    return [pytest.param(path, id=path.name, marks=[pytest.mark.slow] * (path.name in SLOW)) for path in paths]


@pytest.mark.slow
@pytest.mark.parametrize("page", cases([*PAGES, *NOTEBOOKS]))
def test_the_code_of_a_page_runs(page, capsys):
    if missing := [name for name in WHOLE.get(page.name, ()) if not find_spec(name)]:
        pytest.skip(f"needs {', '.join(missing)}: make test-torch")
    lacking = run(page)
    require_printed(page.name, capsys.readouterr().out)
    if lacking:
        pytest.skip(f"all blocks ran but those that need {', '.join(sorted(lacking))}")


@pytest.mark.slow
@pytest.mark.parametrize("script", cases(EXAMPLES))
def test_a_script_runs(script, capsys):
    assert len(script.read_text().splitlines()) < 40
    runpy.run_path(str(script), run_name="__main__")
    require_printed(script.name, capsys.readouterr().out)


def test_all_examples_are_judged():
    assert {script.name for script in (*EXAMPLES, *NOTEBOOKS)} <= set(PRINTED)


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text) <= 6000
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert len(links) > 10 and [link for link in links if not (ROOT / link).exists()] == []


def test_the_page_of_commands_has_all_of_them():
    text = (ROOT / "docs" / "commands.md").read_text()
    assert {"run", "list", *COMMANDS} <= set(re.findall(r"^\| `(\w+)` \|", text, re.M)) and "<!-- help -->" in text


def test_every_page_is_in_the_site():
    listed = set(re.findall(r": (\S+\.md)", (ROOT / "mkdocs.yml").read_text()))
    assert listed - {"api/index.md"} == {page.name for page in (ROOT / "docs").glob("*.md")}
