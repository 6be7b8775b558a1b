"""What solvers and the objective refuse before any work, and what they say of numbers that are none."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax import solve
from fedfisher_jax.curvature import Diagonal


@pytest.mark.parametrize("solver", [solve.conjugate_gradients(), solve.closed_form()], ids=["steps", "closed"])
def test_a_fisher_that_is_not_a_number_is_not_taken_for_a_plain_average(solver):
    fishers = Diagonal(jnp.asarray([[1.0, 1.0], [jnp.nan, 3.0]]))
    solution = solver(solve.objective(fishers, jnp.asarray([[0.0, 0.0], [2.0, 2.0]]), jnp.ones(2)))
    assert np.isnan(solution.params[0]) and np.isnan(solution.diagnostics["residual"])
    assert not solution.diagnostics["converged"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: solve.conjugate_gradients(damping=float("nan")), "damping: got nan"),
        (lambda: solve.conjugate_gradients(damping=-2.0), "damping: got -2.0, expected a finite number of at least 0"),
        (lambda: solve.conjugate_gradients(iterations=-3), "iterations: got -3"),
        (lambda: solve.conjugate_gradients(tolerance=-1e-4), "tolerance: got"),
        (lambda: solve.closed_form(damping=-1.0), "damping: got -1.0"),
        (lambda: solve.paper_loop(every=0), "every: got 0, expected a finite number of at least 1"),
        (lambda: solve.paper_loop(steps=-5), "steps: got -5"),
        (lambda: solve.released_adam("diagnoal"), "structure: got 'diagnoal', expected one of diagonal, kronecker"),
        (lambda: solve.objective(Diagonal(jnp.ones((2, 1))), jnp.ones((2, 1)), jnp.ones(3)), "weights: got shape"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
