"""A silo's examples: a .npz file, or a data set by name."""

import zipfile
from pathlib import Path

import numpy as np

from .. import data
from .._likelihood import Likelihood, check_targets
from ..data import _tables as tables
from ..data._arrays import read_arrays
from ..data._scaling import require_digestible
from ..data._where import expanded
from ._model_file import Model


def read(
    source: str, part: str, data_dir: Path | None = None, columns: data.Columns = data.Columns()
) -> tuple[np.ndarray, np.ndarray]:
    """Read inputs [N, ...] and targets [N, ...] as they are in the file, for `inputs_of` and `targets_of`.

    A .npz file holds `train_x`, `train_y` or `test_x`, `test_y`, whichever is asked for, or just `x`, `y`; nothing is
    unpickled and nothing normalised. A table's rows are all taken, or those of the part where it has a column "split".
    A data set by name comes as `data.load` gives it.

    Args:
        source: the path of a .npz file or of a table, or a name.
        part: "train" or "test".
        data_dir: where data sets by name lie.
        columns: which columns of a table are no inputs.

    Raises:
        ValueError: there is no such file or name, or its arrays are not what is expected.
    """
    if source.endswith(tables.ENDINGS):
        x, y = tables.read_part(expanded(source), part, columns)
        if y is None:
            raise ValueError(f"label: {source}: got no column {columns.label!r}, expected one of labels")
        return x, y
    if source.startswith("hf:"):
        found = data.load(source, inputs="as-is", columns=columns)
        y = getattr(found, f"{part}_y")
        return getattr(found, f"{part}_x"), y if found.classes is None else np.asarray(found.classes)[y]
    if not source.endswith(".npz"):
        found = data.load(source, data_dir=data_dir)
        return getattr(found, f"{part}_x"), getattr(found, f"{part}_y")
    path = expanded(source)
    pairs = (f"{part}_x", f"{part}_y"), ("x", "y")

    def pair_of(names: list[str]) -> tuple[str, str]:
        found = next((pair for pair in pairs if set(pair) <= set(names)), None)
        if found is None:
            raise ValueError(f"expected {part}_x, {part}_y or x, y; it has {', '.join(names) or 'none'}")
        return found

    try:
        (name, x), (_, y) = read_arrays(path, pair_of).items()
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"data: {path}: {error}") from error
    if x.dtype.kind not in "biuf" or y.dtype.kind not in "biuf":
        raise ValueError(f"data: {path}: expected real numbers, got {x.dtype} and {y.dtype}")
    if x.ndim < 2 or y.ndim < 1 or not x.size or len(x) != len(y):
        raise ValueError(f"data: {path}: expected [N, ...] inputs and N targets, got shapes {x.shape} and {y.shape}")
    require_digestible(f"data: {path}: {name}", x)
    return x, y.astype(np.uint8) if y.dtype.kind == "b" else y


def read_inputs(source: str, columns: data.Columns = data.Columns()) -> np.ndarray:
    """Read inputs [N, ...] of a file that needs no labels: `x` or `test_x` of a .npz file, a table's rows.

    Raises:
        ValueError: there is no such file or name, or its arrays are not what is expected.
    """
    if source.endswith(tables.ENDINGS):
        return tables.read_part(expanded(source), "test", columns)[0]
    if source.startswith("hf:"):
        return data.load(source, inputs="as-is", columns=columns).test_x
    if not source.endswith(".npz"):
        return data.load(source).test_x

    def one_of(names: list[str]) -> list[str]:
        found = [name for name in ("test_x", "x") if name in names]
        if not found:
            raise ValueError(f"expected x or test_x; it has {', '.join(names) or 'none'}")
        return found[:1]

    try:
        ((name, x),) = read_arrays(expanded(source), one_of).items()
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"data: {source}: {error}") from error
    if x.dtype.kind not in "biuf" or x.ndim < 2 or not x.size:
        raise ValueError(f"data: {source}: {name}: got {x.dtype} {x.shape}, expected real numbers [N, ...]")
    require_digestible(f"data: {source}: {name}", x)
    return x


def inputs_of(source: str, model: Model, x: np.ndarray) -> np.ndarray:
    """Make inputs as a model takes them: float32, scaled by its statistics, images [N, H, W] with one channel.

    Args:
        source: the path or name that they were read from.
        model: the model.
        x: as `read` returns them.

    Raises:
        ValueError: a named data set, which is normalised, for a model with a scaling of its own, or other columns.
    """
    if (*x.shape[1:], 1) == model.kind.input_shape:
        x = x[..., None]
    if model.scaling is None:
        return x.astype(np.float32)
    if not data.is_own(source):
        raise ValueError(f"data: {source} is normalised already, and the model scales inputs: give them as .npz")
    try:
        return model.scaling(x)
    except ValueError as error:
        raise ValueError(f"data: {source}: {error}") from error


def classes_of(source: str, model: Model, y: np.ndarray) -> np.ndarray:
    """Turn labels into the numbers of a model's classes, where it knows what they were called.

    Raises:
        ValueError: a label that is none of the classes, or texts for a model that has numbers.
    """
    if model.classes is None:
        if y.dtype.kind in "SU":
            raise ValueError(f"data: {source}: got texts as labels, and the model knows its classes by numbers alone")
        return y
    known = {name: number for number, name in enumerate(model.classes)}
    texts = isinstance(model.classes[0], str)
    found = [known.get(str(label) if texts else label, -1) for label in y.ravel().tolist()]
    if -1 in found:
        shown, names = y.ravel()[found.index(-1)], ", ".join(map(str, model.classes))[:200]
        raise ValueError(f"data: {source}: got the label {str(shown)[:40]!r}, expected one of the model's: {names}")
    return np.asarray(found, np.int32).reshape(y.shape)


def targets_of(source: str, likelihood: Likelihood, outputs: tuple[int, ...], y: np.ndarray) -> np.ndarray:
    """Make targets as the likelihood takes them: integers in int32, numbers to regress on in float32.

    Their values are checked before anything is cast, so that no integer wraps.

    Args:
        source: what messages call the data.
        likelihood: what they are fitted with.
        outputs: shape of the network's outputs for all of them.
        y: as `read` returns them.

    Raises:
        ValueError: what is wrong with them.
    """
    try:
        check_targets(likelihood, outputs, y)
        y = y[:, None] if likelihood.name != "categorical" and y.ndim < len(outputs) else y
        if likelihood.name != "gaussian":
            return y.astype(np.int32)
        with np.errstate(over="ignore"):
            numbers = y.astype(np.float32)
        check_targets(likelihood, outputs, numbers)  # 1e300 is finite, but not as float32
        return numbers
    except ValueError as error:
        raise ValueError(f"data: {source}: {error}") from error
