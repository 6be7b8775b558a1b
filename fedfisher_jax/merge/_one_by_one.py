"""Merging payloads as they come: memory is that of their sum and of two payloads, however many there are."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax

from ._exact_sums import Sums, added, nothing, rounded
from ._rule import Merged, Rule, check_payload, exchanges, lift, merge_summary, require_squares

PyTree = Any


def merge_one_by_one(rule: Rule, payloads: Iterable[Any], start: PyTree = None) -> Merged:
    """Merge payloads by a rule that adds; each is looked at once and then let go.

    Contributions are those of memory, but their sum is exact and rounded once: no order or grouping changes a bit, and
    the result may differ from that of `merge_payloads` by the rounding of its sum.

    Args:
        rule: one exchange whose contributions add up (FedAvg, Fisher merging, FedFisher with a diagonal, RegMean …).
        payloads: at least one, say from `payload.read_each`, in any order.
        start: the model that the clients were sent, where the rule reads it.

    Raises:
        ValueError: the rule stacks payloads, is several exchanges, a payload is refused as by `merge_payloads`, or an
            objective ends below zero.

    Example:
        >>> import jax.numpy as jnp, fedfisher_jax as ff
        >>> rule = ff.fedavg(lambda w, x: x @ w, ff.categorical())
        >>> sent = (ff.Payload(jnp.asarray(n), jnp.full(2, n)) for n in (1.0, 3.0))
        >>> ff.merge.merge_one_by_one(rule, sent).params.tolist()  # (1 · 1 + 3 · 3) / (1 + 3)
        [2.5, 2.5]
    """
    require_adding(rule)
    first = sums = None
    for number, payload in enumerate(payloads):
        first = payload if first is None else first
        check_payload(payload, first, f"payloads[{number}]")
        sums = add_payload(rule, sums, payload, start)
    if first is None or sums is None:
        raise ValueError("payloads: expected at least one, got none")
    return merge_sums(rule, sums, contribution_shape(rule, first, start), first.params, start)


def require_adding(rule: Rule) -> None:
    """Refuse a rule whose contributions do not add up, or that is several exchanges.

    Raises:
        ValueError: which rule, and why.
    """
    if rule.combine != "add":
        raise ValueError(f"rule: {rule.name} needs all payloads at once, expected one that adds, as fedavg does")
    if len(exchanges(rule)) > 1:
        raise ValueError(f"rule: got {rule.name}, which is {len(exchanges(rule))} exchanges, expected one of its parts")


def add_payload(rule: Rule, sums: Sums | None, payload: Any, start: PyTree = None) -> Sums:
    """Add a payload's contribution to the exact sum of others; None begins one."""
    contribution = _lifted(rule._replace(measure=None), payload, start)  # whose hash is not asked for
    return added(nothing(contribution) if sums is None else sums, contribution)


def contribution_shape(rule: Rule, payload: Any, start: PyTree = None) -> PyTree:
    """Shapes and types of a payload's contribution; the payload may hold shapes in the place of arrays."""
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
def _solved(rule: Rule, total: PyTree, params: PyTree, start: PyTree) -> tuple[PyTree, dict[str, Any]]:
    merged = merge_summary(rule, total, params, start)
    if merged.apply is not None:
        raise ValueError(f"rule: {rule.name} changes the network, so it needs jit=False")
    return merged.params, merged.diagnostics
