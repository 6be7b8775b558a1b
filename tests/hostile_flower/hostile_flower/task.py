"""What server and nodes share: a network of 33 parameters, and 40 examples for each node."""

import jax.numpy as jnp
import numpy as np
import optax
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import fedfisher_jax as ff
from fedfisher_jax.federate import run_keys

NETWORK, LIKELIHOOD = ff.models.build("mlp", (6,), 3, hidden=(3,)), ff.categorical()
START = NETWORK.init(run_keys(4).init)
RULE = ff.fedfisher(NETWORK.apply, LIKELIHOOD, structure="diagonal")
TRAINING = ff.LocalTraining(NETWORK.apply, LIKELIHOOD, optax.sgd(0.1), 1, 8)

# Of secure sums; a real silo draws its key and keeps it.
IDENTITIES = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3)]
PUBLIC, THRESHOLD = tuple(one.public_key().public_bytes_raw() for one in IDENTITIES), 2


def examples_of(number):
    """A node's inputs [40, 6] and labels [40]."""
    draw = np.random.default_rng(number)
    return jnp.asarray(draw.normal(size=(40, 6)), jnp.float32), jnp.asarray(draw.integers(0, 3, 40))
