"""Data sets of Hugging Face: "hf:FOLDER", as `save_to_disk` leaves it, or "hf:NAME" of the hub.

A hub name is loaded by the `datasets` package, which downloads it once and then has it in its cache (HF_HUB_OFFLINE=1
asks no network); a configuration stands after a colon, "hf:glue:sst2".
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ._dataset import Dataset
from ._scaling import as_images, require_digestible
from ._tables import SPLIT, Columns, dataset_of
from ._where import expanded

PREFIX = "hf:"
_TESTS = ("test", "validation", "valid", "val")  # the first split that is there is tested on


def read_hugging_face(name: str, inputs: str, named: Columns, likelihood: str) -> Dataset:
    """Read a data set; rows are those of its train split and of its test, else validation split.

    Inputs are the one column of images, or of arrays of one shape, or else all columns of numbers, as in a table.
    Names of classes that the set has are kept in `Dataset.classes`.

    Args:
        name: "hf:FOLDER" or "hf:NAME".
        inputs: "standardised" or "as-is", as in `read_npz`.
        named: which columns are labels, silos, and none of anything.
        likelihood: what the labels are fitted with.

    Raises:
        ValueError: it cannot be loaded, or its columns are not what is expected.
    """
    label, parts = name.removeprefix(PREFIX), _parts(name)
    first = next(iter(parts.values()))
    rest = [column for column in first.column_names if column not in {*named.labels, named.silo, *named.ignore}]
    arrays = [column for column in rest if _is_array(first.features[column])]
    if arrays and len(rest) > 1:
        raise ValueError(f"{name}: got the columns {', '.join(rest)[:200]}, expected one of images or arrays: --ignore")
    kept = [column for column in first.column_names if column not in arrays]
    columns: dict[str, Sequence[Any]] = {key: [v for part in parts.values() for v in part[key]] for key in kept}
    if len(parts) > 1:
        columns[SPLIT] = [which for which, part in parts.items() for _ in range(len(part))]
    x = _stacked(name, parts, arrays[0]) if arrays else None
    found = dataset_of(Path(label), columns, inputs, named, likelihood, x)
    names = getattr(first.features.get(named.labels[0]), "names", None)
    if likelihood != "categorical" or names is None:
        return found
    places = range(found.num_classes) if found.classes is None else found.classes
    if not all(isinstance(place, int) and 0 <= place < len(names) for place in places):
        raise ValueError(f"{name}: {named.labels[0]}: got a label that has no name, expected 0 to {len(names) - 1}")
    return dataclasses.replace(found, classes=tuple(str(names[int(place)]) for place in places))


def _parts(name: str) -> dict[str, Any]:
    """The split to train on and, where there is one, to test on; of a set without splits all of it."""
    loaded = package(name)
    path, _, configuration = name.removeprefix(PREFIX).partition(":")
    folder = expanded(path)
    try:
        if folder.is_dir():
            found = loaded.load_from_disk(str(folder))
        elif path.startswith((".", "~", "/")) or path.count("/") > 1:
            raise ValueError(f"got no folder {folder}, expected one that save_to_disk wrote, or OWNER/NAME of the hub")
        else:
            found = loaded.load_dataset(path, configuration or None)
    except Exception as error:  # of the hub, its cache, or files: of many kinds
        raise ValueError(f"{name} cannot be loaded: {_why(loaded, error)}") from error
    if not isinstance(found, Mapping):
        return {"train": found}
    if "train" not in found:
        raise ValueError(f"{name}: got the splits {', '.join(found)}, expected train among them")
    test = next((split for split in _TESTS if split in found), None)
    return {"train": found["train"]} | ({} if test is None else {"test": found[test]})


def _why(loaded: Any, error: Exception) -> str:
    """What is wrong and what helps, in words; the package says neither where its cache is nor what a login is."""
    if isinstance(error, loaded.exceptions.DatasetNotFoundError):
        return "the hub has no data set of this name, or shows it to its members alone (hf auth login)"
    if isinstance(error, ConnectionError):
        cache = loaded.config.HF_DATASETS_CACHE
        return (
            f"the hub cannot be reached, and there is no copy in {cache}; load it once where there is a network, or "
            "bring a folder that save_to_disk wrote, as hf:FOLDER"
        )
    return " ".join(str(error).split())[:300]


def _is_array(feature: Any) -> bool:
    """Whether a column holds images or arrays; numbers and texts are single values."""
    return type(feature).__name__ not in ("Value", "ClassLabel")


def _stacked(name: str, parts: Mapping[str, Any], column: str) -> np.ndarray:
    rows = [np.asarray(value) for part in parts.values() for value in part[column]]
    shapes = sorted({row.shape for row in rows})
    if len(shapes) > 1:
        raise ValueError(f"{name}: {column}: got examples of shapes {shapes[0]}, {shapes[1]}, expected one shape")
    x = np.stack(rows)
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{name}: {column}: got {x.dtype}, expected images or arrays of numbers")
    require_digestible(f"{name}: {column}", x)
    return as_images(x)


def package(name: str) -> Any:
    """Import `datasets`; `name` is what needs it.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"{name} needs the package datasets: pip install 'fedfisher-jax[hf]'") from error
    return datasets
