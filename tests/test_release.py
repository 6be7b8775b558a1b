"""What a release says of itself, in all places where it says it."""

import re
from importlib import resources
from pathlib import Path

import pytest

import fedfisher_jax as ff

ROOT = Path(__file__).parent.parent


def test_the_version_and_its_date_are_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    (version,) = re.findall(r"^version: (.*)$", citation, re.M)
    (date,) = re.findall(r'^date-released: "(.*)"$', citation, re.M)
    newest = re.search(r"^## (\d\S*) – (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None and (version, date) == newest.groups() and version == ff.__version__


@pytest.mark.parametrize("paper", ["2403.12329", "2311.10291", "2601.13608"])
def test_the_papers_are_cited(paper):
    assert f"arXiv:{paper}" in (ROOT / "CITATION.cff").read_text()


def test_the_package_says_that_it_is_typed():
    assert resources.files(ff).joinpath("py.typed").is_file()
