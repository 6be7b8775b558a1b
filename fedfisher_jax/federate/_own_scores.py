"""How well clients' models do on the clients' own examples, before and after training; and Fishers that say nothing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .._examples import Examples
from .._likelihood import Likelihood
from .._metrics import Scores
from ..curvature.structures._protocol import trace
from ._cohort import Client, Cohort, with_examples
from ._round_clients import client_scores
from ._simulate import LocalTraining, Shared, map_cohort

PyTree = Any


@dataclasses.dataclass(frozen=True)
class ScoreClient:
    """The per-client function that scores the start and the client's model; its client is (place, parameters)."""

    apply: Callable
    likelihood: Likelihood

    def __call__(self, shared: Shared, client: tuple[Client, PyTree]) -> tuple[jax.Array, jax.Array]:
        """Give [loss, accuracy] of the start, and of the client's own model."""
        who, params = client

        def scores(data: Examples) -> tuple[jax.Array, jax.Array]:
            start, end = (client_scores(self.apply, self.likelihood, p, data) for p in (shared.start, params))
            return start, end

        return with_examples(shared.cohort, who, scores)


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
    score = ScoreClient(training.apply, training.likelihood)
    shared = Shared(cohort.shared, None, start)
    found, _ = map_cohort(score, shared, cohort, params, steps=cohort.sizes, strategy=strategy)
    rows = [np.asarray(rows, float) for rows in found]
    right = training.likelihood.correct is not None
    before, after = (Scores(one[:, 0], one[:, 1] if right else None) for one in rows)
    return before, after


def zero_fishers(payloads: PyTree) -> list[int]:
    """Places of the clients whose Fisher is zero everywhere: their models count for nothing in a merge by it.

    Args:
        payloads: with a leading client axis; what a rule measured that is no Fisher is not looked at.
    """
    statistics = getattr(payloads, "statistics", None)
    if statistics is None or not hasattr(statistics, "diagonal"):
        return []
    return np.flatnonzero(np.asarray(jax.vmap(trace)(statistics)) == 0).tolist()
