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

from .._compat import Tracer
from .._examples import Examples, mean_over_batches
from .._likelihood import Likelihood
from .._trees import difference, in_types_of, weighted_sum, widened
from ..merge import Rule, Update, exchanges, lift
from ._cohort import Client, Cohort, require_targets, with_examples
from ._fold_clients import sum_clients
from ._map_clients import default_strategy
from ._simulate import LocalTraining, MeasureClient, Shared, require_finite
from ._variants import Variant

PyTree = Any
ONE_PROGRAM = ("sequential", "vectorised")
DIVERGED = "round's training (lower the learning rate?)"
MEASURE = 2**31 - 1  # what a client's key is folded with for its measures; epochs are folded with 0, 1, …


class State(NamedTuple):
    """What the server keeps between rounds."""

    params: PyTree
    optimizer: PyTree  # of the server
    round: Any  # rounds done
    key: Any
    common: PyTree = None  # what a variant of local training shares with all clients
    own: PyTree = None  # what it keeps for each registered client: [M, ...]


class RoundReport(NamedTuple):
    """What one round did.

    Attributes:
        loss: the sampled clients' training loss over their last local epoch, mean over clients, in nats.
        moved: l2 norm of the step from the round's start to its end.
        barrier_loss: Client-Server Barrier, mean over sampled clients of the merged model's loss on the client's data
            minus its own model's (nats per example, lower is better); NaN unless asked for.
        barrier_accuracy: the client's own model's accuracy minus the merged one's (lower is better).
        diagnostics: what the rule's solve says of itself, by name.
    """

    loss: Any
    moved: Any
    barrier_loss: Any
    barrier_accuracy: Any
    diagnostics: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Federation:
    """The settings of a federation; the same object between rounds, or it is traced again.

    Attributes:
        training: model, likelihood, optimiser, epochs and batch size of local training (0 epochs: none).
        rule: how a round is merged; one made by `then` is several exchanges in each round.
        sampled: clients in a round, drawn without replacement.
        optimizer: the server's optimiser, whose gradient is the start minus the merged model (FedOpt, arXiv
            2003.00295); None takes the merged model as it is.
        variant: a variant of local training (FedProx, SCAFFOLD, FedDyn); None is plain training.
        barrier: measure the Client-Server Barrier, two more passes over the sampled clients' data.
    """

    training: LocalTraining
    rule: Rule
    sampled: int
    optimizer: optax.GradientTransformation | None = None
    variant: Variant | None = None
    barrier: bool = False

    @property
    def jit(self) -> bool:
        """Whether every exchange of a round can be compiled."""
        return all(part.jit for part in exchanges(self.rule))


def init(federation: Federation, params: PyTree, registered: int, key: jax.Array) -> State:
    """Make the state before the first round.

    Args:
        federation: the settings.
        params: the parameters that the first round starts from.
        registered: number of registered clients, M.
        key: random key of all rounds.

    Raises:
        ValueError: more clients sampled than registered, or none.
    """
    if not 1 <= federation.sampled <= registered:
        raise ValueError(f"sampled: got {federation.sampled}, expected 1 to {registered}, the registered clients")
    params = jax.tree.map(jnp.asarray, params)
    common = own = None
    if federation.variant is not None:
        common = federation.variant.common(params)
        own = jax.tree.map(
            lambda leaf: jnp.zeros((registered, *leaf.shape), leaf.dtype), federation.variant.own(params)
        )
    inner = None if federation.optimizer is None else federation.optimizer.init(params)
    return State(params, inner, jnp.zeros((), jnp.int32), key, common, own)


def step(
    federation: Federation,
    state: State,
    cohort: Cohort,
    *,
    epochs: Any = None,
    strategy: str | None = None,
) -> tuple[State, RoundReport]:
    """Run one round.

    With the strategies "sequential" and "vectorised" it is one jitted program (and pure: `jit`, `scan` it); "threads"
    and "devices" are one for the clients and one for the server.

    Args:
        federation: the settings.
        state: the state before the round.
        cohort: all registered clients; only the sampled ones' rows are used.
        epochs: [M] local epochs of each registered client; default `federation.training.epochs` for all.
        strategy: how clients share the machine, see `map_clients`; default that of the platform.

    Raises:
        ValueError: the rule changes the network, so that its result cannot be broadcast; unknown strategy; a client's
            model is not finite, by "threads" and "devices" alone. In one program nothing can be raised: then
            the report's `loss` is infinite and its `moved` is not finite.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, optax, fedfisher_jax as ff
        >>> linear, likelihood = (lambda params, x: x @ params), ff.categorical()
        >>> clients = ff.cohort(jnp.eye(6), jnp.arange(6) % 2, [np.arange(3), np.arange(3, 6)])
        >>> training = ff.LocalTraining(linear, likelihood, optax.sgd(1.0), epochs=2, batch_size=3)
        >>> federation = ff.Federation(training, ff.fedavg(linear, likelihood), sampled=2)
        >>> state = ff.rounds.init(federation, jnp.zeros((6, 2)), 2, jax.random.key(0))
        >>> state, report = ff.rounds.step(federation, state, clients, strategy="vectorised")
        >>> int(state.round), bool(report.moved > 0)
        (1, True)
    """
    _require_fit(federation, state, cohort, epochs)
    strategy = default_strategy() if strategy is None else strategy
    if strategy in ONE_PROGRAM and federation.jit:
        return _one_program(federation, strategy, state, cohort, epochs)
    return _round(federation, strategy, state, cohort, epochs)


def scan(
    federation: Federation,
    state: State,
    cohort: Cohort,
    rounds: int,
    *,
    epochs: Any = None,
    strategy: str = "sequential",
) -> tuple[State, RoundReport]:
    """Run several rounds as one program, the report with a leading axis of rounds; arguments as in `step`.

    Raises:
        ValueError: a strategy or a rule that is more than one program.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, optax, fedfisher_jax as ff
        >>> linear, likelihood = (lambda params, x: x @ params), ff.categorical()
        >>> clients = ff.cohort(jnp.eye(6), jnp.arange(6) % 2, [np.arange(3), np.arange(3, 6)])
        >>> training = ff.LocalTraining(linear, likelihood, optax.sgd(1.0), epochs=2, batch_size=3)
        >>> federation = ff.Federation(training, ff.fedavg(linear, likelihood), sampled=2)
        >>> state = ff.rounds.init(federation, jnp.zeros((6, 2)), 2, jax.random.key(0))
        >>> state, report = ff.rounds.scan(federation, state, clients, 3)
        >>> int(state.round), bool(report.loss[2] < report.loss[0])
        (3, True)
    """
    if strategy not in ONE_PROGRAM or not federation.jit:
        raise ValueError(
            f"strategy: got {strategy} with rule {federation.rule.name}, expected {' or '.join(ONE_PROGRAM)}"
        )
    _require_fit(federation, state, cohort, epochs)
    return _scan(federation, strategy, rounds, state, cohort, epochs)


def _require_fit(federation: Federation, state: State, cohort: Cohort, epochs: Any) -> None:
    """Refuse clients that do not fit the state; concrete targets are looked at before the first round."""
    registered = cohort.sizes.shape[0]
    if epochs is not None and jnp.shape(epochs) != (registered,):
        raise ValueError(f"epochs: got shape {jnp.shape(epochs)}, expected ({registered},), one for each client")
    remembered = {leaf.shape[0] for leaf in jax.tree.leaves(state.own)}
    if remembered - {registered}:
        raise ValueError(f"cohort: got {registered} clients, expected the {remembered.pop()} that were registered")
    if not isinstance(state.round, Tracer) and int(state.round) == 0:
        training = federation.training
        require_targets(training.likelihood, training.apply, state.params, cohort)


def sample(federation: Federation, state: State, registered: int) -> jax.Array:
    """Draw the places [sampled] of the clients that take part in the next round."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.round), 0)
    return jax.random.choice(key, registered, (federation.sampled,), replace=False)


@partial(jax.jit, static_argnums=(0, 1))
def _one_program(federation: Federation, strategy: str, state: State, *data: Any) -> tuple[State, RoundReport]:
    return _round(federation, strategy, state, *data)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _scan(federation: Federation, strategy: str, rounds: int, state: State, *data: Any) -> tuple[State, RoundReport]:
    return jax.lax.scan(lambda s, _: _round(federation, strategy, s, *data), state, None, rounds)


class _Everyone(NamedTuple):
    """What the sampled clients read."""

    shared: Shared
    common: PyTree


def _round(
    federation: Federation, strategy: str, state: State, cohort: Cohort, epochs: Any
) -> tuple[State, RoundReport]:
    registered = cohort.sizes.shape[0]
    chosen = sample(federation, state, registered)
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.round), 1)
    here = cohort.sample(chosen)
    take = partial(jax.tree.map, lambda leaf: jnp.asarray(leaf)[chosen])
    everyone, all_count = (
        _Everyone(Shared(here.shared, key, state.params), state.common),
        jnp.ones(federation.sampled, bool),
    )
    clients = (here.members, take(state.own), take(epochs))
    added, kept, _ = sum_clients(TrainAndMeasure(federation), strategy, everyone, clients, all_count)
    if strategy not in ONE_PROGRAM:
        require_finite(kept["finite"], DIVERGED, chosen)
    sizes = here.sizes / jnp.mean(cohort.sizes)
    merged = (_merge if federation.jit else _merge_here)(federation, registered, state, chosen, sizes, added, kept)
    params, diagnostics = merged.params, merged.diagnostics
    for number, part in enumerate(exchanges(federation.rule)[1:], start=1):
        again = Remeasure(part, number), strategy, Shared(here.shared, key, params), here.members, all_count
        added, stacked, _ = sum_clients(*again)
        solved = (_solve if part.jit else _solve_here)(part, added if part.combine == "add" else stacked, params)
        params, diagnostics = solved[0], diagnostics | {part.name: solved[1]}
    state, moved = (_serve if federation.jit else _serve_here)(federation, state, params, merged.common, merged.own)
    barrier = jnp.full(2, jnp.nan)
    if federation.barrier:
        after = _Everyone(Shared(here.shared, key, state.params), None)
        gaps, _, _ = sum_clients(Gap(federation), strategy, after, (here.members, kept["score"]), all_count)
        barrier = gaps / federation.sampled
    loss = jnp.nanmean(jnp.where(jnp.isfinite(kept["finite"]), kept["loss"], jnp.inf))  # no epoch, no loss: NaN
    return state, RoundReport(loss, moved, barrier[0], barrier[1], diagnostics)


@dataclasses.dataclass(frozen=True)
class TrainAndMeasure:
    """One client's part of a round's first exchange: train, measure, lift."""

    federation: Federation

    def __call__(self, everyone: _Everyone, client: tuple[Client, PyTree, Any]) -> tuple[PyTree, dict[str, Any]]:
        """Return the contribution to the sum, and what is kept of the client."""
        federation, (who, own, epochs), shared = self.federation, client, everyone.shared
        rule = exchanges(federation.rule)[0]
        epochs = federation.training.epochs if epochs is None else epochs
        training = dataclasses.replace(federation.training, epochs=epochs, squares=rule.squares)
        if federation.variant is not None:
            optimizer = federation.variant.optimizer(training.optimizer, shared.start, own, everyone.common)
            training = dataclasses.replace(training, optimizer=optimizer)
        trained = training(shared, who)
        update = Update(trained.params, shared.start, trained.squares, training.steps(who.size))
        key = jax.random.fold_in(jax.random.fold_in(shared.key, who.number), MEASURE)
        payload = with_examples(shared.cohort, who, lambda data: rule.measure(update, data, key))
        contribution = lift(rule, payload, shared.start)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.params)]).all()
        kept: dict[str, Any] = {"loss": trained.loss, "finite": jnp.where(finite, 1.0, jnp.nan)}
        if federation.variant is not None:
            kept["own"], kept["sent"] = federation.variant.after(update, own, everyone.common)
        if federation.barrier:
            kept["score"] = _client_scores(federation, shared, who, trained.params)
        if rule.combine == "add":
            return contribution, kept
        return None, kept | {"stacked": contribution}


@dataclasses.dataclass(frozen=True)
class Remeasure:
    """One client's part of a further exchange: measure the model merged so far, lift."""

    rule: Rule
    number: int  # of the exchange, which its random draws depend on

    def __call__(self, shared: Shared, who: Client) -> tuple[PyTree, PyTree]:
        """Return the contribution to the sum, or to the stack."""
        apart = shared._replace(key=jax.random.fold_in(shared.key, MEASURE - self.number))
        payload = MeasureClient(self.rule.measure)(apart, (who, Update(None)))
        contribution = lift(self.rule, payload, shared.start)
        return (contribution, None) if self.rule.combine == "add" else (None, contribution)


@dataclasses.dataclass(frozen=True)
class Gap:
    """The merged model on one client's data, against what the client's own one scored there."""

    federation: Federation

    def __call__(self, everyone: _Everyone, client: tuple[Client, jax.Array]) -> tuple[jax.Array, None]:
        """Return the gaps [loss, accuracy], positive where the merged model is worse."""
        who, own = client
        merged = _client_scores(self.federation, everyone.shared, who, everyone.shared.start)
        return (merged - own) * jnp.array([1, -1], own.dtype), None


def _client_scores(federation: Federation, shared: Shared, who: Client, params: PyTree) -> jax.Array:
    training = federation.training
    return with_examples(
        shared.cohort, who, lambda data: client_scores(training.apply, training.likelihood, params, data)
    )


def client_scores(
    apply: Callable, likelihood: Likelihood, params: PyTree, data: Examples, batch_size: int = 256
) -> jax.Array:
    """Score a model on one client's examples: mean [loss in nats, accuracy]; accuracy is NaN where there is none."""

    def sums(batch: Any) -> jax.Array:
        outputs = widened(apply(params, batch.x))
        rows = [jax.vmap(likelihood.nll)(outputs, batch.y)]
        if likelihood.correct:
            rows.append(jax.vmap(likelihood.correct)(outputs, batch.y).astype(rows[0].dtype))
        totals = jnp.stack([jnp.sum(jnp.where(batch.mask, row, 0)) for row in rows])
        return totals if len(rows) == 2 else jnp.append(totals, jnp.nan)

    return mean_over_batches(sums, data, batch_size)


class _RoundMerged(NamedTuple):
    """The first exchange's model, and what a variant remembers."""

    params: PyTree
    diagnostics: dict[str, Any]
    common: PyTree
    own: PyTree


def _merge_here(
    federation: Federation, registered: int, state: State, chosen: Any, sizes: Any, added: PyTree, kept: dict[str, Any]
) -> _RoundMerged:
    """The server's part of the first exchange; `sizes` [sampled] are relative to the mean of all registered."""
    rule = exchanges(federation.rule)[0]
    params, diagnostics = _solve_here(rule, added if rule.combine == "add" else kept["stacked"], state.params)
    common, own = state.common, state.own
    if federation.variant is not None:
        own = jax.tree.map(lambda all_, mine: all_.at[chosen].set(mine), own, kept["own"])
        sent = jax.tree.map(lambda leaf: leaf / federation.sampled, weighted_sum(sizes, kept["sent"]))
        params, common = federation.variant.server(params, common, sent, federation.sampled / registered)
    return _RoundMerged(params, diagnostics, common, own)


def _solve_here(rule: Rule, summary: PyTree, start: PyTree) -> tuple[PyTree, dict[str, Any]]:
    merged = rule.solve(summary, start)
    if merged.apply is not None:
        raise ValueError(f"rule: {rule.name} changes the network, so that the next round cannot start from its model")
    return in_types_of(merged.params, start), merged.diagnostics


def _serve_here(
    federation: Federation, state: State, params: PyTree, common: PyTree, own: PyTree
) -> tuple[State, jax.Array]:
    """The server's step to the merged model, and its length."""
    start, inner = state.params, state.optimizer
    if federation.optimizer is not None:
        updates, inner = federation.optimizer.update(difference(start, params), inner, start)
        params = optax.apply_updates(start, updates)
    moved = optax.tree.norm(difference(params, start))
    return State(params, inner, state.round + 1, state.key, common, own), moved


_merge = jax.jit(_merge_here, static_argnums=(0, 1))
_solve = jax.jit(_solve_here, static_argnums=0)
_serve = jax.jit(_serve_here, static_argnums=0)


def fraction(share: float, registered: int) -> int:
    """Number of clients in a round of partial participation, at least one.

    Raises:
        ValueError: a share outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"participation: got {share}, expected a share above 0, at most 1")
    return max(1, int(np.round(share * registered)))
