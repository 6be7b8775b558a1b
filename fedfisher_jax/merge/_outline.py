"""What rules that look inside sequential networks need beside parameters: the shape of an example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._examples import Examples
from .._trees import pick
from ..curvature import Capture, capture
from ..curvature import _chain as chain
from ._rule import Kind, Payload, Takes, weight_of

PyTree = Any


def one_input(data: Examples) -> jax.Array:
    """Give the inputs [n, ...] of a client, for rules that look at them as at one array.

    Raises:
        ValueError: they are several arrays.
    """
    if not hasattr(data.x, "dtype"):
        raise ValueError(f"data: got a {type(data.x).__name__} of inputs, expected one array, which this rule looks at")
    return data.x


def like(data: Examples) -> jax.Array:
    """Make an array without entries, [0, ...], that carries shape and type of an example through a fold at no cost."""
    x = one_input(data)
    return jnp.zeros((0, *x.shape[1:]), x.dtype)


EXAMPLE, COUNTS, BOUNDS = "example", "example, counts", "example, low, high"  # kinds: names of what is measured
TAKES_ANY = Takes((dict,), (EXAMPLE, COUNTS, BOUNDS))


def outline(params: PyTree, data: Examples, **more: Any) -> Payload:
    """Make a payload of parameters, `like(data)` as "example" and small statistics by name."""
    statistics = {"example": like(data), **more}
    return Payload(weight_of(data), params, statistics, Kind(", ".join(statistics)))


def chain_of(apply: Callable, payloads: Payload, captured: Capture | None) -> chain.Chain:
    """Find the model's chain, from stacked payloads of `outline`.

    Raises:
        ValueError: the network is not sequential (see `chain.find`), or the model reads its batch size or other
            examples.
    """
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), payloads.params)
    if captured is None:
        shape = payloads.statistics["example"].shape[2:]
        captured = capture(apply, one, jnp.zeros((1, *shape), payloads.statistics["example"].dtype))
    return chain.find(captured, jax.tree.structure(one))


def models(found: chain.Chain, payloads: Payload) -> list[list[chain.Units]]:
    """Split stacked payloads into each client's layers."""
    count = payloads.weight.shape[0]
    return [found.split(pick(payloads.params, i)) for i in range(count)]
