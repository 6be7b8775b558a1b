"""A user's own arrays in a .npz file: train_x, train_y, test_x, test_y and, for a natural split, groups."""

import zipfile
from pathlib import Path

import numpy as np

from ._arrays import read_arrays
from ._dataset import Dataset
from ._scaling import INPUTS, as_images, describe, require_digestible, scaling_of
from ._targets import as_targets, require_targets
from ._where import DataNotFoundError

_NEEDED = ("train_x", "train_y", "test_x", "test_y")
MOST_CLASSES = 2**24  # of labels: a network has an output for each


def read_npz(path: Path, inputs: str = "standardised", likelihood: str = "categorical") -> Dataset:
    """Read a data set; nothing is unpickled.

    Images are [N, H, W, C], or [N, H, W] with one channel, and rows [N, features], of any real type. Labels are
    integers from 0, or texts; texts, and integers with gaps, are numbered 0 … C − 1 in their order, which
    `Dataset.classes` keeps. Other likelihoods have numbers as targets, [N] or [N, C]. `groups` is one entry per
    training example, integers or strings.

    Args:
        path: the file.
        inputs: "standardised" gives every channel or feature mean 0 and spread 1 by the training examples'
            statistics, which `Dataset.scaling` keeps; "as-is" makes the numbers float32 and no more.
        likelihood: what the targets are fitted with, one of `TARGETS`.

    Raises:
        DataNotFoundError: there is no such file.
        ValueError: it is no .npz file, an array is missing, pickled or not numeric, or `Dataset` refuses it.
    """
    if inputs not in INPUTS:
        raise ValueError(f"inputs: got {inputs!r}, expected one of {', '.join(INPUTS)}")
    require_targets(likelihood)
    if not path.is_file():
        raise DataNotFoundError(
            f"{path} does not exist: a .npz data set holds the arrays {', '.join(_NEEDED)} [groups]"
        )
    try:
        arrays = read_arrays(path, _chosen)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a data set: {error}") from error
    train_x, test_x = (_numbers(path, name, arrays[name]) for name in ("train_x", "test_x"))
    groups = _groups(path, arrays["groups"]) if "groups" in arrays else None
    labels = arrays["train_y"], arrays["test_y"]
    if likelihood == "categorical":
        (train_y, test_y), count, classes = _classes(path, *labels)
    else:
        named = zip(("train_y", "test_y"), labels, strict=True)
        train_y, test_y = (as_targets(f"{path}: {name}", likelihood, y) for name, y in named)
        count, classes = train_y.shape[1], None
    scaling = None
    if inputs == "standardised" and train_x.size and train_x.shape[1:] == test_x.shape[1:]:
        scaling = scaling_of(describe(train_x))  # of shapes that differ `Dataset` speaks
    to_floats = scaling or (lambda x: x.astype(np.float32))
    return Dataset(
        name=path.stem,
        train_x=to_floats(train_x),
        train_y=train_y,
        test_x=to_floats(test_x),
        test_y=test_y,
        num_classes=count,
        groups=groups,
        scaling=scaling,
        classes=classes,
        likelihood=likelihood,
    )


def _numbers(path: Path, name: str, x: np.ndarray) -> np.ndarray:
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{path}: {name}: got {x.dtype}, expected real numbers")
    require_digestible(f"{path}: {name}", x)
    return as_images(x)


def _classes(path: Path, *labels: np.ndarray) -> tuple[list[np.ndarray], int, tuple[int | str, ...] | None]:
    """Labels of the parts as places among the classes, the number of classes, and what they are called."""
    parts = [_labels(path, name, y) for name, y in zip(("train_y", "test_y"), labels, strict=True)]
    if len({y.dtype.kind for y in parts}) > 1:
        raise ValueError(f"{path}: train_y, test_y: got {parts[0].dtype} and {parts[1].dtype}, expected one type")
    found = np.unique(np.concatenate([y.ravel() for y in parts]))
    if np.array_equal(found, np.arange(len(found))):
        return parts, max(2, len(found)), None
    return [np.searchsorted(found, y).astype(np.int32) for y in parts], max(2, len(found)), tuple(found.tolist())


def _labels(path: Path, name: str, y: np.ndarray) -> np.ndarray:
    if y.dtype.kind == "U":
        return y
    if y.dtype.kind not in "biu":
        raise ValueError(
            f"{path}: {name}: got {y.dtype}, expected integer labels or texts (for numbers say the likelihood gaussian)"
        )
    if y.size and (int(y.min()) < 0 or int(y.max()) >= MOST_CLASSES):
        given = f"from {y.min()} to {y.max()}"
        raise ValueError(f"{path}: {name}: got labels {given}, expected labels 0 … C − 1; C is at most {MOST_CLASSES}")
    return y.astype(np.int32)


def _groups(path: Path, groups: np.ndarray) -> np.ndarray:
    if groups.dtype.kind not in "biuSU" or groups.ndim != 1:
        given = f"{groups.dtype} {groups.shape}"
        raise ValueError(f"{path}: groups: got {given}, expected one entry per training example, integers or strings")
    return np.unique(groups, return_inverse=True)[1]


def _chosen(names: list[str]) -> list[str]:
    if missing := [name for name in _NEEDED if name not in names]:
        raise ValueError(f"missing arrays {', '.join(missing)}; it has {', '.join(names) or 'none'}")
    return [name for name in names if name in (*_NEEDED, "groups")]
