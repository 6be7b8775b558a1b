"""A user's own arrays in a .npz file: train_x, train_y, test_x, test_y and, for a natural split, groups."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from ._dataset import Dataset
from ._where import DataNotFoundError

_NEEDED = ("train_x", "train_y", "test_x", "test_y")


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
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} cannot be read as a data set: it is no .npz archive")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in _NEEDED if name not in file]
            if missing:
                raise ValueError(f"missing arrays {', '.join(missing)}; it has {', '.join(file.files) or 'none'}")
            arrays = {name: file[name] for name in file.files if name in (*_NEEDED, "groups")}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a data set: {error}") from error
    train_y, test_y = (_labels(path, name, arrays[name]) for name in ("train_y", "test_y"))
    groups = np.unique(arrays["groups"], return_inverse=True)[1] if "groups" in arrays else None
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
        raise ValueError(f"{path}: {name} must hold real numbers, got {x.dtype}")
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite, which Dataset refuses
        return x.astype(np.float32)


def _labels(path: Path, name: str, y: np.ndarray) -> np.ndarray:
    if y.dtype.kind not in "biu":
        raise ValueError(f"{path}: {name} must hold integer labels, got {y.dtype}")
    if y.size and (int(y.min()) < 0 or int(y.max()) >= 2**31 - 1):
        raise ValueError(f"{path}: {name} must hold labels 0 … C − 1, got labels from {y.min()} to {y.max()}")
    return y.astype(np.int32)
