"""Personalisation: a client fine-tunes the server's model on its own training part and is scored on its test part."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._examples import Examples
from ._map_clients import map_clients
from ._simulate import Clients, Shared, Train
from .rounds import score

PyTree = Any


class Personalised(NamedTuple):
    """Scores on each client's test part, [M]: loss in nats per example, accuracy from 0 to 1."""

    loss_before: Any
    accuracy_before: Any
    loss: Any
    accuracy: Any


@dataclasses.dataclass(frozen=True)
class FineTune:
    """The per-client function; its client is (training part, test part)."""

    train: Train

    def __call__(self, shared: Shared, client: tuple[Clients, Clients]) -> tuple[jax.Array, jax.Array]:
        """[loss, accuracy] before and after."""
        mine, test = client
        params = self.train(shared, mine).params
        held = Examples(shared.x, shared.y, test.indices, test.size)
        before, after = (score(self.train.apply, self.train.likelihood, p, held) for p in (shared.params, params))
        return before, after


def personalise(
    train: Train,
    params: PyTree,
    x: Any,
    y: Any,
    training: Clients,
    test: Clients,
    key: jax.Array,
    *,
    shots: int | None = None,
    **how: Any,
) -> Personalised:
    """Fine-tune `params` for each client and score it before and after.

    Args:
        train: settings of the fine-tuning; its epochs may be few.
        params: the server's model.
        x: [N, ...] of all clients.
        y: [N, ...].
        training: each client's training part.
        test: each client's test part, in the same order.
        key: of the fine-tuning.
        shots: take only so many examples of each training part, the first in its row; None takes all.
        how: of `map_clients`: strategy, group, done.

    Raises:
        ValueError: numbers of clients differ, or `shots` is below 1.
    """
    if len(training.size) != len(test.size):
        raise ValueError(f"test: got {len(test.size)} clients, expected {len(training.size)}, those of training")
    if shots is not None:
        if shots < 1:
            raise ValueError(f"shots: got {shots}, expected at least 1")
        training = training._replace(size=jnp.minimum(training.size, shots), indices=training.indices[:, :shots])
    function = FineTune(train)
    (before, after), _ = map_clients(function, Shared(x, y, key, params), (training, test), **how)
    return Personalised(before[:, 0], before[:, 1], after[:, 0], after[:, 1])
