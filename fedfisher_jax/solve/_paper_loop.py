"""The server loop that the FedFisher authors released, in optax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._doors import require_at_least, require_optimizer
from .._trees import in_types_of, widened
from ._objective import Objective, Solution, Solver, _solution

PyTree = Any
STRUCTURES = ("diagonal", "kronecker", "full")


def paper_loop(
    optimizer: optax.GradientTransformation | None = None,
    *,
    steps: int = 2000,
    every: int = 100,
    validation: Callable[[PyTree], jax.Array] | None = None,
) -> Solver:
    """Run the authors' server loop as a jitted optax loop on ½∇Q from the anchor (arXiv 2403.12329, released code).

    Args:
        optimizer: any optax transformation of H δ − r; default `released_adam("diagonal")`.
        steps: the number of updates.
        every: with `validation`, iterates 1, 1 + every, 1 + 2·every … are scored and the first best one is returned.
        validation: params → score, higher is better. The released method scores accuracy on 500 labelled training
            examples at the server; without it the last iterate is returned and no labels are needed.

    Raises:
        TypeError: an optimiser that is none.
        ValueError: fewer than 0 steps, or `every` below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import fedfisher_jax as ff
        >>> models, fishers = jnp.asarray([[0.0], [2.0]]), ff.Diagonal(jnp.asarray([[1.0], [3.0]]))  # two clients
        >>> problem = ff.solve.objective(fishers, models, jnp.ones(2))
        >>> print(f"{ff.paper_loop(optax.sgd(0.1), steps=100)(problem).params[0]:.4f}")
        1.5000
    """
    if optimizer is not None:
        require_optimizer(optimizer)
    require_at_least("steps", steps, 0)
    require_at_least("every", every, 1)
    transform = released_adam("diagonal") if optimizer is None else optimizer

    def solve(problem: Objective) -> Solution:
        def update(state: tuple) -> tuple:
            delta, inner = state
            slope = in_types_of(jax.tree.map(jnp.subtract, problem.curvature.matvec(delta), problem.pull), delta)
            change, inner = transform.update(slope, inner, delta)
            return optax.apply_updates(delta, change), inner

        def round_(carry: tuple, length: int) -> tuple:
            state, best, score = carry
            state = update(state)
            if validation is not None:
                new = validation(jax.tree.map(jnp.add, problem.anchor, state[0])).astype(jnp.float32)
                best = jax.tree.map(lambda b, d: jnp.where(new > score, d, b), best, state[0])
                score = jnp.where(new > score, new, score)  # NaN is no score
            state = jax.lax.fori_loop(1, length, lambda _, s: update(s), state)
            return state, best, score

        zeros = optax.tree.zeros_like(widened(problem.anchor))
        carry = ((zeros, transform.init(zeros)), zeros, jnp.asarray(-jnp.inf, jnp.float32))
        carry = jax.lax.fori_loop(0, steps // every, lambda _, c: round_(c, every), carry)
        if steps % every:
            carry = round_(carry, steps % every)
        (delta, _), best, score = carry
        chosen = delta if validation is None else best
        solution = _solution(problem, chosen, jax.tree.map(lambda _: 0.0, chosen), iterations=steps, converged=False)
        if validation is not None:
            solution.diagnostics["validation"] = score
        small = solution.diagnostics["residual"] < 1e-3
        return solution._replace(diagnostics=solution.diagnostics | {"converged": small})

    return solve


def released_adam(structure: str, learning_rate: float = 0.01) -> optax.GradientTransformation:
    """Make the released server optimiser: mom ← v + 0.9 mom, del ← v² + 0.99 del, θ −= η mom / denominator.

    The denominator is √del + 0.01 for "diagonal" and √(del + 0.01) otherwise. It is Adam(0.9, 0.99) without bias
    correction, with eps = 1e-3 (diagonal) or eps_root = 1e-4, on other scales; optax's Adam always corrects the bias.

    Args:
        structure: "diagonal", or "kronecker" or "full", which have one formula.
        learning_rate: η.

    Raises:
        ValueError: another structure.
    """
    if structure not in STRUCTURES:
        raise ValueError(f"structure: got {structure!r}, expected one of {', '.join(STRUCTURES)}")

    def init(params: PyTree) -> tuple[PyTree, PyTree]:
        return optax.tree.zeros_like(params), optax.tree.zeros_like(params)

    def update(slope: PyTree, state: tuple, params: PyTree = None) -> tuple[PyTree, tuple]:
        del params
        momentum = jax.tree.map(lambda v, m: v + 0.9 * m, slope, state[0])
        squares = jax.tree.map(lambda v, s: v**2 + 0.99 * s, slope, state[1])
        if structure == "diagonal":
            change = jax.tree.map(lambda m, s: -learning_rate * m / (jnp.sqrt(s) + 0.01), momentum, squares)
        else:
            change = jax.tree.map(lambda m, s: -learning_rate * m / jnp.sqrt(s + 0.01), momentum, squares)
        return change, (momentum, squares)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]
