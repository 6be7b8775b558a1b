"""Weights of networks from and to files: safetensors, and PyTorch's own where PyTorch is installed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from .torch_layout import from_torch, to_torch


def read(path: str | Path, template: Any, *, keep: Sequence[str] = ()) -> Any:
    """Parameters of a network from a state dict in PyTorch's names and layout.

    Args:
        path: a .safetensors file, or .pt/.pth if PyTorch is installed (tensors only: nothing in the file is executed).
            A dictionary's entry "state_dict" or "model" is opened; a prefix "module." of every name is dropped.
        template: params of the network, which give shapes and types; or `jax.ShapeDtypeStruct`s if nothing is kept.
        keep: beginnings of PyTorch names, like "final." for the new head of a pre-trained network, whose parameters
            stay as in `template`; the file need not have them, and where it does they are not read.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a .pt or .pth file without PyTorch.
        ValueError: another kind of file, a broken one, or names and shapes that are not the network's, each named.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"path: got {path.name}, expected a .safetensors, .pt or .pth file")
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {path}")
    state = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    if keep and any(map(_abstract, jax.tree.leaves(template))):
        raise ValueError("template: expected arrays to keep, got shapes alone")
    own = {name: value for name, value in _named(template).items() if name.startswith(tuple(keep))}
    unknown = [prefix for prefix in keep if not any(name.startswith(prefix) for name in own)]
    if unknown:
        raise ValueError(f"keep: got {unknown}, expected beginnings of {', '.join(_named(template))}")
    try:
        return from_torch(template, {n: v for n, v in state.items() if not n.startswith(tuple(keep))} | own)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write(path: str | Path, params: Any) -> None:
    """Parameters as a .safetensors file in PyTorch's names and layout, which `read` restores exactly.

    Raises:
        ValueError: the path does not end so, or a parameter is neither a bias nor a dense nor a 2-d convolution kernel.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path: got {Path(path).name}, expected a .safetensors file")
    state = {name: np.ascontiguousarray(value) for name, value in to_torch(params).items()}
    safetensors.numpy.save_file(state, path)


def _named(template: Any) -> dict[str, np.ndarray]:
    """The template by PyTorch names; values only where it has them."""
    concrete = jax.tree.map(lambda leaf: np.zeros(leaf.shape) if _abstract(leaf) else np.asarray(leaf), template)
    return to_torch(concrete)


def _abstract(leaf: Any) -> bool:
    return not hasattr(leaf, "__array__")


def _safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a safetensors file that numpy can hold: {error}") from error


def _torch(path: Path) -> Mapping[str, Any]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"{path}: reading it needs PyTorch, which is not installed; where it is, convert the file with "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')"
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no common type for the ways in which a file can be broken
        raise ValueError(f"{path}: not a file of tensors alone: {error}") from error
    for entry in ("state_dict", "model"):
        loaded = loaded.get(entry, loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ValueError(f"{path}: expected a state dict, names with tensors")
    floats = {name: value.float() if value.is_floating_point() else value for name, value in loaded.items()}
    return {name: value.numpy() for name, value in floats.items()}
