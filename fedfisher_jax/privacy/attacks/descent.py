"""The loop of every attack that optimises inputs: from a state to a state, so that it can stop and go on."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any
Loss = Callable[[Any, Any], jax.Array]  # (what is optimised, what is given) → scalar


class State(NamedTuple):
    """Where a descent stands; a pytree of arrays, so any checkpoint takes it.

    Attributes:
        step: steps taken.
        inputs: what is optimised, any pytree.
        memory: the optimiser's state.
    """

    step: jax.Array
    inputs: PyTree
    memory: PyTree


class Bounds(NamedTuple):
    """Smallest and largest value that a pixel can have."""

    low: float
    high: float


class Weights(NamedTuple):
    """Weights of the priors on images."""

    total_variation: float = 1.0
    mean_square: float = 0.1


def begin(optimizer: optax.GradientTransformation, inputs: PyTree) -> State:
    """Make a descent's first state."""
    return State(jnp.zeros((), jnp.int32), inputs, optimizer.init(inputs))


@partial(jax.jit, static_argnames=("loss", "optimizer", "steps", "bounds"))
def descend(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    state: State,
    given: PyTree,
    *,
    steps: int,
    bounds: Bounds | None = None,
) -> tuple[State, jax.Array]:
    """Take `steps` further steps; twice 50 are the same as 100.

    Args:
        loss: (inputs, given) → scalar; the same object again, or an equal one, is not compiled again.
        optimizer: an optimiser of optax.
        state: the state from `begin`, or from an earlier call.
        given: what the loss reads beside the inputs (a model, targets …).
        steps: number of steps.
        bounds: inputs are cut to them after every step.

    Returns:
        The state, and the loss before each step [steps].
    """

    def step(state: State, _: None) -> tuple[State, jax.Array]:
        value, slope = jax.value_and_grad(loss)(state.inputs, given)
        updates, memory = optimizer.update(slope, state.memory, state.inputs)
        inputs = optax.apply_updates(state.inputs, updates)
        if bounds is not None:
            inputs = optax.projections.projection_box(inputs, bounds.low, bounds.high)
        return State(state.step + 1, inputs, memory), value

    return jax.lax.scan(step, state, length=steps)
