"""One exchange of a federation on one machine: train every client, measure every payload, merge.

Data stay once on the device; a client is a place in a `Cohort`; its key is `fold_in(key, number)`, so its result does
not depend on the other clients.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._compat import Tracer, standard_promotion
from .._doors import require_params
from .._trees import pick
from ..merge import Merged, Rule, Update, fold
from ..merge._fold import lift, merge_summary, require_squares
from ..merge._rule import require_one_exchange, require_rule
from ._cohort import Client, Cohort, by_length, require_targets, with_examples
from ._described import training_settings
from ._groups import checkpoint_of, in_groups, stacked_on
from ._local import LocalTraining, Trained, train
from ._map_clients import CohortReport, default_strategy, map_clients, report_of
from ._over_threads import cores

PyTree = Any
GROUPS, VECTORISED = 8, 32  # groups of clients with a checkpoint after each; clients of a vectorised program


class Shared(NamedTuple):
    """What all clients of a stage read."""

    cohort: Cohort  # arrays alone
    key: Any
    start: Any


@dataclasses.dataclass(frozen=True)
class TrainClient:
    """The per-client function of local training."""

    training: LocalTraining

    def __call__(self, shared: Shared, client: Client) -> Trained:
        """Train one client's model from `shared.start`."""
        key = jax.random.fold_in(shared.key, client.number)
        return with_examples(shared.cohort, client, lambda data: train(self.training, shared.start, data, key))


@dataclasses.dataclass(frozen=True)
class MeasureClient:
    """The per-client function of a rule's measure; its client is (place, what training left, or None)."""

    measure: Callable

    def __call__(self, shared: Shared, client: tuple[Client, Update]) -> PyTree:
        """One client's payload; a client that has no model of its own measures the start."""
        who, update = client
        params = shared.start if update.params is None else update.params
        update, key = update._replace(params=params, start=shared.start), jax.random.fold_in(shared.key, who.number)
        return with_examples(shared.cohort, who, lambda data: self.measure(update, data, key))


@standard_promotion
def train_clients(
    training: LocalTraining,
    start: PyTree,
    cohort: Cohort,
    key: Any,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    **how: Any,
) -> tuple[Trained, CohortReport]:
    """Train all clients from a common start.

    Args:
        training: the settings.
        start: parameters that all clients start from.
        cohort: the clients.
        key: random key of this stage.
        checkpoint: file written after each group of clients, an eighth of them or so, the largest first; those that it
            holds are not trained again, whatever devices there were.
        how: options of `map_clients`: strategy, group, done. With a checkpoint: strategy, done, and `found`, which is
            called with the number of clients that it holds.

    Returns:
        `Trained` with a leading client axis, and how the cohort ran.

    Raises:
        ValueError: targets do not fit the model's outputs, or a client's parameters are not finite after training; its
            number is in the message; a checkpoint of other clients or of other settings of training.
    """
    require_targets(training.likelihood, training.apply, start, cohort)
    function, shared = TrainClient(training), Shared(cohort.shared, key, start)
    steps = training.steps(np.asarray(cohort.sizes))
    if checkpoint is None:
        trained, report = map_cohort(function, shared, cohort, steps=steps, **how)
    else:
        settings = training_settings(training, start)
        trained, report = _in_groups(function, shared, cohort, steps, checkpoint, settings, **how)
    require_finite(trained.params, "parameters after training (lower the learning rate?)", cohort.members.number)
    return trained, report


def _in_groups(
    function: Callable,
    shared: Shared,
    cohort: Cohort,
    steps: np.ndarray,
    path: str | os.PathLike[str],
    training: Mapping[str, str],
    strategy: str | None = None,
    **how: Any,
) -> tuple[PyTree, CohortReport]:
    """Run `map_cohort` over groups of clients of like length, the longest first, with a checkpoint after each.

    The checkpoint is one of these clients and this training, of which the settings are given as texts.

    A group is about an eighth of all, and so many that no thread, device or vectorised program waits for clients.
    """
    strategy, count, order = strategy or default_strategy(), len(steps), np.argsort(-steps, kind="stable")
    width = {"sequential": 1, "threads": cores(), "vectorised": VECTORISED}.get(strategy, jax.device_count())

    def run(rows: np.ndarray) -> tuple[PyTree, CohortReport, float]:
        part, work = cohort.sample(order[rows]), steps[order[rows]]
        result, report = map_cohort(function, shared, part, steps=work, strategy=strategy)
        return jax.tree.map(np.asarray, result), report, float(work.sum())

    group = width * max(1, round(count / width / GROUPS))
    kept = checkpoint_of(path, f"stack {json.dumps(training)}", function, shared, pick(cohort.members, order))
    found, report = in_groups(run, stacked_on, count, group, kept, **how)
    return pick(found, np.argsort(order)), report


@standard_promotion
def measure_clients(
    measure: Callable, update: Update, cohort: Cohort, key: Any, **how: Any
) -> tuple[PyTree, CohortReport]:
    """Measure the payloads of all clients.

    Args:
        measure: the `measure` of a rule.
        update: what training left, with a leading client axis but for `start`, which all clients were sent. With
            `params` None nothing was trained: all clients measure the start.
        cohort: the clients.
        key: random key of this stage.
        how: options of `map_clients`: strategy, group, done.

    Raises:
        ValueError: a payload is not finite; the client's number is in the message.
    """
    count = len(cohort.sizes)
    mine = update._replace(start=None, steps=jnp.broadcast_to(jnp.asarray(update.steps), count))
    shared = Shared(cohort.shared, key, update.start)
    steps = np.asarray(cohort.sizes)  # on the host, also of a sample
    payloads, report = map_cohort(MeasureClient(measure), shared, cohort, mine, steps=steps, **how)
    require_finite(payloads, "payload", cohort.members.number)
    return payloads, report


def map_cohort(
    function: Callable, shared: Shared, cohort: Cohort, more: PyTree = None, *, steps: Any, **how: Any
) -> tuple[PyTree, CohortReport]:
    """Run `map_clients` over a cohort's clients, or (clients, `more`); vectorised groups hold rows of one length."""
    with_more = (lambda clients, extra: clients) if more is None else (lambda clients, extra: (clients, extra))
    strategy = how.pop("strategy", None) or default_strategy()
    if strategy != "vectorised" or len(cohort.lengths) == 1:
        return map_clients(function, shared, with_more(cohort.members, more), steps=steps, strategy=strategy, **how)
    found, reports, order = [], [], []
    for part, places in by_length(cohort):
        mine = with_more(part.members, pick(more, places))
        same = shared._replace(cohort=part.shared)
        result, report = map_clients(function, same, mine, steps=np.asarray(steps)[places], strategy=strategy, **how)
        found, order = [*found, result], [*order, places]
        reports.append((report, float(np.asarray(steps)[places].sum())))
    back = np.argsort(np.concatenate(order))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[back], *found), report_of(reports)


@standard_promotion
def merge_clients(rule: Rule, payloads: PyTree, start: PyTree = None) -> Merged:
    """Merge stacked payloads into the global model, fold and solve in one compiled program if possible.

    Args:
        rule: one exchange.
        payloads: payloads of all clients, with a leading client axis.
        start: the model that the clients were sent, where the rule reads it.

    Raises:
        ValueError: the rule is several exchanges, cannot merge what payloads hold, gives an `apply` of its own and says
            that it can be compiled, or ends with an objective below zero; the start is not like the parameters; a
            client's weight is not positive, where weights are there to be looked at: not under `jit`.
        TypeError: parameters that are no floating-point numbers.
    """
    require_rule(rule)
    require_one_exchange(rule)
    if payloads.params is not None:
        require_params(payloads.params)
    weights = getattr(payloads, "weight", None)
    if weights is not None and not isinstance(weights, Tracer):
        _require_weights(np.asarray(weights))
    if not rule.jit:
        return require_squares(rule, _merge(rule, payloads, start))
    # measure's hash is not asked for
    params, diagnostics = _merge_compiled(rule._replace(measure=None), payloads, start)
    return require_squares(rule, Merged(params, jax.block_until_ready(diagnostics)))


def _require_weights(weights: np.ndarray) -> None:
    """Refuse weights [M] of clients that are not positive numbers; the first such client is named.

    Raises:
        ValueError: which client, and its weight.
    """
    bad = np.flatnonzero(~((weights > 0) & np.isfinite(weights)))
    if bad.size:
        given = weights.ravel()[bad[0]]
        raise ValueError(f"payloads: client {bad[0]} has weight {given}, expected a positive number of examples")


def _merge(rule: Rule, payloads: PyTree, start: PyTree) -> Merged:
    contributions = jax.vmap(lambda payload: lift(rule, payload, start))(payloads)
    return merge_summary(rule, fold(rule, contributions), payloads.params, start)


@partial(jax.jit, static_argnums=0)
def _merge_compiled(rule: Rule, payloads: PyTree, start: PyTree) -> tuple[PyTree, dict[str, Any]]:
    merged = _merge(rule, payloads, start)
    if merged.apply is not None:
        raise ValueError(f"rule {rule.name}: gives an apply of its own, which needs jit=False")
    return merged.params, merged.diagnostics


def payload_bits(payloads: PyTree) -> int:
    """Bits that one client sends up: its payload but for the scalar weight; `payloads` [M, ...] are stacked."""
    leaves = jax.tree.leaves(payloads._replace(weight=None) if hasattr(payloads, "weight") else payloads)
    return sum(leaf.size // leaf.shape[0] * leaf.dtype.itemsize * 8 for leaf in leaves)


def require_finite(stacked: PyTree, what: str, numbers: Any = None) -> None:
    """Raise ValueError naming the first client (of [M] `numbers`) whose part of a stacked tree is not finite."""
    bad = np.flatnonzero(~np.asarray(_finite(jax.tree.leaves(stacked))))
    if bad.size:
        number = bad[0] if numbers is None else numbers[bad[0]]
        raise ValueError(f"client {number}: NaN or infinity in its {what}")


@jax.jit
def _finite(leaves: list[jax.Array]) -> jax.Array:
    """Tell of each client [M] whether its numbers are finite; one program, not one for each leaf's shape."""
    kept = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(1) for leaf in kept]).all(0)
