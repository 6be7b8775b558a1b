"""One federation on one machine: train every client, measure every payload, merge.

The three calls of a one-shot simulation. Data stay once on the device; a client is a row of indices; its key is
`fold_in(key, number)`, so its result does not depend on the other clients.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._examples import Examples, pad_rows
from .._likelihood import Likelihood
from ..merge import Merged, Rule
from ..merge._rule import fold, in_types_of, lift
from . import _local as local
from ._map_clients import Report, map_clients

PyTree = Any


class Clients(NamedTuple):
    """Rows of indices into the shared arrays, one per client."""

    number: Any  # [M]
    indices: Any  # [M, longest]
    size: Any  # [M]


class Shared(NamedTuple):
    """What all clients of a stage read."""

    x: Any
    y: Any
    key: Any
    params: Any = None


def clients(parts: Sequence[np.ndarray], length: int = 0) -> Clients:
    """Clients from the index arrays of a split, in rows of at least `length`.

    Results do not depend on the length. With one length, all splits of a data set run the same compiled programs.

    Raises:
        ValueError: no client, or one without examples, which is named.
    """
    rows, sizes = pad_rows(list(parts))
    rows = np.pad(rows, ((0, 0), (0, max(0, length - rows.shape[1]))), mode="edge")
    return Clients(np.arange(len(parts), dtype=np.int32), rows, sizes)


@dataclasses.dataclass(frozen=True)
class Train:
    """The per-client function of training, equal to another one with equal settings (so it is traced once)."""

    apply: Callable
    likelihood: Likelihood
    optimizer: optax.GradientTransformation
    epochs: Any  # an integer; traced where clients have their own
    batch_size: int
    augment: Callable | None = None
    on_epoch: Callable[[], None] | None = None
    squares: bool = False

    def __call__(self, shared: Shared, client: Clients) -> local.Trained:
        """One client's trained model."""
        data = Examples(shared.x, shared.y, client.indices, client.size)
        return self.fit(shared.params, data, jax.random.fold_in(shared.key, client.number))

    def fit(self, params: PyTree, data: Examples, key: jax.Array) -> local.Trained:
        """A model trained from `params` on `data`."""
        settings = {"epochs": self.epochs, "batch_size": self.batch_size, "augment": self.augment}
        settings["squares"] = self.squares
        return local.train(
            self.apply, self.likelihood, self.optimizer, params, data, key, on_epoch=self.on_epoch, **settings
        )


@dataclasses.dataclass(frozen=True)
class MeasureClient:
    """The per-client function of a rule's measure; its client is (Clients, parameters)."""

    measure: Callable

    def __call__(self, shared: Shared, client: tuple[Clients, PyTree]) -> PyTree:
        """One client's payload."""
        who, params = client
        data = Examples(shared.x, shared.y, who.indices, who.size)
        return self.measure(params, data, jax.random.fold_in(shared.key, who.number))


def train_clients(train: Train, params: PyTree, x: Any, y: Any, who: Clients, key: Any, **how: Any):
    """Train all clients from common `params`.

    Args:
        train: the settings.
        params: the common start.
        x: [N, ...] of all clients.
        y: [N, ...].
        who: the clients.
        key: of this stage.
        how: of `map_clients`: strategy, group, done.

    Returns:
        `Trained` with a leading client axis, and the cohort's report.

    Raises:
        ValueError: a client's parameters are not finite after training; its number is in the message.
    """
    steps = train.epochs * -(-who.size // train.batch_size)
    trained, report = map_clients(train, Shared(x, y, key, params), who, steps=steps, **how)
    require_finite(trained.params, "parameters after training (lower the learning rate?)", who.number)
    return trained, report


def measure_clients(
    measure: Callable, params: PyTree, x: Any, y: Any, who: Clients, key: Any, **how: Any
) -> tuple[PyTree, Report]:
    """Payloads of all clients, with a leading client axis; `params` [M, ...] are their models."""
    payloads, report = map_clients(MeasureClient(measure), Shared(x, y, key), (who, params), steps=who.size, **how)
    require_finite(payloads, "payload", who.number)
    return payloads, report


def merge_clients(rule: Rule, payloads: PyTree) -> Merged:
    """The global model from payloads with a leading client axis, fold and solve in one compiled program if possible.

    Raises:
        ValueError: the rule gives an `apply` of its own and says that it can be compiled.
    """
    if not rule.jit:
        return _merge(rule, payloads)
    params, diagnostics = _merge_compiled(rule._replace(measure=None), payloads)  # whose hash is not asked for
    return Merged(params, jax.block_until_ready(diagnostics))


def _merge(rule: Rule, payloads: PyTree) -> Merged:
    merged = rule.solve(fold(rule, jax.vmap(partial(lift, rule))(payloads)))
    return in_types_of(payloads.params, merged)


@partial(jax.jit, static_argnums=0)
def _merge_compiled(rule: Rule, payloads: PyTree) -> tuple[PyTree, dict[str, Any]]:
    merged = _merge(rule, payloads)
    if merged.apply is not None:
        raise ValueError(f"rule {rule.name}: gives an apply of its own, which needs jit=False")
    return merged.params, merged.diagnostics


def payload_bits(payloads: PyTree) -> int:
    """Bits that one client sends up: its payload but for the scalar weight; `payloads` [M, ...] are stacked."""
    leaves = jax.tree.leaves(payloads._replace(weight=None) if hasattr(payloads, "weight") else payloads)
    return sum(leaf.size // leaf.shape[0] * leaf.dtype.itemsize * 8 for leaf in leaves)


def require_finite(stacked: PyTree, what: str, numbers: Any = None) -> None:
    """Raise ValueError naming the first client (of [M] `numbers`) whose part of a stacked tree is not finite."""
    finite = [
        jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(1)
        for leaf in jax.tree.leaves(stacked)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    bad = np.flatnonzero(~np.asarray(jnp.stack(finite).all(0)))
    if bad.size:
        number = bad[0] if numbers is None else numbers[bad[0]]
        raise ValueError(f"client {number}: NaN or infinity in its {what}")
