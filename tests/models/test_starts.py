import jax
import numpy as np
import pytest
import scipy.fft

from fedfisher_jax import models


def test_filters_are_signed_cosines_and_sums_of_three():
    network = models.build("lenet", (28, 28, 1), 10)
    usual = network.init(jax.random.key(3))
    start = models.designed(usual)
    assert jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, start, usual)
    filters = np.moveaxis(np.asarray(start["conv1"]["kernel"], float)[:, :, 0], -1, 0)
    spectrum = scipy.fft.dctn(filters, axes=(1, 2), norm="ortho") * 3**0.5  # one coefficient each
    for pair, place in enumerate([(0, 1), (1, 0), (1, 1)]):
        expected = np.zeros((5, 5))
        expected[place] = 1
        np.testing.assert_allclose(spectrum[2 * pair], expected, atol=1e-6)
        np.testing.assert_allclose(spectrum[2 * pair + 1], -expected, atol=1e-6)
    later = np.asarray(start["conv2"]["kernel"], float)
    np.testing.assert_allclose(later.sum((0, 1, 2)), 0, atol=1e-6)
    parts = np.abs(scipy.fft.dctn(later, axes=(0, 1), norm="ortho")).reshape(25, 6, 16)
    parts[0] = 0  # where the mean was taken
    assert ((parts > 1e-6).sum((0, 1)) <= 3).all()
    np.testing.assert_allclose(start["fc1"]["kernel"].sum(0), 0, atol=1e-4)


def test_the_designed_filters_are_the_same_for_every_start():
    network = models.build("lenet", (28, 28, 1), 10)
    first, second = (models.designed(network.init(jax.random.key(seed))) for seed in (0, 1))
    for name in ("conv1", "conv2"):
        np.testing.assert_array_equal(first[name]["kernel"], second[name]["kernel"])


def test_norms_are_the_usual_ones_on_average():
    """U(−1/√k, 1/√k) for k inputs: squared norm 1/3 a filter."""
    network = models.build("cnn", (32, 32, 3), 10)
    start = models.designed(network.init(jax.random.key(0)))
    squares = (np.asarray(start["conv1"]["kernel"]) ** 2).sum((0, 1, 2))
    np.testing.assert_allclose(squares, 1 / 3, rtol=1e-5)
    assert len(np.unique(np.asarray(start["conv1"]["kernel"]).reshape(-1, squares.size), axis=1).T) == squares.size


def test_a_model_without_convolutions_is_refused():
    network = models.build("mlp", (8, 8, 1), 10)
    with pytest.raises(ValueError, match="start: got a model without conv1"):
        models.designed(network.init(jax.random.key(0)))
