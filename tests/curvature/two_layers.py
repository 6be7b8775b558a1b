"""A network of two layers, of which one has a bias, and a leaf that is none; its examples and Fishers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import zoo

import fedfisher_jax as ff

N = 5
NETWORK = {"a": zoo.normal(0, 4, 6), "b": zoo.normal(1, 6), "c": zoo.normal(2, 6, 3), "scale": 1 + zoo.normal(3, 3)}
X = zoo.normal(4, N, 4) * 2
CLASSES = jnp.array([0, 2, 1, 1, 0])
LIKELIHOODS = {
    "categorical": (ff.categorical(), CLASSES),
    "gaussian": (ff.gaussian(0.5), zoo.normal(5, N, 3)),
    "bernoulli": (ff.bernoulli(), jnp.array(np.random.default_rng(0).integers(0, 2, (N, 3)))),
}


def apply(params, x):
    """Two layers, of which one has a bias, and a leaf that is none."""
    return (jnp.tanh(x @ params["a"] + params["b"]) @ params["c"]) * params["scale"]


CAPTURED = ff.capture(apply, NETWORK, X)
EVERY = ("diagonal", "kronecker", "full")


@partial(jax.jit, static_argnames=("likelihood", "structures", "kind", "samples", "batch_size", "skip"))
def run(params, data, key=None, *, likelihood=ff.categorical(), structures=EVERY, **options):
    return ff.fishers(apply, likelihood, params, data, structures=structures, key=key, captured=CAPTURED, **options)


def measure(structures=EVERY, x=X, y=CLASSES, **options):
    return run(NETWORK, ff.examples(x, y), structures=structures, **options)
