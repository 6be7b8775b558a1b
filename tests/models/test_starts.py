import jax
import numpy as np
import pytest
import scipy.fft

from fedfisher_jax import models


def test_first_filters_are_cosines_and_later_ones_have_no_mean():
    network = models.build("lenet", (28, 28, 1), 10)
    usual = network.init(jax.random.key(3))
    start = models.designed(usual)
    assert jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, start, usual)
    filters = np.moveaxis(np.asarray(start["conv1"]["kernel"], float)[:, :, 0], -1, 0)
    spectrum = scipy.fft.dctn(filters, axes=(1, 2), norm="ortho") * 3**0.5  # one coefficient each
    places = [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0)]
    for number, place in enumerate(places):
        expected = np.zeros((5, 5))
        expected[place] = 1
        np.testing.assert_allclose(spectrum[number], expected, atol=1e-6)
    np.testing.assert_allclose(start["conv2"]["kernel"].sum((0, 1, 2)), 0, atol=1e-6)
    assert np.linalg.norm(start["conv2"]["kernel"] - usual["conv2"]["kernel"]) > 0
    for name in ("fc1", "fc2", "fc3"):
        np.testing.assert_array_equal(start[name]["kernel"], usual[name]["kernel"])


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
