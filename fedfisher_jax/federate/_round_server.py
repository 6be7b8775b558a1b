"""The server's part of a round: solve each exchange, remember what a variant needs, step, choose the step's length."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._trees import difference, in_types_of, weighted_sum
from ..merge import Rule, exchanges
from ..merge._sent import in_models_types
from ._federation import Federation, State
from ._round_clients import Line

PyTree = Any


class RoundMerged(NamedTuple):
    """The first exchange's model, and what a variant remembers."""

    params: PyTree
    diagnostics: dict[str, Any]
    common: PyTree
    own: PyTree
    carried: PyTree


def merge_here(
    federation: Federation, registered: int, state: State, chosen: Any, sizes: Any, added: PyTree, kept: dict[str, Any]
) -> RoundMerged:
    """The server's part of the first exchange; `sizes` [sampled] are relative to the mean of all registered."""
    rule = exchanges(federation.rule)[0]
    summary, carried = added if rule.combine == "add" else kept["stacked"], state.carried
    if rule.carry is None:
        params, diagnostics = solve_here(rule, summary, state.params)
    else:
        found, carried = rule.carry.solve(summary, state.params, carried)
        params, diagnostics = in_types_of(found.params, state.params), found.diagnostics
    common, own = state.common, state.own
    if federation.variant is not None:
        own = jax.tree.map(lambda all_, mine: all_.at[chosen].set(mine), own, kept["own"])
        sent = jax.tree.map(lambda leaf: leaf / federation.sampled, weighted_sum(sizes, kept["sent"]))
        params, common = federation.variant.server(params, common, sent, federation.sampled / registered)
    return RoundMerged(params, diagnostics, common, own, carried)


def solve_here(rule: Rule, summary: PyTree, start: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Solve a round's summary; the merged parameters and diagnostics.

    Raises:
        ValueError: the rule makes another network.
    """
    merged = rule.solve(summary, start)
    if merged.apply is not None:
        raise ValueError(f"rule: {rule.name} changes the network, so that the next round cannot start from its model")
    return in_models_types(merged.params, start), merged.diagnostics


def serve_here(
    federation: Federation, state: State, params: PyTree, merged: RoundMerged, lengths: jax.Array
) -> tuple[State, jax.Array]:
    """The server's step to the merged model, and its length; `lengths` [sampled] are those of the clients' steps."""
    start, inner = state.params, state.optimizer
    if federation.optimizer is not None:
        update = optax.with_extra_args_support(federation.optimizer).update
        together = jnp.sqrt(jnp.sum(lengths**2))
        updates, inner = update(difference(start, params), inner, start, clients_length=together)
        params = optax.apply_updates(start, updates)
    moved = optax.tree.norm(difference(params, start))
    return State(params, inner, state.round + 1, state.key, merged.common, merged.own, merged.carried), moved


def choose_here(
    federation: Federation, line: Line, added: dict[str, jax.Array]
) -> tuple[PyTree, jax.Array, dict[str, jax.Array]]:
    """Take the model of the least loss over the sampled clients' examples, and tell how far it is from the start.

    `added` are sums of `Trials`. A loss that is not finite is no choice, unless none is.
    """
    losses = added["loss"] / added["weight"]
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    length = jnp.asarray(federation.lengths)[jnp.argmin(losses)]
    return line.at(length), length * optax.tree.norm(line.step), {"length": length, "losses": losses}


merge = jax.jit(merge_here, static_argnums=(0, 1))
solve = jax.jit(solve_here, static_argnums=0)
serve = jax.jit(serve_here, static_argnums=0)
choose = jax.jit(choose_here, static_argnums=0)
