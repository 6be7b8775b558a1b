"""Parameters of `fedfisher_jax.models` to and from the state dicts of the same networks in PyTorch.

Convolution kernels are HWIO here and OIHW there, dense kernels [in, out] here and [out, in] there. Our models flatten
feature maps channel first, so rows need no permutation. Names are joined by dots, `kernel` becomes `weight`, and
an underscore of ours is a dot of theirs: layer1_0/conv1/kernel is layer1.0.conv1.weight.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _torch_name(path) -> str:
    if not all(isinstance(entry, jax.tree_util.DictKey) for entry in path) or not path:
        where = jax.tree_util.keystr(path) or "an array alone"
        raise ValueError(f"params: got {where}, expected dictionaries of arrays by name")
    *modules, leaf = (str(entry.key) for entry in path)
    return ".".join([*modules, {"kernel": "weight"}.get(leaf, leaf)]).replace("_", ".")


def _transpose(name: str, ndim: int, to_torch: bool) -> tuple[int, ...]:
    axes = {
        1: ((0,), (0,)),
        2: ((1, 0), (1, 0)),
        4: ((3, 2, 0, 1), (2, 3, 1, 0)),
    }
    if ndim not in axes:
        raise ValueError(f"params: {name} has {ndim} dimensions, allowed are 1 (bias), 2 (dense) and 4 (convolution)")
    return axes[ndim][0 if to_torch else 1]


def to_torch(params: Any) -> dict[str, np.ndarray]:
    """A state dict in PyTorch's layout, in the order of the leaves of `params`.

    Raises:
        ValueError: if a leaf is neither a bias nor a dense nor a 2-d convolution kernel.
    """
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = _torch_name(path)
        state[name] = np.transpose(np.asarray(leaf), _transpose(name, leaf.ndim, to_torch=True))
    return state


def from_torch(template: Any, state_dict: Mapping[str, Any]) -> Any:
    """Parameters shaped and typed like `template`, with the values of `state_dict`.

    Args:
        template: params of the network, or their `jax.ShapeDtypeStruct`s (`jax.eval_shape(network.init, key)`).
        state_dict: arrays in PyTorch's layout by name.

    Raises:
        ValueError: naming the entries that are missing, unexpected or of another shape.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(template)
    names = [_torch_name(path) for path, _ in flat]
    missing, unexpected = set(names) - set(state_dict), set(state_dict) - set(names)
    if missing or unexpected:
        raise ValueError(f"state_dict: missing {sorted(missing)}, unexpected {sorted(unexpected)}")
    leaves = []
    for name, (_, leaf) in zip(names, flat, strict=True):
        given = np.asarray(state_dict[name])
        expected = tuple(leaf.shape[axis] for axis in _transpose(name, leaf.ndim, to_torch=True))
        if given.shape != expected:
            raise ValueError(f"state_dict: {name} has shape {given.shape}, expected {expected}")
        leaves.append(jnp.asarray(given.transpose(_transpose(name, leaf.ndim, to_torch=False)), leaf.dtype))
    return treedef.unflatten(leaves)
