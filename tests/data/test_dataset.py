import dataclasses

import numpy as np
import pytest

from fedfisher_jax.data import Dataset


def make(**changes):
    x = np.zeros((6, 4, 4, 1), np.float32)
    y = np.array([0, 1, 2, 0, 1, 2], np.int32)
    return Dataset(
        **{"name": "toy", "train_x": x, "train_y": y, "test_x": x[:3], "test_y": y[:3], "num_classes": 3} | changes
    )


def with_value(value):
    x = np.zeros((6, 4, 4, 1), np.float32)
    x[4, 1, 2, 0] = value
    return x


def test_a_valid_data_set_and_its_groups():
    data = make(groups=np.arange(6))
    assert data.augment is False
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"  # pyright: ignore


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_x": with_value(np.nan)}, "toy: train_x has NaN or infinite values, first in example 4"),
        ({"train_x": with_value(-np.inf)}, "toy: train_x has NaN or infinite values, first in example 4"),
        ({"test_x": with_value(np.inf)[:5], "test_y": np.zeros(5, np.int32)}, "toy: test_x has NaN .* example 4"),
        (
            {"train_y": np.array([0, 1, 3, 0, 1, 2], np.int32)},
            "toy: train_y: got labels from 0 to 3, expected 0 … 2",
        ),
        ({"test_y": np.array([0, -1, 2], np.int32)}, "toy: test_y: got labels from -1 to 2, expected 0 … 2"),
        ({"train_y": np.zeros(5, np.int32)}, r"toy: train_y: got \(5,\), expected one label per example, shape \(6,\)"),
        ({"train_y": np.zeros(6)}, "toy: train_y: got float64, expected int32"),
        ({"train_x": np.zeros((6, 4, 4, 1))}, "toy: train_x: got float64, expected float32"),
        ({"train_x": np.zeros((6, 4, 4), np.float32)}, "toy: train_x: got .*, expected shape"),
        (
            {"test_x": np.zeros((3, 4, 5, 1), np.float32)},
            r"\(4, 4, 1\) and \(4, 5, 1\), expected examples of one shape",
        ),
        ({"train_x": np.zeros((0, 4, 4, 1), np.float32), "train_y": np.zeros(0, np.int32)}, "toy: train_x is empty"),
        ({"groups": np.arange(5)}, "toy: groups: got .*, expected one entry per training example"),
        ({"groups": np.zeros(6)}, "toy: groups: got .*, expected integers"),
        ({"num_classes": 1}, "toy: num_classes: got .*, expected at least 2"),
    ],
)
def test_each_fault_is_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)
