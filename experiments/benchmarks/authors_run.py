"""One run of the FedFisher authors' code (arXiv 2403.12329): LeNet, Fashion-MNIST, five clients; see tests/golden."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from fedfisher_jax import models
from fedfisher_jax.curvature import Capture, Kronecker, capture
from fedfisher_jax.models import torch_layout

LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")
CLIENTS = 5
FILE = common.ROOT / "tests" / "golden" / "fashion_mnist_lenet_a0.1_s0.npz"
NETWORK = models.build("lenet", (28, 28, 1), 10)
TEMPLATE = jax.eval_shape(NETWORK.init, jax.random.key(0))


def arrays(prefix: str) -> dict[str, np.ndarray]:
    """All arrays under a prefix, in PyTorch's layout, by the rest of their names."""
    with np.load(FILE) as file:
        return {name.removeprefix(f"{prefix}/"): file[name] for name in file.files if name.startswith(f"{prefix}/")}


def sizes() -> np.ndarray:
    """Examples of each client."""
    with np.load(FILE) as file:
        return file["sizes"]


def rows(client: int) -> np.ndarray:
    """A client's rows of the training set."""
    return arrays(f"client{client}")["idx"]


def state(client: int) -> dict[str, np.ndarray]:
    """A client's trained parameters for PyTorch."""
    return arrays(f"client{client}/param")


def params(client: int) -> Any:
    """A client's trained parameters for us."""
    return torch_layout.from_torch(TEMPLATE, state(client))


def factors(client: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A client's uncompressed A and G by layer, in PyTorch's layout."""
    return arrays(f"client{client}/kfac_A"), arrays(f"client{client}/kfac_G")


@cache
def captured() -> Capture:
    """The network's layers."""
    return capture(NETWORK.apply, TEMPLATE, jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32))


def kronecker(client: int) -> Kronecker:
    """The same factors as one of our structures: rows of a convolution go by offset before channel."""
    layers = {layer.weight: layer for layer in captured().layers}
    a, g = factors(client)
    for name in ("conv1", "conv2"):
        order = np.arange(len(a[name])).reshape(-1, 25).T.ravel()
        a[name] = a[name][np.ix_(order, order)]
    inputs, outputs = (tuple(jnp.asarray(side[name]) for name in LAYERS) for side in (a, g))
    return Kronecker(inputs, outputs, {}, tuple(layers[i] for i in range(len(LAYERS))), jax.tree.structure(TEMPLATE))
