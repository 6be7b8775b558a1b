"""Merging payloads as they come: memory is that of a sum or of a solver's vectors, and of a few payloads."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from .._compat import standard_promotion
from ..solve._objective import Objective
from ..solve._passes import Clients, Passes, objective_by_passes
from ..solve._products import Products, objective_of, together
from ._exact_sums import Sums, added, nothing, removed, rounded
from ._fold import check_payload, lift, merge_summary, require_squares
from ._rule import Merged, Rule, require_one_exchange, require_rule

PyTree = Any
CHUNK = 2**22  # bytes of payloads that a pass holds at a time, or one payload


def merge_one_by_one(rule: Rule, payloads: Iterable[Any] | Callable[[], Iterable[Any]], start: PyTree = None) -> Merged:
    """Merge payloads that need not be in memory together.

    By a rule that adds (FedAvg, Fisher merging, FedFisher with a diagonal, RegMean …) each is looked at once and then
    let go. Contributions are those of memory, but their sum is exact and rounded once: no order or grouping changes a
    bit, and the result may differ from that of `merge_payloads` by the rounding of its sum.

    Rules that stack payloads and solve a quadratic (FedFisher with Kronecker or low-rank Fishers, FedLPA, FedFish with
    Kronecker factors) go through all payloads again for each step of conjugate gradients; the result is that of
    `merge_payloads` to the solver's tolerance.

    Args:
        rule: one exchange.
        payloads: at least one, say from `payload.read_each`, in any order; a rule that stacks needs a list or the like,
            or a function that begins again: `lambda: (sent for sent, _ in payload.read_each(paths, start))`.
        start: the model that the clients were sent, where the rule reads it.

    Raises:
        ValueError: the rule needs all payloads at once, is several exchanges, payloads cannot be gone through again,
            one is refused as by `merge_payloads`, or an objective ends below zero.

    Example:
        >>> import jax.numpy as jnp, fedfisher_jax as ff
        >>> rule = ff.fedavg(lambda w, x: x @ w, ff.categorical())
        >>> sent = (ff.Payload(jnp.asarray(n), jnp.full(2, n)) for n in (1.0, 3.0))
        >>> ff.merge.merge_one_by_one(rule, sent).params.tolist()  # (1 · 1 + 3 · 3) / (1 + 3)
        [2.5, 2.5]
    """
    require_one_by_one(rule)
    if rule.combine == "stack" and not callable(payloads) and iter(payloads) is payloads:
        raise ValueError(f"payloads: got an iterator, and {rule.name} goes through them again, expected a function")
    begin = payloads if callable(payloads) else lambda: payloads
    first = sums = None
    for number, payload in enumerate(begin()):
        first = payload if first is None else first
        check_payload(payload, first, f"payloads[{number}]")
        if rule.combine == "add":
            sums = add_payload(rule, sums, payload, start)
    if first is None:
        raise ValueError("payloads: expected at least one, got none")
    if sums is None:
        objective = objective_by_passes(passes_of(rule, begin, start))
        return require_squares(rule, merge_objective(rule, objective, first.params, start))
    return merge_sums(rule, sums, contribution_shape(rule, first, start), first.params, start)


def require_one_by_one(rule: Rule) -> None:
    """Refuse a rule that needs all payloads at once, or that is several exchanges.

    Raises:
        ValueError: which rule, and why.
    """
    require_rule(rule)
    if rule.combine != "add" and not rule.passes:
        raise ValueError(f"rule: {rule.name} needs all payloads at once, expected one that adds, as fedavg does")
    require_one_exchange(rule)


def require_adding(rule: Rule) -> None:
    """Refuse a rule whose contributions do not add up, or that is several exchanges.

    Raises:
        ValueError: which rule, and why.
    """
    require_one_by_one(rule)
    if rule.combine != "add":
        raise ValueError(f"rule: {rule.name} stacks payloads, expected one that adds, as fedavg does")


def passes_of(rule: Rule, begin: Callable[[], Iterable[Any]], start: PyTree = None) -> Passes:
    """Make passes over the contributions of payloads that are sound.

    Args:
        rule: a stacking rule with `passes`.
        begin: begins a pass: the same payloads in the same order each time, none of which is kept.
        start: the model that the clients were sent, where the rule reads it.
    """

    def chunks() -> Iterator[Clients]:
        for some, real in _stacks(begin()):
            lifted = _lifted_stack(rule._replace(measure=None), some, start)
            yield Clients(lifted.weight * real.astype(lifted.weight.dtype), lifted.params, lifted.statistics)

    return Passes(chunks)


@standard_promotion
def merge_objective(rule: Rule, objective: Objective, params: PyTree, start: PyTree = None) -> Merged:
    """Merge by a stacking rule with `passes` from the objective of the contributions, in the types of `params`."""
    return merge_summary(rule, objective, params, start)


def merge_products(
    rule: Rule, products: Sequence[Products], clients: tuple[float, Objective] | None, start: PyTree
) -> Merged:
    """Merge regions whose curvature was cut, see `solve._products`, and further clients, in the types of the start.

    The objective is no sum of squares, and may end below zero.

    Args:
        rule: a stacking rule with `passes`.
        products: what each region kept.
        clients: the examples of the clients whose payloads are there, and their objective; None where there are none.
        start: the model that all were sent.
    """
    objectives = [objective_of(one) for one in products] + ([clients[1]] if clients else [])
    weights = [one.weight for one in products] + ([clients[0]] if clients else [])
    return merge_objective(rule, together(objectives, weights), start, start)


def _stacks(payloads: Iterable[Any]) -> Iterator[tuple[Any, np.ndarray]]:
    """Stack payloads a few at a time, on the host, with a mark of those that count.

    The last stack is filled up with copies that do not, so that programs for it are those of the others.
    """
    held, size, most = [], 0, 0
    for payload in payloads:
        held.append(payload)
        size += sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(payload))
        if size >= CHUNK:
            yield jax.tree.map(lambda *leaves: np.stack(leaves), *held), np.ones(len(held))
            held, size, most = [], 0, len(held)
    if held:
        filled = held + held[-1:] * (most - len(held))
        yield jax.tree.map(lambda *leaves: np.stack(leaves), *filled), np.arange(len(filled)) < len(held)


def add_payload(rule: Rule, sums: Sums | None, payload: Any, start: PyTree = None) -> Sums:
    """Add a payload's contribution to the exact sum of others; None begins one."""
    contribution = _contribution(rule, payload, start)
    return added(nothing(contribution) if sums is None else sums, contribution)


def remove_payload(rule: Rule, sums: Sums, payload: Any, start: PyTree = None) -> Sums:
    """Take a payload's contribution out of an exact sum that it is in."""
    return removed(sums, _contribution(rule, payload, start))


def _contribution(rule: Rule, payload: Any, start: PyTree) -> PyTree:
    return _lifted(rule._replace(measure=None), payload, start)  # measure's hash is not asked for


def contribution_shape(rule: Rule, payload: Any, start: PyTree = None) -> PyTree:
    """Find shapes and types of a payload's contribution; the payload may hold shapes in the place of arrays."""
    return jax.eval_shape(partial(lift, rule), payload, start)


def merge_sums(rule: Rule, sums: Sums, shape: PyTree, params: PyTree, start: PyTree = None) -> Merged:
    """Solve for the global model from the exact sum of contributions.

    Args:
        rule: one that adds.
        sums: the exact sum of all payloads' contributions.
        shape: from `contribution_shape`.
        params: a payload's parameters, for their types; None for those of the start.
        start: the model that the clients were sent, where the rule reads it.

    Raises:
        ValueError: an objective ends below zero.
    """
    total = rounded(sums, shape)
    if not rule.jit:
        return require_squares(rule, merge_summary(rule, total, params, start))
    merged = Merged(*_solved(rule._replace(measure=None), total, params, start))
    return require_squares(rule, merged._replace(diagnostics=jax.block_until_ready(merged.diagnostics)))


@partial(jax.jit, static_argnums=0)
def _lifted(rule: Rule, payload: Any, start: PyTree) -> PyTree:
    return lift(rule, payload, start)


@partial(jax.jit, static_argnums=0)
def _lifted_stack(rule: Rule, payloads: Any, start: PyTree) -> Any:
    return jax.vmap(lambda payload: lift(rule, payload, start))(payloads)


@partial(jax.jit, static_argnums=0)
def _solved(rule: Rule, total: PyTree, params: PyTree, start: PyTree) -> tuple[PyTree, dict[str, Any]]:
    merged = merge_summary(rule, total, params, start)
    if merged.apply is not None:
        raise ValueError(f"rule: {rule.name} changes the network, so it needs jit=False")
    return merged.params, merged.diagnostics
