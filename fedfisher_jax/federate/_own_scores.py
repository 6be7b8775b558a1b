"""How well clients' models do on the clients' own examples, before and after training; and Fishers that say nothing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .._likelihood import Likelihood
from .._metrics import Scores
from ..curvature.structures._protocol import trace
from ._cohort import Client, Cohort, with_examples
from ._round_clients import client_scores
from ._simulate import LocalTraining, Shared, map_cohort

PyTree = Any


@dataclasses.dataclass(frozen=True)
class ScoreClient:
    """The per-client function that scores a model: the start, or its own one of a client (place, parameters)."""

    apply: Callable
    likelihood: Likelihood

    def __call__(self, shared: Shared, client: Client | tuple[Client, PyTree]) -> jax.Array:
        """Give [loss, accuracy] on the client's own examples."""
        who, params = (client, shared.start) if isinstance(client, Client) else client
        return with_examples(shared.cohort, who, lambda data: client_scores(self.apply, self.likelihood, params, data))


def own_scores(
    training: LocalTraining, start: PyTree, params: PyTree, cohort: Cohort, *, strategy: str | None = None
) -> tuple[Scores, Scores]:
    """Score the start and every client's model on the client's own examples.

    Args:
        training: names the model and its likelihood; nothing is trained.
        start: the parameters that all clients started from.
        params: the clients' models, with a leading client axis [M].
        cohort: the clients.
        strategy: how clients share the machine, see `map_clients`.

    Returns:
        Scores before and after training: losses [M] in nats and, where the likelihood has them, accuracies [M].
    """
    before = scores_at_clients(training, start, cohort, strategy=strategy)
    score = ScoreClient(training.apply, training.likelihood)
    shared = Shared(cohort.shared, None, None)
    found, _ = map_cohort(score, shared, cohort, params, steps=cohort.sizes, strategy=strategy)
    return before, _scores(training.likelihood, found)


def scores_at_clients(
    training: LocalTraining,
    params: PyTree,
    cohort: Cohort,
    apply: Callable | None = None,
    *,
    strategy: str | None = None,
) -> Scores:
    """Score one model on every client's own examples: losses [M] in nats and, where there are such, accuracies [M].

    Args:
        training: names the model and its likelihood; nothing is trained.
        params: the model's parameters.
        cohort: the clients.
        apply: the function of a merged model that is another network.
        strategy: how clients share the machine, see `map_clients`.
    """
    score = ScoreClient(apply or training.apply, training.likelihood)
    shared = Shared(cohort.shared, None, params)
    found, _ = map_cohort(score, shared, cohort, steps=cohort.sizes, strategy=strategy)
    return _scores(training.likelihood, found)


def _scores(likelihood: Likelihood, found: Any) -> Scores:
    rows = np.asarray(found, float)
    return Scores(rows[:, 0], rows[:, 1] if likelihood.correct is not None else None)


def zero_fishers(payloads: PyTree) -> list[int]:
    """Places of the clients whose Fisher is zero everywhere: their models count for nothing in a merge by it.

    Args:
        payloads: with a leading client axis; what a rule measured that is no Fisher is not looked at.
    """
    statistics = getattr(payloads, "statistics", None)
    if statistics is None or not hasattr(statistics, "diagonal"):
        return []
    return np.flatnonzero(np.asarray(jax.vmap(trace)(statistics)) == 0).tolist()
