"""One network at many widths and seeds: the runs behind the laws of width (2403.12329), for any `apply`.

Slopes of their errors are of `scaling`; docs/theory.md has an example.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from . import matrix_free, two_layer
from .matrix_free import Apply, ClientData, Run

Network = Callable[[int, tuple[int, ...]], tuple[Callable[[Key[Array, ""]], Any], Apply]]
"""(width, shape of one input) -> (init, apply), with init(key) -> params and apply(params, x [n, ...]) -> [n, C]."""


def two_layers(activation: Callable[[Array], Array]) -> Network:
    """Make the theorem's network with another activation σ: f(x) = 1/√m Σ_r a_r σ(w_rᵀx), the a_r drawn and fixed."""

    def network(width: int, shape: tuple[int, ...]) -> tuple[Callable[[Key[Array, ""]], Any], Apply]:
        scale = two_layer.output_scale(width, "ntk")

        def apply(params: two_layer.Params, x: Array) -> Array:
            a = jax.lax.stop_gradient(params.a)
            return scale * (activation(x.reshape(len(x), -1) @ params.w) @ a)[:, None]

        return lambda key: two_layer.init(key, math.prod(shape), width, jnp.result_type(float)), apply

    return network


def over_widths(
    network: Network,
    draw: Callable[[Key[Array, ""]], ClientData],
    widths: Iterable[int],
    *,
    seeds: Iterable[int],
    steps: int,
    step_size: float = 0.5,
    further: Mapping[str, Callable[[Apply, Any, ClientData], Any]] | None = None,
) -> dict[int, Run]:
    """Train, merge and measure a network at every width, on every seed.

    Args:
        network: The network at a width.
        draw: key -> the clients of a seed, the same at every width; y is [M, n] or [M, n, C].
        widths: Numbers that `network` takes.
        seeds: Each draws clients, and a start at every width.
        steps: Gradient steps of every client.
        step_size: In units of 1/λ_max, as in `matrix_free.diagnose`.
        further: Other merges by name, as there.

    Returns:
        The diagnostics of each width, with a leading axis of seeds on every array.
    """
    keys = [jax.random.key(seed) for seed in seeds]
    drawn = [draw(key) for key in keys]
    drawn = [one if one.y.ndim == 3 else one._replace(y=one.y[..., None]) for one in drawn]
    found = {}
    for width in widths:
        init, apply = network(width, drawn[0].x.shape[2:])
        run = jax.jit(lambda start, data, f=apply: matrix_free.diagnose(f, start, data, steps, step_size, 8, further))
        each = [run(init(jax.random.fold_in(key, width)), data) for key, data in zip(keys, drawn, strict=True)]
        found[width] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    return found
