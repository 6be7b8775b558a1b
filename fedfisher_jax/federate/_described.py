"""A text of the settings in a value of this library: equal for equal settings, in whatever process it is."""

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .._files import content


def described(value: Any, inside: frozenset[int] = frozenset()) -> str:
    """Write down a value's settings: fields of dataclasses and what functions of this library close over.

    A user's own function is known by its name alone, so that two with one name are taken for the same.

    Args:
        value: a number, text, array, dataclass, function, or a tree of such.
        inside: identities of the values around it, which are not gone through again.
    """
    if id(value) in inside:
        return "…"
    within = functools.partial(described, inside=inside | {id(value)})
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return content(value)[:12]
    if names := _fields(value):
        return f"{type(value).__name__}({', '.join(f'{name}={within(getattr(value, name))}' for name in names)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{within(key)}: {within(one)}" for key, one in value.items())) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(within, value)) + ")"
    if isinstance(value, functools.partial):
        return f"{within(value.func)}{within(value.args)}{within(value.keywords)}"
    if isinstance(value, types.FunctionType):
        return value.__qualname__ + (within(_closed_over(value)) if _ours(value) else "")
    return type(value).__qualname__


def _fields(value: Any) -> tuple[str, ...]:
    """Names of the fields of a dataclass or a named tuple; none of anything else."""
    if isinstance(value, type):
        return ()
    if dataclasses.is_dataclass(value):
        return tuple(field.name for field in dataclasses.fields(value))
    return getattr(value, "_fields", ())


def _ours(function: types.FunctionType) -> bool:
    return function.__module__.partition(".")[0] == __name__.partition(".")[0]


def _closed_over(function: types.FunctionType) -> dict[str, Any]:
    """The variables of outer functions that a function reads, and its arguments' defaults."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    found = {name: cell.cell_contents for name, cell in cells.items() if cell != types.CellType()}
    return found | {"defaults": function.__defaults__ or (), "named": function.__kwdefaults__ or {}}
