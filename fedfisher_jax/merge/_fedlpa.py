"""FedLPA-style (arXiv 2310.00339): layer-wise Laplace posteriors with empirical Kronecker factors."""

from collections.abc import Callable
from typing import Any

from .._likelihood import Likelihood
from ._fedfisher import fedfisher
from ._measure import MeasureFisher, require_options
from ._rule import Rule


def fedlpa(apply: Callable, likelihood: Likelihood, **options: Any) -> Rule:
    """Make FedLPA's rule (arXiv 2310.00339): K-FAC with gradients at the clients' own labels, not the model's.

    Taken from the paper are the empirical Kronecker block per layer, and the joint mode of the clients' posteriors,
    found by iterating on the quadratic. Its prior and its own iteration are not taken; the solver is that of
    `fedfisher`, and so is the damping, which stands for the prior.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what was fitted.
        options: what `fedfisher` takes except structure and kind: solver, batch_size, captured.

    Raises:
        TypeError: an unknown option.
    """
    require_options(options, fedfisher, MeasureFisher, "structure", "kind")
    return fedfisher(apply, likelihood, structure="kronecker", kind="empirical", **options)._replace(name="fedlpa")
