import re
from functools import partial

import explicit
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

import fedfisher_jax as ff
from fedfisher_jax.curvature._pull_back import pull_back


def _paths(params):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]


@pytest.mark.parametrize("name", zoo.CASES)
def test_what_is_captured_why_not_and_its_diagonal(name):
    model = zoo.CASES[name]()
    captured = ff.capture(model.apply, model.params, model.x)
    assert set(captured.fallback) == set(model.fallback)
    for path, reason in captured.fallback.items():
        assert re.search(model.fallback[path], reason), f"{path}: {reason}"
    covered = [leaf for layer in captured.layers for leaf in layer.leaves]
    assert sorted([*covered, *captured.fallback_leaves]) == list(range(len(_paths(model.params))))

    data = ff.examples(model.x, np.zeros(len(model.x), int))
    found = ff.fisher(model.apply, ff.categorical(), model.params, data, batch_size=2, captured=captured)
    expected = np.diag(explicit.fisher(model.apply, ff.categorical(), model.params, model.x, data.y))
    np.testing.assert_allclose(explicit.flat(found.values), expected, rtol=1e-9, atol=1e-12 * expected.max())


def test_only_numbers_can_tell():
    """The gradient of this weight is rounded on its way, so it is not the product of activations and gradients."""

    def apply(params, x):
        return jnp.tanh(x @ params["w"].astype(jnp.bfloat16).astype(x.dtype)) @ params["v"]

    params = {"w": zoo.normal(0, 4, 5), "v": zoo.normal(1, 5, 3)}
    captured = ff.capture(apply, params, zoo.normal(2, 5, 4))
    assert set(captured.fallback) == {"['w']"}
    assert "rebuilt gradient differs from jax.vjp's by 0.00" in captured.fallback["['w']"]


@pytest.mark.parametrize("name", ["attention", "groups", "stacked_experts"])
def test_diagonal_without_structure(name):
    model = zoo.CASES[name]()
    options = {"captured": ff.capture(model.apply, model.params, model.x, structured=False)}
    assert set(options["captured"].fallback.values()) == {"not asked for"}
    data = ff.examples(model.x, np.zeros(len(model.x), int))
    reference = ff.fisher(model.apply, ff.categorical(), model.params, data, **options)
    expected = np.diag(explicit.fisher(model.apply, ff.categorical(), model.params, model.x, data.y))
    np.testing.assert_allclose(explicit.flat(reference.values), expected, rtol=1e-9, atol=1e-12 * expected.max())


def test_attention_sees_the_sequence_as_positions():
    model = zoo.CASES["attention"]()
    captured = ff.capture(model.apply, model.params, model.x)
    pulled = pull_back(captured, jax.tree.leaves(model.params), model.x[0], lambda out: jnp.ones((2, *out.shape)))
    assert [a.shape[-2] for a in pulled.activations] == [4] * 4
    assert [g.shape[:2] for g in pulled.gradients] == [(2, 4)] * 4


def test_a_layer_without_gradient_is_captured():
    """Attention does not feel the bias of its keys: what is left of that gradient are rounding errors."""
    module = nn.MultiHeadDotProductAttention(num_heads=4)
    x = jax.ShapeDtypeStruct((1, 128, 64), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    assert not ff.capture(lambda p, x: module.apply(p, x).mean(1), params, x).fallback


def test_layers_beside_parameters_that_must_be_positive_are_captured():
    """A variance drawn below zero makes every number of the check NaN."""
    module = nn.Sequential([nn.Dense(6), nn.BatchNorm(use_running_average=True), nn.relu, nn.Dense(3)])
    x = jax.ShapeDtypeStruct((1, 4), jnp.float32)
    found = ff.capture(module.apply, jax.eval_shape(module.init, jax.random.key(0), x), x)
    assert len(found.layers) == 2 and {path.split("'")[3] for path in found.fallback} == {"layers_1"}
    never = ff.capture(
        lambda p, x: x @ p["w"] / jnp.sqrt(-abs(p["s"])), {"w": zoo.normal(0, 4, 3), "s": jnp.ones(())}, x
    )
    assert "not finite at random parameters" in never.fallback["['w']"]


def test_layers_are_in_the_order_of_the_program():
    model = zoo.CASES["linen_convolution"]()
    paths, captured = _paths(model.params), ff.capture(model.apply, model.params, model.x)
    assert [[paths[leaf].split("'")[3::2] for leaf in layer.leaves] for layer in captured.layers] == [
        [["layers_0", "kernel"], ["layers_0", "bias"]],
        [["layers_3", "kernel"]],
        [["layers_5", "kernel"], ["layers_5", "bias"]],
    ]


def test_bfloat16_is_captured():
    x = zoo.normal(0, 4, 6).astype(jnp.float32)
    params = {"w": zoo.normal(1, 6, 5).astype(jnp.float32), "b": zoo.normal(2, 5).astype(jnp.float32)}

    def apply(params, x, dtype=jnp.bfloat16):
        return nn.Dense(5, dtype=dtype).apply({"params": {"kernel": params["w"], "bias": params["b"]}}, x)

    assert not ff.capture(apply, params, x).fallback
    found = ff.fisher(apply, ff.categorical(), params, ff.examples(x))
    expected = ff.fisher(partial(apply, dtype=jnp.float32), ff.categorical(), params, ff.examples(x))
    gap = np.linalg.norm(explicit.flat(found.values) - explicit.flat(expected.values))
    assert gap < 2**-7 * np.linalg.norm(explicit.flat(expected.values))  # the last bit of bfloat16


def test_bfloat16_traps_fall_back():
    x = zoo.normal(0, 4, 6).astype(jnp.bfloat16)
    params = {"w": zoo.normal(1, 6, 5).astype(jnp.bfloat16), "v": zoo.normal(2, 5, 3).astype(jnp.bfloat16)}
    captured = ff.capture(lambda p, x: jnp.tanh(zoo.straight_through(x, p["w"])) @ p["v"], params, x)
    assert set(captured.fallback) == {"['w']"}


def test_only_shapes_are_read():
    model = zoo.CASES["linen_convolution"]()
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (model.params, model.x))
    assert ff.capture(model.apply, *shapes).layers == ff.capture(model.apply, model.params, model.x).layers


def test_capture_inside_a_traced_function():
    model = zoo.CASES["uneven_padding"]()
    outside = ff.fisher(model.apply, ff.categorical(), model.params, ff.examples(model.x))

    @jax.jit
    def inside(params, x, shift):
        def apply(p, x):  # closes over a traced array
            return model.apply(p, x - shift)

        assert not ff.capture(apply, params, x).fallback
        return ff.fisher(apply, ff.categorical(), params, ff.examples(x + shift))

    found = inside(model.params, model.x, jnp.ones(2))
    np.testing.assert_allclose(explicit.flat(found.values), explicit.flat(outside.values), rtol=1e-9)


def test_refusals():
    with pytest.raises(ValueError, match="apply: got 2 arrays of outputs, expected one"):
        ff.capture(lambda p, x: (x @ p, x), zoo.normal(0, 4, 3), zoo.normal(1, 2, 4))
    with pytest.raises(ValueError, match=r"apply: got outputs of shape \(1,\) .*, expected \[n, C\] or \[n, T, C\]"):
        ff.capture(lambda p, x: x @ p, zoo.normal(0, 4), zoo.normal(1, 2, 4))
    with pytest.raises(TypeError, match=r"params\['step'\]: got int.*, expected floating-point numbers"):
        params = {"w": zoo.normal(0, 4, 3), "step": jnp.asarray(0)}
        ff.capture(lambda p, x: x @ p["w"], params, zoo.normal(1, 2, 4))
