import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax import _likelihood as likelihood
from fedfisher_jax import _metrics as metrics
from fedfisher_jax import models


def _reference_lenet(state, x):
    """LeNet in PyTorch's layout (NCHW, OIHW, [out, in]), by explicit sums over patches."""

    def conv_relu_pool(x, w):
        windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
        y = np.maximum(np.einsum("nchwij,ocij->nohw", windows, w, optimize=True), 0)
        n, c, h, w2 = y.shape
        return y.reshape(n, c, h // 2, 2, w2 // 2, 2).max((3, 5))

    x = conv_relu_pool(conv_relu_pool(x, state["conv1.weight"]), state["conv2.weight"]).reshape(len(x), -1)
    for name in ("fc1", "fc2"):
        x = np.maximum(x @ state[f"{name}.weight"].T, 0)
    return x @ state["fc3.weight"].T


def test_same_function_as_in_pytorchs_layout():
    x = np.random.default_rng(0).normal(size=(4, 28, 28, 1))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), golden.params(2))
    state = {name: array.astype(np.float64) for name, array in golden.state_dict("client2/param").items()}
    outputs = golden.network.apply(params, x)
    np.testing.assert_allclose(outputs, _reference_lenet(state, x.transpose(0, 3, 1, 2)), rtol=1e-10)


@pytest.mark.parametrize("client", range(golden.NUM_CLIENTS))
def test_golden_clients_have_their_accuracy(client):
    x, y = golden.held_out()
    result = metrics.evaluate(golden.network.apply, likelihood.categorical(), golden.params(client), x, y)
    assert float(result.accuracy) == pytest.approx(golden.LOCAL_ACCURACY[client], abs=1e-3)


@pytest.mark.slow
def test_golden_ensemble_has_its_accuracy():
    x, y = golden.held_out()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(golden.params, range(golden.NUM_CLIENTS)))
    weights = jnp.asarray(golden.array("p"))
    result = metrics.ensemble(golden.network.apply, likelihood.categorical(), stacked, x, y, weights=weights)
    assert float(result.accuracy) == pytest.approx(golden.ENSEMBLE_ACCURACY, abs=1e-3)


def test_golden_file_is_restored():
    state = models.torch_layout.to_torch(golden.params(0))
    assert list(state) == ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight", "fc3.weight"]
    for name, array in golden.state_dict("client0/param").items():
        np.testing.assert_array_equal(state[name], array)


@pytest.mark.parametrize("rule", sorted(set(golden.ACCURACY) - {"pfnm"}))
def test_golden_merges_have_their_accuracy(rule):
    x, y = golden.held_out()
    result = metrics.evaluate(golden.network.apply, likelihood.categorical(), golden.merged(rule), x, y)
    assert float(result.accuracy) == pytest.approx(golden.ACCURACY[rule], abs=1e-4)


@pytest.mark.parametrize("name", models.NAMES)
def test_round_trip(name):
    network = models.build(name, (32, 32, 3), 5, use_bias=True)
    template = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape), template)
    state = models.torch_layout.to_torch(params)
    jax.tree.map(np.testing.assert_array_equal, models.torch_layout.from_torch(template, state), params)


def test_resnet_names_are_the_authors():
    network = models.build("resnet18_pretrained", (32, 32, 3), 10)
    template = jax.eval_shape(network.init, jax.random.key(0))
    state = models.torch_layout.to_torch(jax.tree.map(lambda leaf: np.zeros(leaf.shape), template))
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer2.0.shortcut.weight"].shape == (128, 64, 1, 1)
    assert state["layer4.1.conv2.weight"].shape == (512, 512, 3, 3)
    assert [state[f"{n}.weight"].shape for n in ("fc", "linear", "final")] == [(1000, 512), (200, 1000), (10, 200)]
    assert len(state) == 1 + 8 * 2 + 3 + 3


def test_mismatches_are_named():
    state = golden.state_dict("init")
    with pytest.raises(ValueError, match=r"missing \['fc3.weight'\], unexpected \[\]"):
        models.torch_layout.from_torch(golden.template, {k: v for k, v in state.items() if k != "fc3.weight"})
    with pytest.raises(ValueError, match=r"unexpected \['fc1.bias'\]"):
        models.torch_layout.from_torch(golden.template, state | {"fc1.bias": np.zeros(120)})
    with pytest.raises(ValueError, match=r"fc2.weight has shape \(120, 84\), expected \(84, 120\)"):
        models.torch_layout.from_torch(golden.template, state | {"fc2.weight": state["fc2.weight"].T})
    with pytest.raises(ValueError, match="w has 3 dimensions"):
        models.torch_layout.to_torch({"w": np.zeros((1, 2, 3))})
