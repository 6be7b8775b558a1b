"""One silo's part on its own machine: train and measure, to the same bits as in a simulation of all silos."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..federate import _simulate as simulate
from ..federate._one_shot import Keys
from ..merge._rule import Payload

PyTree = Any
MOST_PADDED = 1024  # rows that a silo of fewer examples is filled up to: a batch of a million is one of all its rows


def train_and_measure(
    train: simulate.Train | None,
    measure: Callable,
    params: PyTree,
    x: Any,
    y: Any,
    *,
    number: int,
    key: Keys,
    batch_size: int = 64,
) -> Payload:
    """What silo `number` sends.

    Args:
        train: the settings; None measures `params` as they are.
        measure: of the rule.
        params: the common start, or a trained model.
        x: [n, ...] this silo's examples alone.
        y: [n, ...].
        number: of the silo; its keys are folded with it.
        key: of the round.
        batch_size: of training, for a row of examples that is no shorter, up to `MOST_PADDED`: fewer examples make a
            smaller program, whose sums round differently.

    Raises:
        ValueError: parameters or payload are not finite.
    """
    who = simulate.clients([np.arange(len(x))], length=min(batch_size, MOST_PADDED))
    who = who._replace(number=np.array([number], np.int32))
    x, y = jnp.asarray(x), jnp.asarray(y)
    if train is None:
        models = jax.tree.map(lambda leaf: leaf[None], params)
    else:
        models = simulate.train_clients(train, params, x, y, who, key.train, strategy="threads")[0].params
    sent, _ = simulate.measure_clients(measure, models, x, y, who, key.measure, strategy="threads")
    return jax.tree.map(lambda leaf: leaf[0], sent)
