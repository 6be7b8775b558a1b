"""Federation over rounds: sampled clients train from the server's model, a rule folds what they send, the model moves.

State in, state and metrics out. What a client does depends on the round's key and on its own number alone, so an
interrupted run goes on to the same result.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._examples import Examples, mean_over_batches
from .._likelihood import Likelihood
from ..merge._rule import RoundRule, Update, in_types_of, lift
from ._fold_clients import sum_clients
from ._map_clients import default_strategy
from ._simulate import Clients, Shared, Train, require_finite
from ._variants import Variant

PyTree = Any
ONE_PROGRAM = ("sequential", "vectorised")
DIVERGED = "round's training (lower the learning rate?)"


class State(NamedTuple):
    """What the server keeps between rounds."""

    params: PyTree
    optimizer: PyTree  # of the server
    round: Any  # rounds done
    key: Any
    common: PyTree = None  # what a variant of local training shares with all clients
    own: PyTree = None  # what it keeps for each registered client: [M, ...]


class Metrics(NamedTuple):
    """Of one round.

    Attributes:
        loss: the sampled clients' training loss over their last local epoch, mean over clients, in nats.
        moved: l2 norm of the step from the round's start to its end.
        barrier_loss: Client-Server Barrier, mean over sampled clients of the merged model's loss on the client's data
            minus its own model's (nats per example, lower is better); NaN unless asked for.
        barrier_accuracy: the client's own model's accuracy minus the merged one's (lower is better).
        diagnostics: of the rule's solve.
    """

    loss: Any
    moved: Any
    barrier_loss: Any
    barrier_accuracy: Any
    diagnostics: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings of a federation; the same object between rounds, or it is traced again.

    Attributes:
        train: local training: model, likelihood, optimiser, epochs, batch size.
        rule: how a round is merged; `every_round(rule)` repeats a one-shot rule.
        sampled: clients in a round, drawn without replacement.
        optimizer: the server's, on the start minus the merged model as gradient (FedOpt, arXiv 2003.00295); None takes
            the merged model as it is.
        variant: of local training (FedProx, SCAFFOLD, FedDyn); None is plain.
        barrier: measure the Client-Server Barrier, two more passes over the sampled clients' data.
    """

    train: Train
    rule: RoundRule
    sampled: int
    optimizer: optax.GradientTransformation | None = None
    variant: Variant | None = None
    barrier: bool = False


def init(plan: Plan, params: PyTree, registered: int, key: jax.Array) -> State:
    """The state before the first round.

    Raises:
        ValueError: more clients sampled than registered, or none.
    """
    if not 1 <= plan.sampled <= registered:
        raise ValueError(f"sampled: got {plan.sampled}, expected 1 to {registered}, the registered clients")
    params = jax.tree.map(jnp.asarray, params)
    common = own = None
    if plan.variant is not None:
        common = plan.variant.common(params)
        own = jax.tree.map(lambda leaf: jnp.zeros((registered, *leaf.shape), leaf.dtype), plan.variant.own(params))
    inner = None if plan.optimizer is None else plan.optimizer.init(params)
    return State(params, inner, jnp.zeros((), jnp.int32), key, common, own)


def step(
    plan: Plan,
    state: State,
    x: Any,
    y: Any,
    who: Clients,
    *,
    epochs: Any = None,
    strategy: str | None = None,
) -> tuple[State, Metrics]:
    """One round.

    With the strategies "sequential" and "vectorised" it is one jitted program (and pure: `jit`, `scan` it); "threads"
    and "devices" are one for the clients and one for the server.

    Args:
        plan: the settings.
        state: before the round.
        x: [N, ...] of all clients.
        y: [N, ...].
        who: all registered clients; only the sampled ones' rows are used.
        epochs: [M] of local training, of each registered client; default `plan.train.epochs` for all.
        strategy: of `stream.sum_clients`; default that of the platform.

    Raises:
        ValueError: the rule changes the network, so that its result cannot be broadcast; unknown strategy; a client's
            model is not finite, by "threads" and "devices" alone. In one program nothing can be raised: then
            `metrics.loss` is infinite and `metrics.moved` is not finite.
    """
    strategy = default_strategy() if strategy is None else strategy
    if strategy in ONE_PROGRAM and plan.rule.jit:
        return _one_program(plan, strategy, state, x, y, who, epochs)
    return _round(plan, strategy, state, x, y, who, epochs)


def scan(
    plan: Plan,
    state: State,
    x: Any,
    y: Any,
    who: Clients,
    rounds: int,
    *,
    epochs: Any = None,
    strategy: str = "sequential",
) -> tuple[State, Metrics]:
    """Several rounds as one program, metrics with a leading axis of rounds; arguments as in `step`.

    Raises:
        ValueError: a strategy or a rule that is more than one program.
    """
    if strategy not in ONE_PROGRAM or not plan.rule.jit:
        raise ValueError(f"strategy: got {strategy} with rule {plan.rule.name}, expected {' or '.join(ONE_PROGRAM)}")
    return _scan(plan, strategy, rounds, state, x, y, who, epochs)


def sample(plan: Plan, state: State, registered: int) -> jax.Array:
    """Numbers of the clients that the next round takes."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.round), 0)
    return jax.random.choice(key, registered, (plan.sampled,), replace=False)


@partial(jax.jit, static_argnums=(0, 1))
def _one_program(plan: Plan, strategy: str, state: State, *data: Any) -> tuple[State, Metrics]:
    return _round(plan, strategy, state, *data)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _scan(plan: Plan, strategy: str, rounds: int, state: State, *data: Any) -> tuple[State, Metrics]:
    return jax.lax.scan(lambda s, _: _round(plan, strategy, s, *data), state, None, rounds)


class _Everyone(NamedTuple):
    """What the sampled clients read."""

    shared: Shared
    common: PyTree


def _round(plan: Plan, strategy: str, state: State, x: Any, y: Any, who: Clients, epochs: Any) -> tuple[State, Metrics]:
    registered = who.size.shape[0]
    chosen = sample(plan, state, registered)
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.round), 1)
    take = partial(jax.tree.map, lambda leaf: jnp.asarray(leaf)[chosen])
    clients, own = take(who), take(state.own)
    everyone, all_count = _Everyone(Shared(x, y, key, state.params), state.common), jnp.ones(plan.sampled, bool)
    added, kept, _ = sum_clients(Client(plan), strategy, everyone, (clients, own, take(epochs)), all_count)
    if strategy not in ONE_PROGRAM:
        require_finite(kept["finite"], DIVERGED, chosen)
    finish = _finish if plan.rule.jit else _finish_here
    sizes = clients.size / jnp.mean(who.size)
    state, moved, diagnostics = finish(plan, registered, state, chosen, sizes, added, kept)
    barrier = jnp.full(2, jnp.nan)
    if plan.barrier:
        after = _Everyone(Shared(x, y, key, state.params), None)
        gaps, _, _ = sum_clients(Gap(plan), strategy, after, (clients, kept["score"]), all_count)
        barrier = gaps / plan.sampled
    loss = jnp.nanmean(jnp.where(jnp.isfinite(kept["finite"]), kept["loss"], jnp.inf))  # no epoch, no loss: NaN
    return state, Metrics(loss, moved, barrier[0], barrier[1], diagnostics)


@dataclasses.dataclass(frozen=True)
class Client:
    """One client's part of a round: train, measure, lift."""

    plan: Plan

    def __call__(self, everyone: _Everyone, client: tuple[Clients, PyTree, Any]) -> tuple[PyTree, dict[str, Any]]:
        """Contribution to the sum, and what is kept of the client."""
        plan, (who, own, epochs), shared = self.plan, client, everyone.shared
        epochs = plan.train.epochs if epochs is None else epochs
        train = dataclasses.replace(plan.train, epochs=epochs, squares=plan.rule.squares)
        if plan.variant is not None:
            optimizer = plan.variant.optimizer(train.optimizer, shared.params, own, everyone.common)
            train = dataclasses.replace(train, optimizer=optimizer)
        trained = train(shared, who)
        data = Examples(shared.x, shared.y, who.indices, who.size)
        steps = epochs * -(-who.size // min(train.batch_size, who.indices.shape[0]))
        update = Update(shared.params, trained.params, trained.squares, steps)
        key = jax.random.fold_in(jax.random.fold_in(shared.key, who.number), 1)
        contribution = lift(plan.rule, plan.rule.measure(update, data, key))
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.params)]).all()
        kept: dict[str, Any] = {"loss": trained.loss, "finite": jnp.where(finite, 1.0, jnp.nan)}
        if plan.variant is not None:
            kept["own"], kept["sent"] = plan.variant.after(update, own, everyone.common)
        if plan.barrier:
            kept["score"] = score(train.apply, train.likelihood, trained.params, data)
        if plan.rule.combine == "add":
            return contribution, kept
        return None, kept | {"stacked": contribution}


@dataclasses.dataclass(frozen=True)
class Gap:
    """The merged model on one client's data, against what the client's own one scored there."""

    plan: Plan

    def __call__(self, everyone: _Everyone, client: tuple[Clients, jax.Array]) -> tuple[jax.Array, None]:
        """[loss, accuracy], positive where the merged model is worse."""
        who, own = client
        data = Examples(everyone.shared.x, everyone.shared.y, who.indices, who.size)
        merged = score(self.plan.train.apply, self.plan.train.likelihood, everyone.shared.params, data)
        return (merged - own) * jnp.array([1, -1], own.dtype), None


def score(apply: Callable, likelihood: Likelihood, params: PyTree, data: Examples, batch_size: int = 256) -> jax.Array:
    """[loss, accuracy] of a model on one client's examples, means over them; accuracy NaN where there is no such."""

    def sums(batch: Any) -> jax.Array:
        outputs = apply(params, batch.x)
        rows = [jax.vmap(likelihood.nll)(outputs, batch.y)]
        if likelihood.correct:
            rows.append(jax.vmap(likelihood.correct)(outputs, batch.y).astype(rows[0].dtype))
        totals = jnp.stack([jnp.sum(jnp.where(batch.mask, row, 0)) for row in rows])
        return totals if len(rows) == 2 else jnp.append(totals, jnp.nan)

    return mean_over_batches(sums, data, batch_size)


def _finish_here(
    plan: Plan,
    registered: int,
    state: State,
    chosen: jax.Array,
    sizes: jax.Array,
    added: PyTree,
    kept: dict[str, Any],
) -> tuple[State, jax.Array, dict[str, Any]]:
    """The server's part of a round; `sizes` [sampled] of clients are relative to the mean of all registered."""
    rule, start = plan.rule, state.params
    merged = rule.solve(added if rule.combine == "add" else kept["stacked"], start)
    if merged.apply is not None:
        raise ValueError(f"rule: {rule.name} changes the network, so that the next round cannot start from its model")
    params, inner, common, own = in_types_of(start, merged).params, state.optimizer, state.common, state.own
    if plan.variant is not None:
        own = jax.tree.map(lambda all_, mine: all_.at[chosen].set(mine), own, kept["own"])
        sent = jax.tree.map(lambda leaf: jnp.tensordot(sizes.astype(leaf.dtype), leaf, 1) / plan.sampled, kept["sent"])
        params, common = plan.variant.server(params, common, sent, plan.sampled / registered)
    if plan.optimizer is not None:
        gradient = jax.tree.map(jnp.subtract, start, params)
        updates, inner = plan.optimizer.update(gradient, inner, start)
        params = optax.apply_updates(start, updates)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, params, start))
    return State(params, inner, state.round + 1, state.key, common, own), moved, merged.diagnostics


_finish = jax.jit(_finish_here, static_argnums=(0, 1))


def fraction(share: float, registered: int) -> int:
    """Clients in a round of partial participation: at least one.

    Raises:
        ValueError: a share outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"participation: got {share}, expected a share above 0, at most 1")
    return max(1, int(np.round(share * registered)))
