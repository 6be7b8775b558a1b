import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax import models

SMALL = {
    "mlp": (8, 8, 1),
    "lenet": (16, 18, 1),
    "cnn": (16, 16, 2),
    "resnet18": (25, 25, 1),
    "resnet18_pretrained": (29, 29, 1),
}


def _count(network):
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("name", "shape", "without", "biases"),
    [
        ("mlp", (100,), 100 * 64 + 64 * 32 + 32 * 10, 64 + 32 + 10),
        ("lenet", (28, 28, 1), 44_190, 6 + 16 + 120 + 84 + 10),
        ("cnn", (32, 32, 3), 939_616, 32 + 64 + 512 + 128 + 10),
        ("resnet18", (32, 32, 3), 11_164_352, 5 * 64 + 5 * 128 + 5 * 256 + 5 * 512 + 10),
        (
            "resnet18_pretrained",
            (32, 32, 3),
            11_164_352 + 3 * (49 - 9) * 64 + 512 * (1000 - 10) + 1000 * 200 + 200 * 10,
            5 * 64 + 5 * 128 + 5 * 256 + 5 * 512 + 1000 + 200 + 10,
        ),
    ],
)
def test_parameter_counts(name, shape, without, biases):
    assert _count(models.build(name, shape, 10)) == without
    assert _count(models.build(name, shape, 10, use_bias=True)) == without + biases


@pytest.mark.slow
@pytest.mark.parametrize("name", models.NAMES)
def test_start_is_pytorchs(name):
    params = models.build(name, SMALL[name], 10, use_bias=True).init(jax.random.key(0))
    kernels = {path[:-1]: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if leaf.ndim > 1}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        bound = np.prod(kernels[path[:-1]].shape[:-1]) ** -0.5
        assert leaf.dtype == jnp.float32
        assert jnp.abs(leaf).max() <= np.float32(bound)
        if leaf.size > 100:
            assert jnp.abs(leaf).max() > 0.95 * bound
            assert jnp.abs(leaf.std() - bound / 3**0.5) < 4 * bound / leaf.size**0.5


@pytest.mark.parametrize("name", models.NAMES)
def test_outputs_are_finite_differ_and_do_not_mix_examples(name):
    shape = SMALL[name]
    network = models.build(name, shape, 7)
    params = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, *shape), jnp.float32)
    apply = jax.jit(network.apply)
    outputs = apply(params, x)
    assert outputs.shape == (3, 7) and outputs.dtype == jnp.float32
    assert jnp.isfinite(outputs).all()
    spread = jnp.abs(outputs - outputs.mean(0)).max()
    assert spread > 1e-4 * jnp.abs(outputs).max() > 0
    np.testing.assert_allclose(apply(params, x.at[1:].set(5.0))[0], outputs[0], rtol=1e-4, atol=1e-6)


def test_options_widen():
    assert _count(models.build("mlp", (4,), 3, hidden=())) == 12
    assert _count(models.build("mlp", (4,), 3, hidden=[5, 6])) == 20 + 30 + 18
    wide = jax.eval_shape(models.build("lenet", (28, 28, 1), 10, width=2).init, jax.random.key(0))
    assert [wide[n]["kernel"].shape[-1] for n in ("conv1", "conv2", "fc1", "fc2", "fc3")] == [12, 32, 240, 168, 10]


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (("vgg", (28, 28, 1), 10), {}, "name: got 'vgg', expected one of mlp, lenet"),
        (("lenet", (15, 28, 1), 10), {}, r"input_shape: got \(15, 28, 1\), .* at least 16"),
        (("cnn", (28, 15, 3), 10), {}, "input_shape"),
        (("resnet18", (24, 32, 3), 10), {}, "at least 25"),
        (("resnet18_pretrained", (28, 28, 3), 10), {}, "at least 29"),
        (("lenet", (784,), 10), {}, "input_shape"),
        (("mlp", (0,), 10), {}, "input_shape"),
        (("mlp", (4,), 0), {}, "num_classes: got 0"),
        (("cnn", (32, 32, 3), 10), {"width": 2}, "options: got 'width', expected none for cnn"),
        (("mlp", (4,), 10), {"hidden": (3, 0)}, "options"),
    ],
)
def test_bad_settings_are_named(args, options, message):
    with pytest.raises(ValueError, match=message):
        models.build(*args, **options)
