import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from jax import lax

from fedfisher_jax import LocalTraining, gaussian, train
from fedfisher_jax._examples import examples
from fedfisher_jax.tracing import _convolution as convolution

MORE = {
    "narrow_and_strided": ((5, 3, 2, 3), (2, 11, 13, 2), {"window_strides": (2, 3), "padding": ((2, 1), (0, 4))}),
    "width_no_multiple_of_the_tile": ((3, 3, 1, 8), (2, 6, 29, 1), {"padding": "SAME"}),
    "wide": ((2, 2, 3, 140), (2, 4, 5, 3), {}),
    "kernel_as_large_as_the_image": ((4, 5, 2, 3), (2, 4, 5, 2), {}),
    "one_by_one": ((1, 1, 3, 4), (2, 4, 4, 3), {"window_strides": (2, 2)}),
}


def _assert_same_with_derivatives(apply, params, x):
    cotangent = zoo.normal(7, *jax.eval_shape(apply, params, x).shape)

    @jax.jit
    def both(params, x):
        results = []
        for function in (apply, convolution.as_matrix_products(apply)):
            outputs, vjp = jax.vjp(function, params, x)
            results.append((outputs, vjp(cotangent)))
        return results

    expected, found = both(params, x)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", [*zoo.CONVOLUTIONS, "linen_transposed_convolution", "depthwise_and_circular"])
def test_same_function_and_derivatives(name):
    model = zoo.CASES[name]()
    _assert_same_with_derivatives(*model[:3])


@pytest.mark.parametrize("name", MORE)
def test_same_function_and_derivatives_of_several_columns_at_once(name):
    kernel, shape, options = MORE[name]
    _assert_same_with_derivatives(*zoo.convolution(kernel, shape, **options)[:3])


@pytest.mark.parametrize("layout", [("NHCW", "IOHW", "CWNH"), ("CHWN", "OWIH", "HNWC")])
def test_any_layout(layout):
    x = zoo.normal(0, 3, 4, 5, 4)
    shapes = [x.shape[layout[0].index("C")], 6, 2, 2]
    kernel = zoo.normal(1, *[shapes["IOHW".index(letter)] for letter in layout[1]])

    def apply(kernel, x):
        return lax.conv_general_dilated(x, kernel, (1, 2), ((1, 0), (0, 1)), dimension_numbers=layout)

    _assert_same_with_derivatives(apply, kernel, x)


@pytest.mark.parametrize("groups", [1, 2])
def test_types_follow_the_convolution(groups):
    x, kernel = zoo.normal(0, 2, 5, 5, 4).astype(jnp.bfloat16), zoo.normal(1, 3, 3, 4 // groups, 2).astype(jnp.bfloat16)
    for preferred in (None, jnp.float32):

        def apply(x, kernel, preferred=preferred):
            return lax.conv_general_dilated(
                x,
                kernel,
                (1, 1),
                "VALID",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
                preferred_element_type=preferred,
            )

        found, expected = convolution.as_matrix_products(apply)(x, kernel), apply(x, kernel)
        assert found.dtype == expected.dtype == (preferred or jnp.bfloat16)
        np.testing.assert_allclose(
            np.asarray(found, float), np.asarray(expected, float), rtol=2**-7, atol=2**-7 * float(abs(expected).max())
        )


def test_precision_is_handed_on():
    def apply(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )

    jaxpr = jax.make_jaxpr(convolution.as_matrix_products(apply))(zoo.normal(0, 2, 5, 5, 4), zoo.normal(1, 3, 3, 4, 2))
    assert "conv_general_dilated" not in str(jaxpr)
    assert [eqn.params["precision"] for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"][-1] == (
        lax.Precision.HIGHEST,
        lax.Precision.HIGHEST,
    )


def test_batch_groups_stay_convolutions():
    x, kernel = zoo.normal(0, 4, 5, 5, 2), zoo.normal(1, 3, 3, 2, 4)

    def apply(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), batch_group_count=2
        )

    np.testing.assert_allclose(convolution.as_matrix_products(apply)(x, kernel), apply(x, kernel), rtol=1e-12)


def test_the_results_tree_is_kept():
    def apply(params, x):
        return {"out": (x @ params, None), "twice": [2 * x]}

    found = convolution.as_matrix_products(apply)(jnp.ones((2, 3)), jnp.ones((4, 2)))
    assert jax.tree.structure(found) == jax.tree.structure(apply(jnp.ones((2, 3)), jnp.ones((4, 2))))
    np.testing.assert_array_equal(found["twice"][0], 2 * np.ones((4, 2)))


def test_patches_are_offsets_then_channels():
    image = jnp.arange(2 * 3 * 3 * 2.0).reshape(2, 3, 3, 2)
    model = jax.make_jaxpr(lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=_NHWC))
    params = model(image, jnp.zeros((2, 2, 2, 1))).eqns[0].params
    found = convolution.patches(image, (2, 2), params)
    assert found.shape == (2, 2, 2, 1, 8)
    np.testing.assert_array_equal(found[1, 0, 1, 0], image[1, 0:2, 1:3].reshape(-1))


_NHWC = ("NHWC", "HWIO", "NHWC")


def test_training_is_the_same_either_way():
    model = zoo.CASES["uneven_padding"]()
    data = examples(model.x, zoo.normal(8, 3, 2))
    training = LocalTraining(model.apply, gaussian(), optax.sgd(0.1), epochs=2, batch_size=2)

    @jax.jit
    def run(params):
        key = jax.random.key(0)
        return [
            train(dataclasses.replace(training, convolutions=way), params, data, key).params
            for way in ("matrix", "plain")
        ]

    found, expected = run(model.params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)


def test_unknown_way_is_refused():
    with pytest.raises(ValueError, match="convolutions: got 'fast', expected auto, matrix or plain"):
        convolution.for_loops(lambda p, x: x, "fast")


@pytest.mark.parametrize(("images", "kernel"), [((0, 1, 4, 4), (2, 1, 3, 3)), ((1, 1, 3, 3), (2, 1, 5, 5))])
def test_a_convolution_without_entries_is_left_alone(images, kernel):
    apply = lambda k, x: jax.lax.conv(x, k, (1, 1), "VALID")  # noqa: E731
    arguments = jnp.ones(kernel), jnp.ones(images)
    assert convolution.as_matrix_products(apply)(*arguments).shape == apply(*arguments).shape
