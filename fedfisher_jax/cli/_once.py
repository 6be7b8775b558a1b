"""What commands of one process share: the same objects for the same words, for which JAX finds what it compiled."""

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import jax
import optax

from .._likelihood import Likelihood
from .._trees import outline
from ..curvature import Capture, capture
from ..federate import LocalTraining
from ..merge import Rule, catalogue
from ..silos import _network
from ._local_training import optimizer, rate

PyTree = Any
once = lru_cache(maxsize=64)
network_of = once(_network.network_of)


def layers_of(apply: Callable, params: PyTree, x: PyTree) -> Capture:
    """The layers of a model, as `capture` finds them, looked for once for each function and shape of its arguments."""
    flat = [jax.tree.flatten(jax.tree.map(jax.typeof, params)), jax.tree.flatten(outline(x, 1))]
    shapes = [(form, *((leaf.shape, leaf.dtype) for leaf in leaves)) for leaves, form in flat]
    return _layers_of(apply, *shapes, jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]


@once
def _layers_of(apply: Callable, params: tuple, x: tuple, wide: bool) -> Capture:
    del wide  # a program differs by it
    shaped = lambda leaves: [jax.ShapeDtypeStruct(*leaf) for leaf in leaves]  # noqa: E731
    return capture(apply, *(jax.tree.unflatten(form, shaped(leaves)) for form, *leaves in (params, x)))


@once
def rule_of(name: str, apply: Callable, likelihood: Likelihood, offers: tuple[tuple[str, Hashable], ...]) -> Rule:
    """A rule by its name and options, given what it takes of the offers."""
    return catalogue.named_rule(name, apply, likelihood, offers=dict(offers))


@once
def optimizer_of(
    name: str, learning_rate: float, momentum: float, schedule: str | None = None
) -> optax.GradientTransformation:
    """The clients' optimiser, by the names that flags have."""
    return optimizer("optimizer", name, rate("schedule", learning_rate, schedule), momentum)


@once
def scoring(apply: Callable, likelihood: Likelihood, batch_size: int) -> LocalTraining:
    """A model as `own_scores` takes it; nothing is trained by it."""
    return LocalTraining(apply, likelihood, optax.identity(), 0, batch_size)
