"""Kronecker factors: where theory says that they are the block of the explicit matrix, and their conventions."""

import explicit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax import lax
from two_layers import CLASSES, NETWORK, N, X, apply, measure

import fedfisher_jax as ff


def kronecker_and_full(function, params, x, y=None, likelihood=ff.categorical(), **options):
    found = ff.fishers(
        function, likelihood, params, ff.examples(x, y), structures=("diagonal", "kronecker", "full"), **options
    )
    return np.asarray(found["kronecker"].to_dense()), np.asarray(found["full"].to_dense()), found["kronecker"]


ONE_POSITION = {  # convolutions whose output is one pixel
    "padded": ((3, 2, 2, 3), (1, 2, 1, 2), {"padding": ((1, 0), (0, 1))}),
    "dilated": ((2, 2, 1, 3), (1, 3, 4, 1), {"rhs_dilation": (2, 3)}),
    "grouped": ((2, 2, 2, 6), (1, 2, 2, 4), {"feature_group_count": 2}),
}


def _one_pixel(name):
    kernel, shape, options = ONE_POSITION[name]
    return zoo.convolution(kernel, shape, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ONE_POSITION, "transposed_and_einsum_weights"])
def test_one_example_and_one_position_is_exact(name):
    """One activation vector per layer: each block is its outer product times the mean of the gradients'."""
    model = _one_pixel(name) if name in ONE_POSITION else zoo.CASES[name]()
    found, full, fisher = kronecker_and_full(model.apply, model.params, model.x[:1])
    expected = explicit.block_diagonal(full, fisher, model.params)
    if name == "grouped":  # blocks of groups, not of the layer, are exact: others are left out
        expected = np.where(found != 0, expected, 0)
        assert (expected != 0).sum() > 100
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_deep_linear_networks_with_gaussian_outputs_are_exact():
    """Gradients do not depend on the example, so the mean of products is the product of means (1905.10961)."""
    params = [zoo.normal(0, 4, 5), zoo.normal(1, 5, 5), zoo.normal(2, 5, 2)]
    found, full, fisher = kronecker_and_full(
        lambda p, x: x @ p[0] @ p[1] @ p[2], params, X, zoo.normal(5, N, 2), ff.gaussian()
    )
    np.testing.assert_allclose(found, explicit.block_diagonal(full, fisher, params), rtol=1e-9, atol=1e-12)


def test_the_last_layer_is_exact_for_gaussian_outputs():
    params = [zoo.normal(0, 4, 5), zoo.normal(1, 5, 2), zoo.normal(2, 2)]

    def function(p, x):
        return jnp.tanh(x @ p[0]) @ p[1] + p[2]

    found, full, _ = kronecker_and_full(function, params, X, zoo.normal(5, N, 2), ff.gaussian())
    last = slice(20, None)
    np.testing.assert_allclose(found[last, last], full[last, last], rtol=1e-9, atol=1e-12)
    first = slice(0, 20)
    assert np.linalg.norm(found[first, first] - full[first, first]) > 1e-2 * np.linalg.norm(full)  # not so the first


def test_every_layer_is_exact_where_all_examples_are_one():
    """n copies of one input: activations and gradients are constant."""
    found, full, fisher = kronecker_and_full(apply, NETWORK, jnp.tile(X[:1], (4, 1)))
    expected = explicit.block_diagonal(full, fisher, NETWORK)
    layers = slice(0, -3)  # the last three are the leaf that is no layer
    np.testing.assert_allclose(found[layers, layers], expected[layers, layers], rtol=1e-8, atol=1e-12)


def test_leaves_that_are_no_layers_keep_their_diagonal():
    found = measure()["kronecker"]
    position = sorted(NETWORK).index("scale")
    assert set(found.rest) == {position}
    expected = np.diag(explicit.fisher(apply, ff.categorical(), NETWORK, X, CLASSES))[-3:]
    np.testing.assert_allclose(found.rest[position], expected, rtol=1e-9)
    dense = np.asarray(found.to_dense())
    np.testing.assert_allclose(dense[-3:, -3:], np.diag(expected), rtol=1e-9)
    assert not dense[:-3, -3:].any()


def test_conventions_of_convolutions():
    """A sums over positions and G averages over them, offsets before channels, the bias last (1602.01407)."""
    model = zoo.convolution((2, 2, 2, 3), (N, 4, 3, 2))
    factors = ff.fisher(model.apply, ff.categorical(), model.params, ff.examples(model.x), structure="kronecker")
    x, kernel = np.asarray(model.x), model.params["k"]
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(1, 2))  # n, h, w, channel, kh, kw
    rows = np.concatenate([windows.transpose(0, 1, 2, 4, 5, 3).reshape(N, 6, 8), np.ones((N, 6, 1))], -1)
    np.testing.assert_allclose(factors.inputs[0], np.einsum("nti,ntj->ij", rows, rows) / N, rtol=1e-10)

    def from_output(y):  # y: the convolution's output [n, h, w, o]
        return jnp.tanh(y).reshape(len(y), -1) @ model.params["w"]

    y = lax.conv_general_dilated(model.x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    g = np.zeros((3, 3))
    for one in y + model.params["b"]:
        outputs, vjp = jax.vjp(lambda out: from_output(out[None])[0], one)
        p = np.asarray(jax.nn.softmax(outputs))
        for c in range(len(p)):
            rows = np.asarray(vjp(jnp.asarray(p - np.eye(len(p))[c]))[0]).reshape(6, 3)  # of −log p_c
            g += p[c] * rows.T @ rows / 6 / N
    np.testing.assert_allclose(factors.outputs[0], g, rtol=1e-10)
