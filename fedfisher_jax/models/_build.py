"""A network of the experiments by its name, as two pure functions."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._cnn import CNN
from ._lenet import LeNet
from ._mlp import MLP
from ._resnet import ResNet18, ResNet18Pretrained


class Network(NamedTuple):
    """A model as two pure functions.

    Attributes:
        init: key -> params, a nested dict of float32 arrays.
        apply: (params, x [N, *input_shape]) -> logits [N, num_classes]; examples do not mix.
        name: what it was built from.
    """

    init: Callable[[Any], Any]
    apply: Callable[[Any, Any], Any]
    name: str


class _Family(NamedTuple):
    module: Callable[..., Any]
    min_side: int  # smallest height and width that leave something for the first dense layer; 0: no feature maps
    options: tuple[str, ...] = ()


_FAMILIES = {
    "mlp": _Family(MLP, 0, ("hidden",)),
    "lenet": _Family(LeNet, 16, ("width",)),
    "cnn": _Family(CNN, 16),
    "resnet18": _Family(ResNet18, 25),
    "resnet18_pretrained": _Family(ResNet18Pretrained, 29),
}

NAMES = tuple(_FAMILIES)


def build(name: str, input_shape: Sequence[int], num_classes: int, use_bias: bool = False, **options: Any) -> Network:
    """Build a network by name.

    Args:
        name: one of `NAMES`.
        input_shape: shape of one example: [H, W, C], or for the mlp any shape.
        num_classes: width of the output, at least 1.
        use_bias: whether every layer has a bias; the papers' networks have none.
        **options: `hidden=(64, 32)` widths of the mlp, `width=1` multiplier of lenet.

    Raises:
        ValueError: for an unknown name or option, or a shape that the network cannot take.

    Example:
        >>> import jax, jax.numpy as jnp, fedfisher_jax as ff
        >>> network = ff.models.build("mlp", (4,), 3, hidden=(8,))
        >>> network.apply(network.init(jax.random.key(0)), jnp.ones((5, 4))).shape
        (5, 3)
    """
    if name not in _FAMILIES:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(NAMES)}")
    family = _FAMILIES[name]
    shape = tuple(int(s) for s in input_shape)
    for option in options:
        if option not in family.options:
            raise ValueError(f"options: got {option!r}, expected {', '.join(family.options) or 'none'} for {name}")
    if num_classes < 1:
        raise ValueError(f"num_classes: got {num_classes}, expected at least 1")
    if any(s < 1 for s in shape):
        raise ValueError(f"input_shape: got {shape}, expected positive sizes")
    if family.min_side and (len(shape) != 3 or min(shape[:2]) < family.min_side):
        side = family.min_side
        raise ValueError(f"input_shape: got {shape}, expected (H, W, C) with H and W at least {side} for {name}")
    if "hidden" in options and np.ndim(options["hidden"]) != 1:
        raise ValueError(f"hidden: got {options['hidden']!r:.40}, expected a sequence of widths, such as (64,)")
    if options.get("width", 1) < 1 or any(width < 1 for width in options.get("hidden", ())):
        raise ValueError(f"options: got {options}, expected widths of at least 1")
    if "hidden" in options:
        options["hidden"] = tuple(options["hidden"])
    return _built(name, shape, num_classes, use_bias, tuple(sorted(options.items())))


@lru_cache(maxsize=64)
def _built(name: str, shape: tuple[int, ...], num_classes: int, use_bias: bool, options: tuple) -> Network:
    """The same two functions for the same network, so that what JAX compiled for them is found."""
    module = _FAMILIES[name].module(num_classes=num_classes, use_bias=use_bias, **dict(options))

    def init(key):
        return module.lazy_init(key, jax.ShapeDtypeStruct((1, *shape), jnp.float32))["params"]

    def apply(params, x):
        return module.apply({"params": params}, jnp.asarray(x))

    return Network(init, apply, name)
