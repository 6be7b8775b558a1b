"""Federation over rounds: sampled clients train from the server's model, a rule folds what they send, the model moves.

State in, state and metrics out. What a client does depends on the round's key and on its own number alone, so an
interrupted run goes on to the same result.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._compat import Tracer, standard_promotion
from .._trees import difference
from ..merge import exchanges
from ._cohort import Cohort, require_targets
from ._federation import Federation as Federation
from ._federation import RoundReport as RoundReport
from ._federation import State as State
from ._fold_clients import sum_clients
from ._map_clients import default_strategy
from ._round_clients import Everyone, Gap, Line, Remeasure, TrainAndMeasure, Trials
from ._round_clients import bits_up as bits_up
from ._round_clients import client_scores as client_scores
from ._round_server import choose, merge, merge_here, serve, serve_here, solve, solve_here
from ._simulate import Shared, require_finite

PyTree = Any
ONE_PROGRAM = ("sequential", "vectorised")
DIVERGED = "round's training (lower the learning rate?)"


@standard_promotion
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
    carry = exchanges(federation.rule)[0].carry
    carried = None if carry is None else carry.init(params)
    return State(params, inner, jnp.zeros((), jnp.int32), key, common, own, carried)


@standard_promotion
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


@standard_promotion
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


def _round(
    federation: Federation, strategy: str, state: State, cohort: Cohort, epochs: Any
) -> tuple[State, RoundReport]:
    registered = cohort.sizes.shape[0]
    chosen = sample(federation, state, registered)
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.round), 1)
    here = cohort.sample(chosen)
    take = partial(jax.tree.map, lambda leaf: jnp.asarray(leaf)[chosen])
    everyone, all_count = (
        Everyone(Shared(here.shared, key, state.params), state.common),
        jnp.ones(federation.sampled, bool),
    )
    clients = (here.members, take(state.own), take(epochs))
    added, kept, _ = sum_clients(TrainAndMeasure(federation), strategy, everyone, clients, all_count)
    if strategy not in ONE_PROGRAM:
        require_finite(kept["finite"], DIVERGED, here.members.number)
    sizes = here.sizes / jnp.mean(cohort.sizes)
    merged = (merge if federation.jit else merge_here)(federation, registered, state, chosen, sizes, added, kept)
    params, diagnostics = merged.params, merged.diagnostics
    for number, part in enumerate(exchanges(federation.rule)[1:], start=1):
        again = Remeasure(part, number), strategy, Shared(here.shared, key, params), here.members, all_count
        added, stacked, _ = sum_clients(*again)
        solved = (solve if part.jit else solve_here)(part, added if part.combine == "add" else stacked, params)
        params, diagnostics = solved[0], diagnostics | {part.name: solved[1]}
    start = state.params
    state, moved = (serve if federation.jit else serve_here)(federation, state, params, merged, kept["length"])
    if federation.lengths:
        line = Line(start, difference(state.params, start))
        searched = Trials(federation), strategy, Shared(here.shared, key, line), here.members, all_count
        params, moved, diagnostics["line_search"] = choose(federation, line, sum_clients(*searched)[0])
        state = state._replace(params=params)
    barrier = jnp.full(2, jnp.nan)
    if federation.barrier:
        after = Everyone(Shared(here.shared, key, state.params), None)
        gaps, _, _ = sum_clients(Gap(federation), strategy, after, (here.members, kept["score"]), all_count)
        barrier = gaps / federation.sampled
    loss = jnp.nanmean(jnp.where(jnp.isfinite(kept["finite"]), kept["loss"], jnp.inf))  # no epoch, no loss: NaN
    return state, RoundReport(loss, moved, barrier[0], barrier[1], diagnostics)


def fraction(share: float, registered: int) -> int:
    """Number of clients in a round of partial participation, at least one.

    Raises:
        ValueError: a share outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"participation: got {share}, expected a share above 0, at most 1")
    return max(1, int(np.round(share * registered)))
