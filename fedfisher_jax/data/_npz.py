"""A user's own arrays in a .npz file: train_x, train_y, test_x, test_y and, for a natural split, groups."""

import zipfile
from pathlib import Path

import numpy as np

from ._arrays import read_arrays
from ._dataset import Dataset
from ._where import DataNotFoundError

_NEEDED = ("train_x", "train_y", "test_x", "test_y")
MOST_CLASSES = 2**24  # of labels: a network has an output for each


def read_npz(path: Path) -> Dataset:
    """Read a data set as it is: no normalisation is applied, and nothing is unpickled.

    Images are [N, H, W, C] and rows [N, features], any real type, made float32; labels are integers 0 … C − 1, and C is
    the largest label + 1, at least 2. `groups` is one entry per training example, integers or strings.

    Raises:
        DataNotFoundError: there is no such file.
        ValueError: it is no .npz file, an array is missing, pickled or not numeric, or `Dataset` refuses it.
    """
    if not path.is_file():
        raise DataNotFoundError(
            f"{path} does not exist: a .npz data set holds the arrays {', '.join(_NEEDED)} [groups]"
        )
    try:
        arrays = read_arrays(path, _chosen)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a data set: {error}") from error
    train_y, test_y = (_labels(path, name, arrays[name]) for name in ("train_y", "test_y"))
    groups = _groups(path, arrays["groups"]) if "groups" in arrays else None
    return Dataset(
        name=path.stem,
        train_x=_numbers(path, "train_x", arrays["train_x"]),
        train_y=train_y,
        test_x=_numbers(path, "test_x", arrays["test_x"]),
        test_y=test_y,
        num_classes=max(2, int(max(train_y.max(initial=0), test_y.max(initial=0))) + 1),
        groups=groups,
    )


def _numbers(path: Path, name: str, x: np.ndarray) -> np.ndarray:
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{path}: {name}: got {x.dtype}, expected real numbers")
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite, which Dataset refuses
        return x.astype(np.float32)


def _labels(path: Path, name: str, y: np.ndarray) -> np.ndarray:
    if y.dtype.kind not in "biu":
        raise ValueError(f"{path}: {name}: got {y.dtype}, expected integer labels")
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
