import importlib.util
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from fedfisher_jax import models
from fedfisher_jax.models import weights

network = models.build("lenet", (28, 28, 1), 10, use_bias=True)
template = jax.eval_shape(network.init, jax.random.key(0))
params = jax.tree.map(
    lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32), template
)
state = models.torch_layout.to_torch(params)


def save(path, arrays):
    safetensors.numpy.save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, path)
    return path


def test_round_trip(tmp_path):
    weights.write(tmp_path / "w.safetensors", params)
    jax.tree.map(np.testing.assert_array_equal, weights.read(tmp_path / "w.safetensors", template), params)


def test_common_prefix_is_dropped(tmp_path):
    path = save(tmp_path / "w.safetensors", {f"module.{name}": value for name, value in state.items()})
    jax.tree.map(np.testing.assert_array_equal, weights.read(path, template), params)


def test_pretrained_resnet_gets_a_new_head(tmp_path):
    """A Tiny-ImageNet checkpoint has no `final`; that layer stays as it was initialised."""
    network = models.build("resnet18_pretrained", (32, 32, 3), 7)
    template = jax.eval_shape(network.init, jax.random.key(0))
    fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, 2, leaf.dtype), template)
    state = {n: np.ones(v.shape, v.dtype) for n, v in models.torch_layout.to_torch(fresh).items()}
    path = save(tmp_path / "tiny.safetensors", {n: v for n, v in state.items() if n != "final.weight"})
    read = weights.read(path, fresh, keep=("final.",))
    assert {name for name, layer in read.items() if np.all(jax.tree.leaves(layer)[0] == 2)} == {"final"}
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 1), {n: v for n, v in read.items() if n != "final"})
    with pytest.raises(ValueError, match=r"tiny.safetensors: state_dict: missing \['final.weight'\], unexpected \[\]"):
        weights.read(path, fresh)
    with pytest.raises(ValueError, match=r"keep: got \['head'\], expected beginnings of conv1.weight"):
        weights.read(path, fresh, keep=("head",))
    with pytest.raises(ValueError, match="template: expected arrays to keep, got shapes alone"):
        weights.read(path, template, keep=("final.",))


def test_mismatches_are_named(tmp_path):
    path = save(tmp_path / "a.safetensors", state | {"bn1.weight": np.ones(3)})
    with pytest.raises(ValueError, match=r"unexpected \['bn1.weight'\]"):
        weights.read(path, template)
    path = save(tmp_path / "b.safetensors", state | {"fc2.weight": state["fc2.weight"].T})
    with pytest.raises(ValueError, match=r"fc2.weight has shape \(120, 84\), expected \(84, 120\)"):
        weights.read(path, template)


def test_wrong_files_are_refused(tmp_path):
    broken = tmp_path / "w.safetensors"
    broken.write_bytes(b"not a header")
    with pytest.raises(ValueError, match="w.safetensors: not a safetensors file"):
        weights.read(broken, template)
    with pytest.raises(ValueError, match=r"got w.npz, expected a .safetensors, .bin, .pt or .pth file"):
        weights.read(tmp_path / "w.npz", template)
    with pytest.raises(ValueError, match="got w.pt, expected a .safetensors file"):
        weights.write(tmp_path / "w.pt", params)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        weights.read(tmp_path / "other.safetensors", template)


def test_pytorch_files_without_pytorch(tmp_path, monkeypatch):
    (tmp_path / "w.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="w.pt: reading it needs PyTorch"):
        weights.read(tmp_path / "w.pt", template)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")
def test_pytorch_files(tmp_path):
    import torch

    tensors = {f"module.{name}": torch.from_numpy(value.copy()) for name, value in state.items()}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "w.pth")
    jax.tree.map(np.testing.assert_array_equal, weights.read(tmp_path / "w.pth", template), params)


def test_pytorch_files_are_read_without_executing_them(tmp_path, monkeypatch):
    """With a stand-in for PyTorch: tensors alone are asked for, and what is no state dict is refused."""

    class Tensor(np.ndarray):
        is_floating_point = lambda self: True  # noqa: E731
        float = numpy = lambda self: self

    asked = {}

    def load(path, **options):
        asked.update(options)
        return {"state_dict": {name: value.view(Tensor) for name, value in state.items()}} if path.stem == "w" else [1]

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load, Tensor=Tensor))
    for name in ("w.pt", "list.pth"):
        (tmp_path / name).write_bytes(b"")
    jax.tree.map(np.testing.assert_array_equal, weights.read(tmp_path / "w.pt", template), params)
    assert asked["weights_only"] is True
    with pytest.raises(ValueError, match="expected a state dict"):
        weights.read(tmp_path / "list.pth", template)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_what_trainers_wrap_around_names_is_dropped(prefix, tmp_path):
    counters = {f"{prefix}bn.num_batches_tracked": np.zeros((), np.int64)}
    path = save(tmp_path / "w.safetensors", {f"{prefix}{name}": value for name, value in state.items()} | counters)
    jax.tree.map(np.testing.assert_array_equal, weights.read(path, template), params)


def in_shards(folder, count=3, name="model"):
    folder.mkdir()
    for number, part in enumerate(np.array_split(sorted(state), count), 1):
        save(folder / f"{name}-{number:05}-of-{count:05}.safetensors", {key: state[key] for key in part})
    return folder


def test_a_checkpoint_in_shards_is_one(tmp_path):
    folder = in_shards(tmp_path / "shards")
    jax.tree.map(np.testing.assert_array_equal, weights.read(folder, template), params)
    save(folder / "model-00002-of-00003.safetensors", {"conv1.weight": state["conv1.weight"]})
    with pytest.raises(ValueError, match="is in two shards"):
        weights.read(folder, template)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="shard 2 of 3 of model is missing"):
        weights.read(folder, template)
    save(folder / "other.safetensors", state)
    (folder / "model-00001-of-00003.safetensors").unlink()
    (folder / "model-00003-of-00003.safetensors").unlink()
    save(folder / "third.safetensors", state)
    with pytest.raises(ValueError, match="a folder of 2 checkpoints, expected the shards of one"):
        weights.read(folder, template)
