"""The network that a command works with: one of ours by name, or a user's own as module:function."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import models
from .._likelihood import Likelihood, bernoulli, categorical, gaussian
from .._users_code import import_function, in_few_words

MOST_OUTPUTS, MOST_SIZE, MOST_AXES = 2**24, 2**20, 8  # of a network, and of its examples' shape
MOST_BYTES = 2**31  # of parameters
LIKELIHOODS = {"categorical": categorical, "bernoulli": bernoulli, "gaussian": gaussian}


def likelihood_of(name: str) -> Likelihood:
    """Make a likelihood by name.

    Raises:
        ValueError: an unknown one.
    """
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood: got {name[:40]!r}, expected one of {', '.join(LIKELIHOODS)}")
    return LIKELIHOODS[name]()


def network_of(name: str, input_shape: Sequence[int], outputs: int, bias: bool) -> models.Network:
    """Make a network by `models.build`, or by a user's function(input_shape, outputs) → (init, apply).

    Args:
        name: a model's name, or module:function; the module is looked for on Python's path, then in the current folder.
        input_shape: shape of one example.
        outputs: classes, or numbers that the network puts out.
        bias: whether the layers of our models have biases.

    Raises:
        ValueError: no such model or function, or it returns something else.
    """
    if ":" not in name:
        return models.build(name, input_shape, outputs, bias)
    constructor = import_function("model", name)
    try:
        made = constructor(tuple(input_shape), outputs)
    except (Exception, SystemExit) as error:
        raise ValueError(f"model: {name}({tuple(input_shape)}, {outputs}) failed: {in_few_words(error)}") from error
    if not (isinstance(made, tuple) and len(made) >= 2 and callable(made[0]) and callable(made[1])):
        raise ValueError(f"model: {name} returned {type(made).__name__}, expected a pair of functions (init, apply)")
    return models.Network(made[0], made[1], name)


def outputs_of(apply: Callable, params: Any, x: Any, expected: Sequence[int]) -> tuple[int, ...]:
    """Find the shape of a network's outputs for examples x, without computing them; `expected` is what it is for.

    Raises:
        ValueError: the network cannot take them.
    """
    try:
        return jax.eval_shape(apply, params, jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))).shape
    except (Exception, SystemExit) as error:  # a user's own function may fail in any way
        wanted = f"got examples of shape {x.shape[1:]}, expected {tuple(expected)}"
        raise ValueError(f"data: {wanted}: the model cannot take them: {in_few_words(error)}") from error


def template_of(network: models.Network) -> Any:
    """Find the shapes of a network's parameters, without computing them.

    Raises:
        ValueError: it cannot be initialised, or would take more than `MOST_BYTES`.
    """
    try:
        template = jax.eval_shape(network.init, jax.random.key(0))
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(template))
    except (Exception, SystemExit) as error:  # a user's own function may fail in any way
        raise ValueError(f"model: {network.name} cannot be initialised: {in_few_words(error)}") from error
    if size > MOST_BYTES:
        raise ValueError(
            f"model: {network.name} of these sizes has parameters of {size} bytes, the cap is {MOST_BYTES}"
        )
    return template


def require_sizes(input_shape: Sequence[int], outputs: int) -> None:
    """Refuse sizes that no model file may have.

    Raises:
        ValueError: which one.
    """
    sized = all(type(n) is int and 0 < n < MOST_SIZE for n in input_shape)
    if not sized or not 1 <= len(input_shape) <= MOST_AXES:
        raise ValueError(
            f"input_shape: got {str(list(input_shape))[:80]}, expected at most {MOST_AXES} sizes below {MOST_SIZE}"
        )
    if type(outputs) is not int or not 0 < outputs < MOST_OUTPUTS:
        raise ValueError(f"outputs: got {str(outputs)[:40]}, expected a number from 1 to below {MOST_OUTPUTS}")
