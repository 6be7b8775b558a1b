"""Modules that users' own functions make, and their state dicts from and to files."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from .. import _files
from .._users_code import import_function, in_few_words
from ..models import weights
from ._bridge import state_dict
from ._torchax import torch


def make(name: str) -> Any:
    """Make a module by a user's function of no arguments.

    Args:
        name: module:function; the module is looked for on Python's path, then in the current folder.

    Raises:
        ValueError: no such function, it fails, or returns no `torch.nn.Module` with parameters and tensors alone.
    """
    function = import_function("model", name)
    try:
        module = function()
    except (Exception, SystemExit) as error:
        raise ValueError(f"model: {name}() failed: {in_few_words(error)}") from error
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"model: {name}() returned {type(module).__name__}, expected a torch.nn.Module")
    if next(module.parameters(), None) is None:
        raise ValueError(f"model: {name}() has no parameters, expected some")
    for key, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"model: {name}(): {key} is a {type(value).__name__}, expected a state of tensors alone")
    return module


def load(module: Any, path: str | Path) -> Any:
    """Put a state dict's numbers into a module, which takes over their types, and return it.

    Names of one parameter (tied weights) may be in the file once or each. Counters of batch norm may be missing.

    Args:
        module: it is changed.
        path: as for `fedfisher_jax.models.weights.read`: .safetensors, or .bin, .pt or .pth with tensors alone, or a
            folder of shards; a wrapper's prefix of all names is taken off.

    Raises:
        FileNotFoundError: no such file.
        ValueError: entries that are missing, unknown, of another shape or not finite, or tied ones that differ; the
            first one is named.
    """
    own = module.state_dict(keep_vars=True)
    state = weights.state_of(path, own, _tensors)
    if unknown := sorted(set(state) - set(own)):
        raise ValueError(f"{path}: got {unknown[0][:80]!r}, expected names of the module")
    named = {id(own[name]): name for name in state}
    for name, value in own.items():
        first = named.get(id(value))
        if first is None and name.endswith(weights.COUNTERS):
            continue
        if first is None:
            raise ValueError(f"{path}: {name} is missing")
        new = state.get(name, state[first])
        if new.shape != value.shape or new.is_floating_point() != value.is_floating_point():
            expected = f"{value.dtype} {tuple(value.shape)}"
            raise ValueError(f"{path}: {name}: got {new.dtype} {tuple(new.shape)}, expected {expected}")
        if new.is_floating_point() and not new.isfinite().all():
            raise ValueError(f"{path}: {name}: expected finite numbers, got NaN or infinity")
        if not torch.equal(new, state[first]):
            raise ValueError(f"{path}: {name} and {first} differ, expected one parameter, as the module has")
        value.data = new.to(value.device)
    return module


def write_state(path: str | Path, module: Any, params: Mapping[str, Any]) -> bytes:
    """Write merged parameters as a state dict that `module.load_state_dict` takes, all names of tied weights included.

    Args:
        path: it ends in .safetensors, or is written in PyTorch's own format.
        module: the module; what is no parameter is its own.
        params: by name, as `from_module` gives them.

    Returns:
        What was written.

    Raises:
        ValueError: names, shapes or types that are not the module's.
    """
    state = {name: value.detach().cpu() for name, value in state_dict(module, params).items()}
    if Path(path).suffix == ".safetensors":  # which has no two names for one tensor
        data = safetensors.torch.save({name: value.clone().contiguous() for name, value in state.items()})
    else:
        torch.save(state, held := io.BytesIO())
        data = held.getvalue()
    _files.write_atomically(path, data)
    return data


def _tensors(path: Path) -> Mapping[str, Any]:
    if path.suffix != ".safetensors":
        return weights.tensors(path)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error
