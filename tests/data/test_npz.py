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


def test_arrays_come_back_as_they_are_where_that_is_asked_for(tmp_path):
    given = arrays(groups=np.array(["b", "a", "b", "c", "a", "a"]), unrelated=np.zeros(1))
    data = load(save(tmp_path, given), inputs="as-is")
    assert data.scaling is None
    assert (data.name, data.num_classes, data.augment) == ("mine", 4, False)
    np.testing.assert_array_equal(data.train_x, given["train_x"].astype(np.float32))
    np.testing.assert_array_equal(data.train_y, given["train_y"])
    assert data.test_y.dtype == np.int32
    np.testing.assert_array_equal(data.groups, [1, 0, 1, 2, 0, 0])


def test_images_and_no_groups(tmp_path):
    images = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4, 1)
    data = load(save(tmp_path, arrays(train_x=images, test_x=images[:2])), inputs="as-is")
    np.testing.assert_array_equal(data.train_x, images)
    assert data.groups is None


@pytest.mark.parametrize("shape", [(40, 4, 4), (40, 4, 4, 3), (40, 9)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_every_channel_or_feature_gets_mean_0_and_spread_1(shape, dtype, tmp_path):
    """By the training examples' statistics; uint8 rows are pixels, which share one."""
    rng = np.random.default_rng(1)
    x = (rng.uniform(0, 255, shape) * np.linspace(0.1, 1, shape[-1])).astype(dtype)
    y = np.arange(40) % 3
    data = load(save(tmp_path, {"train_x": x[:30], "train_y": y[:30], "test_x": x[30:], "test_y": y[30:]}))
    images = x[..., None] if x.ndim == 3 else x
    axes = None if dtype == np.uint8 and x.ndim == 2 else tuple(range(images.ndim - 1))
    mean, std = np.mean(images[:30], axes, float), np.std(images[:30], axes, float)
    np.testing.assert_allclose(data.train_x, (images[:30] - mean) / std, atol=1e-5)
    np.testing.assert_allclose(data.test_x, (images[30:] - mean) / std, atol=1e-5)
    np.testing.assert_allclose(np.ravel(data.scaling.mean), np.ravel(mean), rtol=1e-9)


def test_the_same_arrays_are_the_same_data_in_any_type_or_shape(tmp_path):
    x = np.random.default_rng(2).integers(0, 256, (30, 5, 5)).astype(np.uint8)
    y = np.arange(30) % 3
    found = [
        load(save(tmp_path, {"train_x": given[:20], "train_y": y[:20], "test_x": given[20:], "test_y": y[20:]}))
        for given in (x, x[..., None], x.astype(np.int64), x / 255)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other.train_x, found[0].train_x, atol=1e-5)
        np.testing.assert_allclose(other.test_x, found[0].test_x, atol=1e-5)


def test_a_constant_column_is_zero_and_large_ones_keep_their_digits(tmp_path):
    rng = np.random.default_rng(3)
    x = np.stack([np.full(20, 7.1), 1.7e9 + 1e4 * rng.normal(size=20), 1e-9 * rng.normal(size=20)], 1)
    data = load(save(tmp_path, arrays(train_x=x, train_y=np.arange(20) % 3, test_x=x[:2])))
    np.testing.assert_allclose(data.train_x, (x - x.mean(0)) / [1, *x.std(0)[1:]], atol=1e-4)


def test_labels_with_gaps_are_numbered_and_written_down(tmp_path):
    """Three classes numbered 7, 1500 and 1999 are three outputs, not two thousand."""
    x, y = np.random.default_rng(0).normal(size=(12, 3)), np.array([7, 1999, 1500] * 4)
    data = load(save(tmp_path, {"train_x": x[:9], "train_y": y[:9], "test_x": x[9:], "test_y": y[9:]}))
    assert data.num_classes == 3 and data.classes == (7, 1500, 1999)
    np.testing.assert_array_equal(np.asarray(data.classes)[data.train_y], y[:9])
    np.testing.assert_array_equal(np.asarray(data.classes)[data.test_y], y[9:])
    assert load(save(tmp_path, arrays())).classes is None


def test_no_other_word_for_inputs(tmp_path):
    with pytest.raises(ValueError, match="inputs: got 'raw', expected one of standardised, as-is"):
        load(save(tmp_path, arrays()), inputs="raw")
    with pytest.raises(ValueError, match="inputs: got 'as-is' for digits"):
        load("digits", inputs="as-is")


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
        ({"train_x": np.zeros((6, 3, 3, 2, 2))}, "train_x: got .*, expected shape"),
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
