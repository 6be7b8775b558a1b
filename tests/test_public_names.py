"""Each room says in a sorted `__all__` what is public in it, and has no other public name but modules."""

import importlib
import inspect
import pkgutil

import pytest

import fedfisher_jax as ff

ROOMS = ("tracing", "curvature", "curvature.structures", "solve", "merge")


@pytest.mark.parametrize("name", ROOMS)
def test_all_lists_the_public_names(name):
    room = importlib.import_module(f"{ff.__name__}.{name}")
    public = {key for key, value in vars(room).items() if key[0] != "_" and not inspect.ismodule(value)}
    modules = {module.name for module in pkgutil.iter_modules(room.__path__)}
    assert room.__all__ == sorted(room.__all__)
    assert public == set(room.__all__)
    assert not public & modules, "a name that shadows a module"
