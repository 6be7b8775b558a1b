"""The server's problem, one quadratic, and its solvers: functions from an `Objective` to a `Solution`."""

from ._closed_form import closed_form as closed_form
from ._conjugate_gradients import conjugate_gradients as conjugate_gradients
from ._least_squares import least_squares as least_squares
from ._objective import Objective as Objective
from ._objective import Solution as Solution
from ._objective import Solver as Solver
from ._objective import objective as objective
from ._paper_loop import paper_loop as paper_loop
from ._paper_loop import released_adam as released_adam

__all__ = [
    "Objective",
    "Solution",
    "Solver",
    "closed_form",
    "conjugate_gradients",
    "least_squares",
    "objective",
    "paper_loop",
    "released_adam",
]
