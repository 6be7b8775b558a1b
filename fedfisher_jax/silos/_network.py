"""The network that a command works with: one of ours by name, or a user's own as module:function."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import models
from .._likelihood import Likelihood, bernoulli, categorical, gaussian

LIKELIHOODS = {"categorical": categorical, "bernoulli": bernoulli, "gaussian": gaussian}


def likelihood_of(name: str) -> Likelihood:
    """A likelihood by name.

    Raises:
        ValueError: an unknown one.
    """
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood: got {name[:40]!r}, expected one of {', '.join(LIKELIHOODS)}")
    return LIKELIHOODS[name]()


def network_of(name: str, input_shape: Sequence[int], outputs: int, bias: bool) -> models.Network:
    """`models.build`, or what a user's function(input_shape, outputs) returns: a pair (init, apply).

    Args:
        name: of the model, or module:function; the module is looked for on Python's path, then in the current folder.
        input_shape: of one example.
        outputs: classes, or numbers that the network puts out.
        bias: of our models.

    Raises:
        ValueError: no such model or function, or it returns something else.
    """
    module, colon, function = name.partition(":")
    if not colon:
        return models.build(name, input_shape, outputs, bias)
    if (here := os.getcwd()) not in sys.path:  # a command's own path begins elsewhere
        sys.path.append(here)
    try:
        constructor = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model: cannot import {name!r}: {error}") from error
    try:
        made = constructor(tuple(input_shape), outputs)
    except Exception as error:  # a user's own function may fail in any way
        raise ValueError(f"model: {name}({tuple(input_shape)}, {outputs}) failed: {error!s:.200}") from error
    if not (isinstance(made, tuple) and len(made) >= 2 and callable(made[0]) and callable(made[1])):
        raise ValueError(f"model: {name} returned {type(made).__name__}, expected a pair of functions (init, apply)")
    return models.Network(made[0], made[1], name)


def outputs_of(apply: Callable, params: Any, x: Any) -> tuple[int, ...]:
    """Shape of a network's outputs for examples x, without computing them.

    Raises:
        ValueError: the network cannot take them.
    """
    try:
        return jax.eval_shape(apply, params, jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))).shape
    except Exception as error:  # a user's own function may fail in any way
        raise ValueError(f"data: the model cannot take examples of shape {x.shape[1:]}: {error!s:.200}") from error
