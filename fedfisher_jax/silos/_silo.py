"""One silo's part on its own machine: train and measure, to the same bits as in a simulation of all silos."""

from typing import Any

import jax
import numpy as np

from .._trees import arrays, count_rows, pick
from ..federate import Cohort, LocalTraining, RunKeys, cohort, measure_clients, train_clients
from ..merge import Payload, Rule, Update

PyTree = Any
MOST_PADDED = 1024  # rows that a silo of fewer examples is filled up to: a batch of a million is one of all its rows


def silo_cohort(x: Any, y: Any, number: int, batch_size: int) -> Cohort:
    """Make a cohort of one client from one silo's examples.

    Args:
        x: [n, ...] inputs of this silo alone: an array, or a dictionary or tuple of arrays.
        y: [n, ...] its targets.
        number: the silo's number, with which its random keys are folded.
        batch_size: batch size of training; the row of examples is no shorter, up to `MOST_PADDED`, since fewer examples
            make a smaller program, whose sums round differently.
    """
    x = arrays("x", x)
    return cohort(x, y, [np.arange(count_rows("x", x))], numbers=[number], length=min(batch_size, MOST_PADDED))


def train_and_measure(
    training: LocalTraining | None, rule: Rule, start: PyTree, silo: Cohort, key: RunKeys, *, params: PyTree = None
) -> Payload:
    """Train and measure, and return the payload that a silo sends.

    Args:
        training: the settings; None trains nothing.
        rule: one exchange.
        start: the model that all silos were sent.
        silo: from `silo_cohort`.
        key: random keys of the round.
        params: an already trained model, measured where nothing is trained; default the start itself.

    Raises:
        ValueError: parameters or payload are not finite.
    """
    update = Update(None if params is None else jax.tree.map(lambda leaf: leaf[None], params), start)
    if training is not None:
        trained, _ = train_clients(training, start, silo, key.train, strategy="threads")
        update = Update(trained.params, start, trained.squares, training.steps(np.asarray(silo.sizes)))
    sent, _ = measure_clients(rule.measure, update, silo, key.measure, strategy="threads")
    return pick(sent, 0)
