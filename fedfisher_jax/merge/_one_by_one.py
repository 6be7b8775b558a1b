"""Merging payloads as they come: memory is that of their sum and of two payloads, however many there are."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ._rule import Merged, Rule, check_payload, exchanges, lift, merge_summary

PyTree = Any


def merge_one_by_one(rule: Rule, payloads: Iterable[Any], start: PyTree = None) -> Merged:
    """Merge payloads by a rule that adds; each is looked at once and then let go.

    Args:
        rule: one exchange whose contributions add up (FedAvg, Fisher merging, FedFisher with a diagonal, RegMean …).
        payloads: at least one, say from `payload.read_each`; their order is that of the sum.
        start: the model that the clients were sent, where the rule reads it.

    Raises:
        ValueError: the rule stacks payloads, is several exchanges, or a payload is refused as by `merge_payloads`.

    Example:
        >>> import jax.numpy as jnp, fedfisher_jax as ff
        >>> rule = ff.fedavg(lambda w, x: x @ w, ff.categorical())
        >>> sent = (ff.Payload(jnp.asarray(n), jnp.full(2, n)) for n in (1.0, 3.0))
        >>> ff.merge.merge_one_by_one(rule, sent).params.tolist()  # (1 · 1 + 3 · 3) / (1 + 3)
        [2.5, 2.5]
    """
    if rule.combine != "add":
        raise ValueError(f"rule: {rule.name} needs all payloads at once, expected one that adds, as fedavg does")
    if len(exchanges(rule)) > 1:
        raise ValueError(f"rule: got {rule.name}, which is {len(exchanges(rule))} exchanges, expected one of its parts")
    same = rule._replace(measure=None)  # whose hash is not asked for
    first = total = None
    for number, payload in enumerate(payloads):
        first = payload if first is None else first
        check_payload(payload, first, f"payloads[{number}]")
        if total is None:
            shapes = jax.eval_shape(partial(lift, same), payload, start)
            total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total = _added(same, total, payload, start)
    if first is None:
        raise ValueError("payloads: expected at least one, got none")
    if not rule.jit:
        return merge_summary(rule, total, first.params, start)
    return Merged(*_solved(same, total, first.params, start))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _added(rule: Rule, total: PyTree, payload: Any, start: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, total, lift(rule, payload, start))


@partial(jax.jit, static_argnums=0)
def _solved(rule: Rule, total: PyTree, params: PyTree, start: PyTree) -> tuple[PyTree, dict[str, Any]]:
    merged = merge_summary(rule, total, params, start)
    if merged.apply is not None:
        raise ValueError(f"rule: {rule.name} changes the network, so it needs jit=False")
    return merged.params, merged.diagnostics
