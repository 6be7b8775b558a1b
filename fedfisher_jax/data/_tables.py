"""Tables of anybody: a .csv file by the standard library, a .parquet file by pyarrow.

A row is an example. One column holds its label, perhaps one whose it is (a silo), perhaps one that says whether it is
for training or for testing; every other column is a number and an input.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._dataset import Dataset
from ._scaling import INPUTS, describe, require_digestible, scaling_of
from ._targets import as_targets, require_targets, strata
from ._where import DataNotFoundError

ENDINGS = (".csv", ".parquet")
SPLIT = "split"  # a column of this name with "train" and "test" says which rows are for testing
EVERY = 5  # else every fifth row of a class is


class Columns(NamedTuple):
    """Which columns of a table are no inputs."""

    label: str | tuple[str, ...] = "label"  # several of targets that are no classes
    silo: str | None = None  # says whose a row is
    ignore: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns of labels."""
        return (self.label,) if isinstance(self.label, str) else tuple(self.label)


def read_table(
    path: Path, inputs: str = "standardised", named: Columns = Columns(), likelihood: str = "categorical"
) -> Dataset:
    """Read a data set from a table.

    Labels may be texts or numbers with gaps: they are numbered in their order, and `Dataset.classes` keeps them. A
    column "split" of "train" and "test" divides the rows; without one every fifth row of each class is for testing.

    Args:
        path: a .csv file with a first line of names, or a .parquet file (which needs pyarrow).
        inputs: "standardised" or "as-is", as in `read_npz`.
        named: which columns are labels, silos (the training rows' `Dataset.groups`), and none of anything.
        likelihood: what the labels are fitted with, one of `TARGETS`; without classes they are numbers, perhaps in
            several columns.

    Raises:
        DataNotFoundError: there is no such file.
        ValueError: it cannot be read, a column is missing, or an entry is no finite number; column and row are named.
    """
    if inputs not in INPUTS:
        raise ValueError(f"inputs: got {inputs!r}, expected one of {', '.join(INPUTS)}")
    require_targets(likelihood)
    columns = read_columns(path)
    return dataset_of(path, columns, inputs, named, likelihood)


def dataset_of(
    path: Path,
    columns: Mapping[str, Sequence[Any]],
    inputs: str,
    named: Columns,
    likelihood: str,
    x: np.ndarray | None = None,
) -> Dataset:
    """Make the data set of a table's columns, as `read_table` does of a file's; inputs x [N, ...] may come apart."""
    for what, names in (("label", named.labels), ("silo", [named.silo] if named.silo else [])):
        require_columns(path, columns, what, names)
    silo, x = named.silo, inputs_of(path, columns, named) if x is None else x
    y, count, classes = _targets(path, columns, named.labels, likelihood)
    test = _is_test(path, columns.get(SPLIT), strata(likelihood, y).labels)
    groups = None if silo is None else np.unique(labels_of(path, silo, columns[silo]), return_inverse=True)[1]
    train_x, test_x = x[~test], x[test]
    if not len(train_x) or not len(test_x):
        raise ValueError(
            f"{path}: got {len(train_x)} rows to train on and {len(test_x)} to test, expected some of each"
        )
    scaling = scaling_of(describe(train_x)) if inputs == "standardised" else None
    to_floats = scaling or (lambda numbers: numbers.astype(np.float32))
    return Dataset(
        name=path.stem,
        train_x=to_floats(train_x),
        train_y=y[~test],
        test_x=to_floats(test_x),
        test_y=y[test],
        num_classes=count,
        groups=None if groups is None else groups[~test],
        scaling=scaling,
        classes=classes,
        likelihood=likelihood,
    )


def _targets(
    path: Path, columns: Mapping[str, Sequence[Any]], labels: Sequence[str], likelihood: str
) -> tuple[np.ndarray, int, tuple[int | str, ...] | None]:
    """Targets, how many classes or numbers there are, and what the classes are called."""
    if likelihood == "categorical":
        if len(labels) != 1:
            raise ValueError(f"label: got {' '.join(labels) or 'none'}, expected one column of classes")
        classes, y = np.unique(labels_of(path, labels[0], columns[labels[0]]), return_inverse=True)
        plain = classes.dtype.kind in "iu" and np.array_equal(classes, np.arange(len(classes)))
        return y.astype(np.int32), max(2, len(classes)), None if plain else tuple(classes.tolist())
    y = numbers_of(path, columns, labels)
    return as_targets(f"{path}: {', '.join(labels)}", likelihood, y), y.shape[1], None


def read_columns(path: Path) -> dict[str, Sequence[Any]]:
    """The columns of a table by name, as they are written.

    Raises:
        DataNotFoundError: there is no such file.
        ValueError: it cannot be read, or has no rows, or two columns of one name.
    """
    if not path.is_file():
        raise DataNotFoundError(f"{path} does not exist: a table is a .csv or .parquet file")
    found = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    if not found or not len(next(iter(found.values()))):
        raise ValueError(f"{path}: expected a first line of names and at least one row, got none")
    return found


def labels_of(path: Path, name: str, values: Sequence[Any]) -> np.ndarray:
    """A column of labels: whole numbers where all are written as such, else texts, so that "01" is not "1".

    Raises:
        ValueError: an entry is empty; its row is named.
    """
    texts = ["" if value is None or value != value else str(value).strip() for value in values]  # Parquet has NaN
    if "" in texts:
        raise ValueError(f"{path}: {name}: row {texts.index('') + 1} is empty")
    try:
        numbers = np.asarray([int(text) for text in texts], np.int64)
    except (ValueError, OverflowError):
        return np.asarray(texts)
    return numbers if texts == list(map(str, numbers.tolist())) else np.asarray(texts)


def read_part(path: Path, part: str, named: Columns = Columns()) -> tuple[np.ndarray, np.ndarray | None]:
    """Inputs and labels as they are, of the rows whose "split" is the part; of all rows without such a column.

    Raises:
        ValueError: as `read_table`, or no such row. Labels are None where the table has none.
    """
    columns = read_columns(path)
    x = inputs_of(path, columns, named)
    y = _as_written(path, columns, named.labels) if set(named.labels) <= set(columns) else None
    rows = np.ones(len(x), bool)
    if SPLIT in columns:
        rows = _said_test(path, columns[SPLIT]) == (part == "test")
    if not rows.any():
        raise ValueError(f"{path}: {SPLIT}: got no row for {part}, expected some")
    return x[rows], None if y is None else y[rows]


def _as_written(path: Path, columns: Mapping[str, Sequence[Any]], labels: Sequence[str]) -> np.ndarray:
    """Labels of one column as whole numbers, as numbers, or else as texts [N]; of several columns numbers [N, C]."""
    if len(labels) == 1:
        y = labels_of(path, labels[0], columns[labels[0]])
        if y.dtype.kind != "U":
            return y
        try:
            return numbers_of(path, columns, labels)[:, 0]
        except ValueError:
            return y
    return numbers_of(path, columns, labels)


def require_columns(path: Path, columns: Mapping[str, Any], what: str, names: Sequence[str]) -> None:
    """Refuse names of columns that a table does not have.

    Raises:
        ValueError: which one, and what there is.
    """
    for name in names:
        if name not in columns:
            raise ValueError(f"{what}: {path}: got {name!r}, expected one of its columns: {', '.join(columns)[:200]}")


def inputs_of(path: Path, columns: Mapping[str, Sequence[Any]], named: Columns) -> np.ndarray:
    """All columns that are inputs as numbers, float64 [N, columns].

    Raises:
        ValueError: there is none, or an entry is no finite number; column and row are named.
    """
    require_columns(path, columns, "ignore", named.ignore)
    taken = {*named.labels, named.silo, SPLIT, *named.ignore}
    names = [name for name in columns if name not in taken]
    if not names:
        raise ValueError(f"{path}: expected columns of numbers beside {', '.join(columns)[:200]}, got none")
    x = numbers_of(path, columns, names)
    require_digestible(f"{path}", x)
    return x


def numbers_of(path: Path, columns: Mapping[str, Sequence[Any]], names: Sequence[str]) -> np.ndarray:
    """Columns as numbers, float64 [N, columns].

    Raises:
        ValueError: an entry is no finite number; column and row are named.
    """
    x = np.empty((len(columns[names[0]]), len(names)))
    for place, name in enumerate(names):
        for row, value in enumerate(columns[name]):
            try:
                x[row, place] = float(value)
            except (TypeError, ValueError, OverflowError):
                x[row, place] = np.nan
            if not np.isfinite(x[row, place]):
                raise ValueError(f"{path}: {name}: row {row + 1}: got {str(value)[:40]!r}, expected a finite number")
    return x


def _is_test(path: Path, split: Sequence[Any] | None, y: np.ndarray) -> np.ndarray:
    if split is not None:
        return _said_test(path, split)
    test = np.zeros(len(y), bool)
    for number in np.unique(y):
        test[np.flatnonzero(y == number)[EVERY - 1 :: EVERY]] = True
    return test


def _said_test(path: Path, split: Sequence[Any]) -> np.ndarray:
    said = [str(value).strip() for value in split]
    if other := set(said) - {"train", "test"}:
        raise ValueError(f"{path}: {SPLIT}: got {sorted(other)[0][:40]!r}, expected train or test")
    return np.asarray([one == "test" for one in said])


def _csv(path: Path) -> dict[str, Sequence[Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a .csv file: {error}") from error
    if not rows:
        return {}
    names, width = rows[0], len(rows[0])
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != width:
            raise ValueError(f"{path}: row {number} has {len(row)} entries, expected {width}, as there are names")
    _require_different(path, names)
    return {name: [row[place] for row in rows[1:]] for place, name in enumerate(names)}


def _parquet(path: Path) -> dict[str, Sequence[Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path}: .parquet files need pyarrow: pip install 'fedfisher-jax[parquet]'") from error
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as a .parquet file: {str(error).splitlines()[0]}") from error
    _require_different(path, table.column_names)
    return {name: table[name].to_pylist() for name in table.column_names}


def _require_different(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: expected names of columns that differ, got {', '.join(names)[:200]}")
