"""The server loop that the authors released: its optimiser, and the choice among iterates."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_solve import explicit, flatten

from fedfisher_jax import solve


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_paper_loop_reaches_the_objective_of_conjugate_gradients(structure):
    problem = explicit(structure)[0]
    ours = solve.conjugate_gradients(damping=0.0, tolerance=1e-10)(problem).diagnostics
    theirs = jax.jit(solve.paper_loop(solve.released_adam(structure)))(problem).diagnostics
    np.testing.assert_allclose(theirs["objective_end"], ours["objective_end"], rtol=1e-3)
    assert theirs["objective_end"] >= ours["objective_end"] * (1 - 1e-9)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_released_adam_is_the_loop_of_the_paper(structure):
    problem, curvature, pull, mean, _ = explicit(structure)
    theta, momentum, squares = mean.copy(), np.zeros(15), np.zeros(15)
    for _ in range(57):
        v = curvature @ (theta - mean) - pull
        momentum, squares = v + 0.9 * momentum, v**2 + 0.99 * squares
        divisor = np.sqrt(squares) + 0.01 if structure == "diagonal" else np.sqrt(squares + 0.01)
        theta -= 0.01 * momentum / divisor
    solution = solve.paper_loop(solve.released_adam(structure), steps=57)(problem)
    np.testing.assert_allclose(flatten(solution), theta, rtol=1e-10)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_released_adam_is_adam_on_other_scales_once_its_bias_correction_has_faded(structure):
    released = solve.released_adam(structure)
    eps = {"eps": 1e-3} if structure == "diagonal" else {"eps": 0.0, "eps_root": 1e-4}
    adam = optax.adam(0.01, b1=0.9, b2=0.99, **eps)
    slopes = jnp.asarray(np.random.default_rng(0).normal(size=(2500, 4)) * [1, 1e-1, 1e-2, 1e-3])

    def updates(transform):
        step = lambda state, slope: transform.update(slope, state, slope)[::-1]  # noqa: E731
        return jax.lax.scan(step, transform.init(slopes[0]), slopes)[1]

    ours, theirs = updates(released), updates(adam)
    np.testing.assert_allclose(ours[-1], theirs[-1], rtol=1e-8)  # 0.99 ** 2500 = 1e-11
    correction = (1 - 0.9**11) / np.sqrt(1 - 0.99**11)  # 2.1: what optax's Adam takes away in its eleventh step
    np.testing.assert_allclose(ours[10][0] / theirs[10][0], correction, rtol=2e-2)


def test_validation_picks_the_first_best_of_the_scored_iterates():
    problem = explicit("kronecker")[0]
    ends = {n: solve.paper_loop(solve.released_adam("kronecker"), steps=n)(problem).params for n in (1, 11, 21)}
    distance = lambda params, n: optax.tree.norm(jax.tree.map(jnp.subtract, params, ends[n]))  # noqa: E731

    def likes(n):
        loop = solve.paper_loop(
            solve.released_adam("kronecker"), steps=25, every=10, validation=lambda p: distance(p, n) < 1e-9
        )
        return loop(problem).params

    for n in (1, 11, 21):
        chex.assert_trees_all_close(likes(n), ends[n], rtol=1e-12)
    constant = solve.paper_loop(solve.released_adam("kronecker"), steps=25, every=10, validation=lambda p: jnp.ones(()))
    chex.assert_trees_all_close(constant(problem).params, ends[1], rtol=1e-12)  # ties go to the first; never the start


def test_a_score_that_is_no_number_does_not_end_the_choice():
    problem = explicit("diagonal")[0]

    def score(params):
        distance = optax.tree.norm(jax.tree.map(jnp.subtract, params, problem.anchor))
        return jnp.where(distance < first, jnp.nan, distance)  # iterates only move away from the anchor at first

    one = solve.paper_loop(steps=1)(problem).params
    first = 1.5 * optax.tree.norm(jax.tree.map(jnp.subtract, one, problem.anchor))
    found = solve.paper_loop(steps=11, every=5, validation=score)(problem)
    assert np.isfinite(found.diagnostics["validation"])
    chex.assert_trees_all_close(found.params, solve.paper_loop(steps=11)(problem).params)
