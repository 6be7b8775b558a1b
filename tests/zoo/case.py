"""A model to be captured, and the list of all of them."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
    """`fallback` holds a pattern of the reason for every leaf that must not be captured."""

    apply: Callable
    params: Any
    x: Any
    fallback: dict[str, str] = {}


CASES: dict[str, Callable[[], Case]] = {}


def case(function):
    CASES[function.__name__] = cache(function)
    return function


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape) / np.sqrt(max(shape[0], 1)))


def linen(module, *shape, fallback=None, seed=0):
    x = normal(seed, *shape)
    shapes = jax.eval_shape(module.init, jax.random.key(seed), x)
    params = jax.tree.map(lambda leaf: normal(seed + 1, *leaf.shape), shapes)
    return Case(module.apply, params, x, fallback or {})
