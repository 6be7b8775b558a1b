"""Arrays of one run of the FedFisher authors' code, see README.md. Tests say `import golden`."""

from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

from fedfisher_jax import data as datasets
from fedfisher_jax import models as models

FILE = Path(__file__).parent / "fashion_mnist_lenet_a0.1_s0.npz"
NUM_CLIENTS = 5
LOCAL_ACCURACY = (0.425, 0.378, 0.670, 0.475, 0.659)
ENSEMBLE_ACCURACY = 0.728  # probabilities weighted by `p`
ACCURACY = {
    "fedavg": 0.4350,
    "fisher_merge": 0.6151,
    "fedfisher_diag": 0.6100,
    "fedfisher_kfac": 0.6662,
    "fedfisher_kfac_uncompressed": 0.6827,
    "regmean": 0.6417,
    "otfusion": 0.4219,
    "pfnm": 0.6383,
}

network = models.build("lenet", (28, 28, 1), 10)
template = jax.eval_shape(network.init, jax.random.key(0))


@cache
def array(key):
    """One array as it is in the file."""
    with np.load(FILE) as file:
        return file[key]


@cache
def state_dict(prefix):
    """All arrays whose key starts with `prefix`/, by the rest of the key: PyTorch's names and layout."""
    with np.load(FILE) as file:
        return {key.removeprefix(f"{prefix}/"): file[key] for key in file.files if key.startswith(f"{prefix}/")}


def params(client):
    """A client's trained parameters, in our layout."""
    return models.torch_layout.from_torch(template, state_dict(f"client{client}/param"))


def init():
    """The parameters that every client started from."""
    return models.torch_layout.from_torch(template, state_dict("init"))


def merged(rule):
    """What the authors' `rule` made of the clients; pfnm is wider and has biases: use `state_dict("agg/pfnm")`."""
    return models.torch_layout.from_torch(template, state_dict(f"agg/{rule}"))


@cache
def fashion_mnist():
    """Normalised Fashion-MNIST; the test is skipped where the machine does not have it."""
    try:
        return datasets.load("fashion_mnist")
    except datasets.DataNotFoundError as error:
        pytest.skip(str(error))


def data(client):
    """A client's training images and labels."""
    dataset, rows = fashion_mnist(), array(f"client{client}/idx")
    return dataset.train_x[rows], dataset.train_y[rows]


def held_out():
    """The 10,000 test images and their labels."""
    dataset = fashion_mnist()
    return dataset.test_x, dataset.test_y
