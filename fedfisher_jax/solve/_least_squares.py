"""The exact minimiser for curvatures A ⊗ I."""

from ._closed_form import closed_form
from ._objective import Solver


def least_squares(*, cutoff: float | None = None) -> Solver:
    """The exact minimiser nearest the anchor for a `Gram`, V̄ + A⁺ R per layer: `closed_form` without damping.

    Args:
        cutoff: eigenvalues of A at most this multiple of the largest count as zero: there the average stays (the
            paper's inverse, and the pseudo-inverse of released code, put zero there). Default d · the smallest relative
            difference of its numbers, below which eigenvalues of a [d, d] matrix are rounding errors.
    """
    return closed_form(cutoff=cutoff)
