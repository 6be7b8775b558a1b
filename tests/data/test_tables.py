"""Tables: the same arrays from .csv and .parquet, labels as they are called, and refusals by column and row."""

import csv

import numpy as np
import pytest

from fedfisher_jax import data
from fedfisher_jax.data import Columns

ROWS = [[f"{n}.5", n % 3, f"site {n % 2}", n, ("no", "yes")[n % 2]] for n in range(40)]
NAMES = ["a", "b", "where", "id", "label"]
NAMED = Columns("label", "where", ("id",))


def written(path, names=NAMES, rows=ROWS):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def test_a_table_becomes_a_data_set(tmp_path):
    found = data.load(str(written(tmp_path / "t.csv")), inputs="as-is", columns=NAMED)
    assert found.classes == ("no", "yes") and found.num_classes == 2 and found.name == "t"
    test = [n for label in (0, 1) for n in np.flatnonzero(np.arange(40) % 2 == label)[4::5]]
    rest = np.setdiff1d(np.arange(40), test)
    np.testing.assert_array_equal(found.train_x, np.stack([rest + 0.5, rest % 3], 1).astype(np.float32))
    np.testing.assert_array_equal(found.train_y, rest % 2)
    np.testing.assert_array_equal(found.test_y, np.sort(test) % 2)
    np.testing.assert_array_equal(found.groups, rest % 2)


def test_standardised_by_the_training_rows(tmp_path):
    found = data.load(str(written(tmp_path / "t.csv")), columns=NAMED)
    np.testing.assert_allclose(found.train_x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.train_x.std(0), 1, atol=1e-5)


def test_a_column_says_what_is_for_testing(tmp_path):
    rows = [[n, n % 2 + 5, "test" if n < 10 else "train"] for n in range(30)]
    found = data.load(str(written(tmp_path / "t.csv", ["x", "label", "split"], rows)), inputs="as-is")
    np.testing.assert_array_equal(found.test_x[:, 0], np.arange(10))
    assert found.classes == (5, 6) and len(found.train_x) == 20 and found.groups is None


def test_parquet_is_the_same(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {name: [row[place] for row in ROWS] for place, name in enumerate(NAMES)}
    columns["a"] = [float(value) for value in columns["a"]]
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    one = data.load(str(written(tmp_path / "t.csv")), columns=NAMED)
    other = data.load(str(tmp_path / "t.parquet"), columns=NAMED)
    for name in ("train_x", "train_y", "test_x", "test_y", "groups"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.classes == other.classes
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="cannot be read as a .parquet file"):
        data.load(str(tmp_path / "t.parquet"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"named": Columns("nothing")}, "label: .*got 'nothing', expected one of its columns: a, b"),
        ({"named": Columns("label", "nothing")}, "silo: "),
        ({"named": Columns("label", "where", ("nothing",))}, "ignore: "),
        ({"named": Columns("label", None, ("id",))}, "where: row 1: got 'site 0', expected a finite number"),
        ({"rows": [*ROWS, ["nan", 0, "s", 1, "no"]]}, "a: row 41: got 'nan'"),
        ({"rows": [*ROWS, ["1", 0, "s", 1, " "]]}, "label: row 41 is empty"),
        ({"rows": [*ROWS, ["1", 0, "s"]]}, "row 41 has 3 entries, expected 5"),
        ({"rows": []}, "at least one row, got none"),
        ({"names": ["a", "a", "where", "id", "label"]}, "names of columns that differ"),
        ({"names": ["a", "split", "where", "id", "label"]}, "split: got '0', expected train or test"),
        ({"rows": ROWS[:3]}, "3 rows to train on and 0 to test"),
    ],
)
def test_what_does_not_work_is_named(change, words, tmp_path):
    given = {"names": NAMES, "rows": ROWS, "named": NAMED} | change
    path = written(tmp_path / "t.csv", given["names"], given["rows"])
    with pytest.raises(ValueError, match=words):
        data.load(str(path), columns=given["named"])


def test_there_is_no_such_file(tmp_path):
    with pytest.raises(data.DataNotFoundError):
        data.load(str(tmp_path / "t.csv"))


def test_labels_are_what_is_written(tmp_path):
    rows = [[n, ("01", "1", "7")[n % 3]] for n in range(30)]
    found = data.load(str(written(tmp_path / "t.csv", ["x", "label"], rows)))
    assert found.classes == ("01", "1", "7")


def test_a_label_that_is_missing_in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    labels = [float(n % 2) for n in range(29)] + [float("nan")]
    parquet.write_table(pyarrow.table({"x": list(range(30)), "label": labels}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="label: row 30 is empty"):
        data.load(str(tmp_path / "t.parquet"))
