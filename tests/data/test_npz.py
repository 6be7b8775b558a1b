import numpy as np
import pytest

from fedfisher_jax.data import DataNotFoundError, load


def arrays(**changes):
    rng = np.random.default_rng(0)
    return {
        "train_x": rng.normal(size=(6, 3)),
        "train_y": np.array([0, 1, 2, 0, 1, 2]),
        "test_x": rng.normal(size=(2, 3)),
        "test_y": np.array([3, 0]),
    } | changes


def save(folder, contents):
    path = folder / "mine.npz"
    np.savez(path, **contents)
    return str(path)


def test_arrays_come_back_unnormalised(tmp_path):
    given = arrays(groups=np.array(["b", "a", "b", "c", "a", "a"]), unrelated=np.zeros(1))
    data = load(save(tmp_path, given))
    assert (data.name, data.num_classes, data.augment) == ("mine", 4, False)
    np.testing.assert_array_equal(data.train_x, given["train_x"].astype(np.float32))
    np.testing.assert_array_equal(data.train_y, given["train_y"])
    assert data.test_y.dtype == np.int32
    np.testing.assert_array_equal(data.groups, [1, 0, 1, 2, 0, 0])


def test_images_and_no_groups(tmp_path):
    images = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4, 1)
    data = load(save(tmp_path, arrays(train_x=images, test_x=images[:2])))
    np.testing.assert_array_equal(data.train_x, images)
    assert data.groups is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_y": np.array([0, 1, -1, 0, 1, 2])}, "train_y: got labels from -1 to 2, expected labels 0 … C − 1"),
        ({"train_y": np.array([0, 1, 2**40, 0, 1, 2])}, "train_y: got .*, expected labels 0 … C − 1"),
        ({"train_y": np.zeros(6)}, "train_y: got float64, expected integer labels"),
        ({"train_y": np.zeros(5, int)}, "train_y: got .*, expected one label per example"),
        ({"train_x": np.full((6, 3), np.nan)}, "train_x has NaN or infinite values, first in example 0"),
        ({"train_x": np.full((6, 3), 1e300)}, "train_x has NaN or infinite values"),
        ({"train_x": np.zeros((6, 3), complex)}, "train_x: got complex128, expected real numbers"),
        ({"train_x": np.zeros((6, 3, 3))}, "train_x: got .*, expected shape"),
        ({"test_x": np.zeros((2, 4))}, "examples of one shape"),
        ({"test_x": np.zeros((0, 3)), "test_y": np.zeros(0, int)}, "test_x is empty"),
        ({"groups": np.arange(5)}, "groups: got .*, expected one entry per training example"),
        ({"train_x": np.array([{}] * 6)}, "cannot be read as a data set: train_x: cannot be read: Python objects"),
    ],
)
def test_faults_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(save(tmp_path, arrays(**changes)))
    assert "\n" not in str(caught.value)


def test_missing_arrays_are_named(tmp_path):
    given = arrays()
    del given["train_y"], given["test_x"]
    with pytest.raises(ValueError, match="missing arrays train_y, test_x; it has train_x, test_y"):
        load(save(tmp_path, given))


def test_no_file_and_no_archive(tmp_path):
    with pytest.raises(DataNotFoundError, match="does not exist: a .npz data set holds the arrays train_x, train_y"):
        load(str(tmp_path / "absent.npz"))
    path = tmp_path / "text.npz"
    path.write_text("no archive")
    with pytest.raises(ValueError, match="text.npz cannot be read as a data set: it is no .npz archive"):
        load(str(path))
