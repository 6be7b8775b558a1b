"""A silo's examples: a .npz file, or a data set by name."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from .. import data
from .._likelihood import Likelihood, check_targets


def read(source: str, part: str, data_dir: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [N, ...] in float32 and targets [N, ...].

    A .npz file holds `train_x`, `train_y` or `test_x`, `test_y`, whichever is asked for, or just `x`, `y`; nothing is
    unpickled and nothing normalised. A data set by name comes as `data.load` gives it.

    Args:
        source: the path of a .npz file, or a name.
        part: "train" or "test".
        data_dir: where data sets by name lie.

    Raises:
        ValueError: there is no such file or name, or its arrays are not what is expected.
    """
    if not source.endswith(".npz"):
        found = data.load(source, data_dir=data_dir)
        return getattr(found, f"{part}_x"), getattr(found, f"{part}_y")
    path = Path(source).expanduser()
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise ValueError(f"data: {path} is not there, or no .npz archive")
    try:
        with np.load(path, allow_pickle=False) as file:
            pairs = (f"{part}_x", f"{part}_y"), ("x", "y")
            names = next((pair for pair in pairs if set(pair) <= set(file.files)), None)
            if names is None:
                raise ValueError(f"expected {part}_x, {part}_y or x, y; it has {', '.join(file.files) or 'none'}")
            x, y = (file[name] for name in names)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(f"data: {path}: {error}") from error
    if x.dtype.kind not in "biuf" or y.dtype.kind not in "biuf":
        raise ValueError(f"data: {path}: expected real numbers, got {x.dtype} and {y.dtype}")
    if x.ndim < 2 or not len(x) or len(x) != len(y):
        raise ValueError(f"data: {path}: expected [N, ...] inputs and N targets, got shapes {x.shape} and {y.shape}")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and refused
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError(f"data: {path}: {names[0]} has NaN or infinite values")
    return x, y.astype(np.int32 if y.dtype.kind in "biu" else np.float32)


def require_targets(source: str, likelihood: Likelihood, outputs: tuple[int, ...], y: np.ndarray) -> None:
    """Refuse targets that the likelihood cannot have for outputs of this shape.

    Raises:
        ValueError: what is wrong with them.
    """
    try:
        check_targets(likelihood, outputs, y)
    except ValueError as error:
        raise ValueError(f"data: {source}: {error}") from error
