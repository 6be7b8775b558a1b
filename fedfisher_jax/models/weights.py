"""Weights of networks from and to files: safetensors, and PyTorch's own where PyTorch is installed."""

import importlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from .torch_layout import from_torch, to_torch

COUNTERS = ".num_batches_tracked"  # of batch norm, which say nothing of the model
_SHARD = re.compile(r"(?P<name>.*?)-?(?P<number>\d{5})-of-(?P<count>\d{5})")


_KINDS = (".safetensors", ".bin", ".pt", ".pth")


def checkpoints(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Group files by the checkpoint that they hold: shards "name-00001-of-00002" together, others on their own.

    Raises:
        ValueError: a shard is missing; the first one is named.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted(files):
        shard = _SHARD.fullmatch(file.stem)
        found.setdefault(shard["name"] or "model" if shard else file.stem, []).append(file)
    for name, parts in found.items():
        if (shard := _SHARD.fullmatch(parts[-1].stem)) is None:
            continue
        for number in range(1, int(shard["count"]) + 1):
            if not any(f"{number:05}-of-" in part.stem for part in parts):
                raise ValueError(f"{parts[0].parent}: shard {number} of {int(shard['count'])} of {name} is missing")
    return found


def tidied(state: Mapping[str, Any], expected: Collection[str]) -> dict[str, Any]:
    """Drop what trainers wrap around names, as "module." and "_orig_mod.", and batch norm's counters.

    A prefix goes only where all names have it and none is one that is expected.
    """
    kept = {name: value for name, value in state.items() if name in expected or not name.endswith(COUNTERS)}
    while kept and not set(kept) & set(expected) and all("." in name for name in kept):
        if len({name.split(".", 1)[0] for name in kept}) > 1:
            break
        kept = {name.split(".", 1)[1]: value for name, value in kept.items()}
    return kept


def read(path: str | Path, template: Any, *, keep: Sequence[str] = ()) -> Any:
    """Parameters of a network from a state dict in PyTorch's names and layout.

    Args:
        path: a .safetensors file, or .bin/.pt/.pth if PyTorch is installed (tensors only: nothing in the file is
            executed); or a folder of one checkpoint's shards, "model-00001-of-00002.safetensors" and so on. A
            dictionary's entry "state_dict" or "model" is opened; a prefix of every name, as "module.", and counters of
            batch norm are dropped.
        template: params of the network, which give shapes and types; or `jax.ShapeDtypeStruct`s if nothing is kept.
        keep: beginnings of PyTorch names, like "final." for the new head of a pre-trained network, whose parameters
            stay as in `template`; the file need not have them, and where it does they are not read.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a .pt or .pth file without PyTorch.
        ValueError: another kind of file, a broken one, or names and shapes that are not the network's, each named.
    """
    state = state_of(path, _named(template), lambda file: _safetensors(file) if _is_safe(file) else _torch(file))
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


def joined(parts: Iterable[Mapping[str, Any]], file: str) -> dict[str, Any]:
    """The entries of all shards.

    Raises:
        ValueError: two shards hold one name.
    """
    state: dict[str, Any] = {}
    for part in parts:
        if twice := sorted(set(state) & set(part)):
            raise ValueError(f"{file}: {twice[0][:80]!r} is in two shards")
        state |= part
    return state


def state_of(path: str | Path, expected: Collection[str], load: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Read the state dict that a file holds, or the shards of one in a folder, `tidied`.

    Args:
        path: as for `read`.
        expected: names that the network's own state dict has.
        load: reads one file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, several checkpoints in a folder, or shards that do not fit together.
    """
    path = Path(path)
    if path.suffix in _KINDS and not path.exists():
        raise FileNotFoundError(f"path: there is no file {path}")
    if path.is_dir():
        found = checkpoints(file for file in path.iterdir() if file.suffix in _KINDS)
        if len(found) != 1:
            raise ValueError(f"path: got a folder of {len(found)} checkpoints, expected the shards of one: {path}")
        files = next(iter(found.values()))
    elif path.suffix in _KINDS:
        files = [path]
    else:
        raise ValueError(f"path: got {path.name}, expected a .safetensors, .bin, .pt or .pth file")
    return tidied(joined(map(load, files), str(path)), expected)


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


def _is_safe(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _torch(path: Path) -> Mapping[str, Any]:
    loaded = tensors(path)
    floats = {name: value.float() if value.is_floating_point() else value for name, value in loaded.items()}
    return {name: value.numpy() for name, value in floats.items()}


def tensors(path: Path) -> Mapping[str, Any]:
    """Read a file of PyTorch's own, by which nothing is executed: tensors by name.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: it holds more than tensors, or no state dict.
    """
    try:
        torch: Any = importlib.import_module("torch")  # type checkers would take the room of that name for it
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
    return loaded
