import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedfisher_jax.data import DATASETS, load
from fedfisher_jax.data._specs import SPECS, normalise


def test_the_names():
    assert set(DATASETS) == {
        "digits", "mnist", "fashion_mnist", "kmnist", "emnist", "svhn_cropped",
        "cifar10", "cifar100", "gtsrb", "cinic10", "tiny_imagenet",
    }  # fmt: skip
    assert {name for name in SPECS if SPECS[name].augment} == {"cifar10", "cifar100", "cinic10", "gtsrb"}


@pytest.mark.parametrize("name", ["nonsense", "MNIST", "", "mnist.npy"])
def test_an_unknown_name_lists_the_known(name):
    with pytest.raises(
        ValueError, match="got the data set .* expected one of digits, mnist, .*tiny_imagenet, or a path"
    ):
        load(name)


def test_digits_is_split_in_fixed_strata_and_normalised_by_its_training_part():
    data = load("digits")
    assert data.train_x.shape == (1442, 8, 8, 1) and data.test_x.shape == (355, 8, 8, 1)
    assert data.train_x.dtype == np.float32 and data.train_y.dtype == np.int32
    np.testing.assert_allclose(data.train_x.mean(dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(data.train_x.std(dtype=np.float64), 1, atol=1e-5)
    whole = np.bincount(load_digits().target)
    np.testing.assert_array_equal(np.bincount(data.test_y), whole // 5)
    np.testing.assert_array_equal(np.bincount(data.train_y) + np.bincount(data.test_y), whole)
    both = np.concatenate([data.train_x, data.test_x]).reshape(1797, 64).astype(np.float64)
    pixels = np.rint((both * 0.376158 + 0.305136) * 16)
    assert sorted(map(tuple, pixels)) == sorted(map(tuple, load_digits().data))  # each example is in one part


def test_normalise_is_per_channel():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 3), dtype=np.uint8)
    for spec in (SPECS["cifar10"], SPECS["svhn_cropped"]):
        expected = (pixels / 255 - np.array(spec.mean)) / np.array(spec.std)
        np.testing.assert_allclose(normalise(pixels, spec.mean, spec.std), expected, rtol=1e-5, atol=1e-6)
