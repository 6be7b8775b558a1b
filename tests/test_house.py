"""The house: a stage is a room, names are exported on purpose, no import points back, and no name shadows a module."""

import ast
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fedfisher_jax as ff

ROOT = Path(ff.__file__).parent
ORDER = (
    "_compat", "_trees", "tracing", "_files", "_users_code", "_augment", "_examples", "_frozen", "_likelihood",
    "_doors", "_ensemble", "_metrics", "_further", "data", "models", "curvature", "solve", "merge", "federate",
    "payload", "silos", "privacy", "theory", "report", "torch", "cli",
)  # fmt: skip
ROOMS = [name for name in ORDER if not name.startswith("_")]
HERE = [name for name in ROOMS if name != "torch" or importlib.util.find_spec("torchax")]  # can be imported
FLOWERS = ("flower", "_flower_node", "_flower_server")
OPTIONAL = {  # modules, or rooms, and what they need
    **dict.fromkeys((f"fedfisher_jax.{room}.{name}" for room in ("silos", "privacy") for name in FLOWERS), "flwr"),
    "fedfisher_jax.torch": "torchax",
}


def modules():
    found = [module.name for module in pkgutil.walk_packages(ff.__path__, "fedfisher_jax.")]
    return [name for name in found if not name.endswith("__main__") and not optional(name)]


def optional(module):
    return any(module == name or module.startswith(name + ".") for name in OPTIONAL)


def room_of(module):
    return module.split(".")[1] if "." in module else "__init__"


def imported(path):
    """Absolute names of the library's modules that a file imports, and whether it does when it is imported itself."""
    package = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    package = package.removesuffix(".__init__") if path.name == "__init__.py" else package.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if not node.level:
                base = node.module or ""
            else:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if base == "fedfisher_jax":
                yield from (f"{base}.{name.name}" for name in node.names)
            elif base.startswith("fedfisher_jax."):
                yield base


def test_every_room_is_listed_and_says_what_it_is():
    found = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert found == set(ROOMS)
    for room in HERE:
        module = importlib.import_module(f"fedfisher_jax.{room}")
        assert module.__doc__ and len(module.__doc__.split()) > 4


def test_no_arrow_points_back():
    backwards = []
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        room = parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for module in imported(path):
            other = room_of(module)
            if other in ORDER and ORDER.index(other) > ORDER.index(room):
                backwards.append(f"{path.relative_to(ROOT)} -> {module}")
    assert backwards == []


@pytest.mark.slow
def test_what_is_imported_as_a_module_is_one():
    script = "import importlib, types, sys\n" + "".join(
        f"import {name} as m\nassert isinstance(m, types.ModuleType) and m.__name__ == {name!r}, {name!r}\n"
        for name in modules()
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_face_is_chosen():
    """dir(ff) is an explicit list: rooms, and things that are no modules."""
    import types

    assert set(dir(ff)) == {*ff.__all__, "__doc__", "__version__"}
    leaked = [n for n in ff.__all__ if isinstance(getattr(ff, n), types.ModuleType) and n not in (*ROOMS, "rounds")]
    assert leaked == [] and ff.__all__ == sorted(ff.__all__)
    for name in ff.__all__:
        assert not name.startswith("_") and getattr(ff, name) is not None


@pytest.mark.parametrize("room", HERE)
def test_a_rooms_names_shadow_no_module(room):
    module = importlib.import_module(f"fedfisher_jax.{room}")
    for inner in pkgutil.iter_modules(module.__path__):
        if hasattr(module, inner.name) and not optional(f"fedfisher_jax.{room}.{inner.name}"):
            assert getattr(module, inner.name).__name__ == f"fedfisher_jax.{room}.{inner.name}"


def test_functions_take_fewer_than_ten_arguments():
    many = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len([name for name in names if name not in ("self", "cls")]) > 9:
                    many.add(f"{path.relative_to(ROOT).as_posix()}: {node.name}")
    assert not many


@pytest.mark.skipif(importlib.util.find_spec("torchax") is not None, reason="PyTorch and torchax are installed")
def test_a_room_that_needs_more_says_what_in_one_line():
    with pytest.raises(ImportError, match=r"^No module named .* pip install 'fedfisher-jax\[torch\]'$"):
        importlib.import_module("fedfisher_jax.torch")
