"""Personalisation: a client fine-tunes the server's model on its own training part and is scored on its test part."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._compat import standard_promotion
from .._examples import Examples
from ._cohort import Client, Cohort, with_examples
from ._local import LocalTraining
from ._map_clients import map_clients
from ._simulate import Shared, TrainClient
from .rounds import client_scores

PyTree = Any


class Personalised(NamedTuple):
    """Scores on each client's test part, [M]: loss in nats per example, accuracy from 0 to 1."""

    loss_before: Any
    accuracy_before: Any
    loss: Any
    accuracy: Any


@dataclasses.dataclass(frozen=True)
class FineTune:
    """The per-client function; its client is (place in the training cohort, place in the test cohort)."""

    training: LocalTraining

    def __call__(self, shared: tuple[Shared, Cohort], client: tuple[Client, Client]) -> tuple[jax.Array, jax.Array]:
        """Return [loss, accuracy] before and after."""
        (everyone, tests), (mine, test) = shared, client
        tuned = TrainClient(self.training)(everyone, mine).params

        def scores(data: Examples) -> tuple[jax.Array, jax.Array]:
            settings = self.training.apply, self.training.likelihood
            return client_scores(*settings, everyone.start, data), client_scores(*settings, tuned, data)

        return with_examples(tests, test, scores)


@standard_promotion
def personalise(
    training: LocalTraining,
    params: PyTree,
    cohort: Cohort,
    test: Cohort,
    key: jax.Array,
    *,
    shots: int | None = None,
    **how: Any,
) -> Personalised:
    """Fine-tune `params` for each client and score it before and after.

    Args:
        training: settings of the fine-tuning; its epochs may be few.
        params: the server's model.
        cohort: each client's training part.
        test: each client's test part, in the same order.
        key: random key of the fine-tuning.
        shots: take only so many examples of each training part, the first in its row; None takes all.
        how: options of `map_clients`: strategy, group, done.

    Raises:
        ValueError: numbers of clients differ, or `shots` is below 1.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, optax, fedfisher_jax as ff
        >>> linear, likelihood = (lambda params, x: x @ params), ff.categorical()
        >>> clients = ff.cohort(jnp.eye(6), jnp.arange(6) % 2, [np.arange(3), np.arange(3, 6)])
        >>> training = ff.LocalTraining(linear, likelihood, optax.sgd(1.0), epochs=2, batch_size=3)
        >>> key, start = jax.random.key(0), jnp.zeros((6, 2))
        >>> scores = ff.personalise(training, start, clients, clients, key, strategy="vectorised")
        >>> bool(jnp.all(scores.loss < scores.loss_before))
        True
    """
    clients = cohort.members
    if len(clients.size) != len(test.sizes):
        raise ValueError(f"test: got {len(test.sizes)} clients, expected {len(clients.size)}, those of training")
    if shots is not None:
        if shots < 1:
            raise ValueError(f"shots: got {shots}, expected at least 1")
        clients = clients._replace(size=jnp.minimum(clients.size, shots))
    shared = Shared(cohort.shared, key, params), test.shared
    (before, after), _ = map_clients(FineTune(training), shared, (clients, test.members), **how)
    return Personalised(before[:, 0], before[:, 1], after[:, 0], after[:, 1])
