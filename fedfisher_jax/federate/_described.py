"""A text of the settings in a value of this library: equal for equal settings, in whatever process it is."""

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._files import content
from ._local import LocalTraining

KNOWN = ("fedfisher_jax", "optax")  # whose functions are what they close over; a name alone does not tell optax.sgd(1)


def described(value: Any, inside: frozenset[int] = frozenset()) -> str:
    """Write down a value's settings: fields of dataclasses and what functions of this library and optax close over.

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
    return function.__module__.partition(".")[0] in KNOWN


def _closed_over(function: types.FunctionType) -> dict[str, Any]:
    """The variables of outer functions that a function reads, and its arguments' defaults."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    found = {name: cell.cell_contents for name, cell in cells.items() if cell != types.CellType()}
    return found | {"defaults": function.__defaults__ or (), "named": function.__kwdefaults__ or {}}


def training_settings(training: LocalTraining, params: Any) -> dict[str, str]:
    """Write down what decides how a client trains, by name; how it is computed (`convolutions`) is left out."""
    return {
        "epochs": described(training.epochs),
        "batch_size": described(training.batch_size),
        "likelihood": training.likelihood.name,
        "optimizer": program_of(training.optimizer, params),
        **further_training_settings(training),
    }


def further_training_settings(training: LocalTraining) -> dict[str, str]:
    """Write down those of them that folders of earlier versions do not name."""
    return {
        "the likelihood's settings": described(training.likelihood.nll),
        "private": described(training.private),
        "augment": described(training.augment),
        "squares": described(training.squares),
    }


def program_of(optimizer: Any, params: Any) -> str:
    """Hash what an optimiser computes, its rates among it; addresses of functions count for nothing."""
    if optimizer is None:
        return "none"
    update = optax.with_extra_args_support(optimizer).update

    def step(slope: Any, inner: Any, p: Any) -> Any:
        zero = jnp.zeros(())
        asked = {"value": zero, "grad": slope, "value_fn": lambda _, clients_length: zero}  # some need the loss
        return update(slope, inner, p, **asked, clients_length=zero)  # which `clip_to_clients` needs

    text = str(jax.make_jaxpr(step)(params, optimizer.init(params), params))
    return hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", text).encode()).hexdigest()[:12]
