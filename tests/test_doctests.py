"""The examples in docstrings print what they say, as a reader would paste them: with nothing imported before."""

import doctest
import importlib.util
from pathlib import Path

import pytest

import fedfisher_jax as ff

PACKAGE = Path(ff.__file__).parent
LEAST = 30  # docstrings with an example


def name(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)


# What needs flwr is not run, what needs PyTorch only where it is. Modules without an example are not even imported.
LEFT_OUT = ("flower.py",) if importlib.util.find_spec("torchax") else ("flower.py", "torch")
FILES = [
    file
    for file in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in file.read_text() and not set(LEFT_OUT) & set(file.relative_to(PACKAGE).parts)
]


def examples(file: Path) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder().find(importlib.import_module(name(file)), globs={})
    return [test for test in found if test.examples]


@pytest.fixture
def registry():
    """An example may register a structure; nothing else is to know it."""
    before = dict(ff.curvature.STRUCTURES)
    yield
    ff.curvature.STRUCTURES.clear()
    ff.curvature.STRUCTURES.update(before)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("file", FILES, ids=name)
def test_examples_print_what_they_say(file):
    found = examples(file)
    assert found, "the examples stand where doctest does not look"
    for example in found:
        written: list[str] = []
        example.globs["__name__"] = "__main__"
        failed = doctest.DocTestRunner().run(example, out=written.append).failed
        assert not failed, "".join(written)


def test_there_are_enough_examples():
    assert sum(len(examples(file)) for file in FILES) >= LEAST
