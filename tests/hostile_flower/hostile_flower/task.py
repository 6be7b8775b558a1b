"""What server and nodes share: a network of 33 parameters, and 40 examples for each node."""

import jax.numpy as jnp
import numpy as np
import optax

import fedfisher_jax as ff
from fedfisher_jax.federate import run_keys

NETWORK, LIKELIHOOD = ff.models.build("mlp", (6,), 3, hidden=(3,)), ff.categorical()
START = NETWORK.init(run_keys(4).init)
RULE = ff.fedfisher(NETWORK.apply, LIKELIHOOD, structure="diagonal")
TRAINING = ff.LocalTraining(NETWORK.apply, LIKELIHOOD, optax.sgd(0.1), 1, 8)


def examples_of(number):
    """A node's inputs [40, 6] and labels [40]."""
    draw = np.random.default_rng(number)
    return jnp.asarray(draw.normal(size=(40, 6)), jnp.float32), jnp.asarray(draw.integers(0, 3, 40))
