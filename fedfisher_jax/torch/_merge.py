"""The merge of fine-tuned checkpoints' payloads."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax

from .._compat import standard_promotion
from .._trees import stack
from ..curvature import Kronecker
from ..federate import merge_clients
from ..merge import Merged, Payload, Rule, merge_payloads
from ..merge._fold import check_payload, combine, lift, merge_summary, require_squares, require_taken

PyTree = Any
RULES = (
    "fedavg",
    "fisher-merge",
    "fedfisher-diag",
    "fedfisher-kfac",
    "fedfisher-full",
    "fedfisher-lowrank",
    "regmean",
    "regmean-kron",
)
"""The rules for which the merge of one client is that client's model."""


@standard_promotion
def merge(rule: Rule, payloads: Iterable[Payload], start: PyTree = None) -> Merged:
    """Merge checkpoints by the payloads that were measured of them.

    As `merge_payloads`, but that a single payload's parameters come out bit for bit: the minimiser of one client's
    objective is its model, and sums and quotients of weights would only round it. Parts that nobody trained belong
    into the function, by `ff.trainable`: rules may move parameters on which all payloads agree.

    Args:
        rule: one of `RULES`.
        payloads: at least one; a rule that adds (all but fedfisher-kfac and -lowrank) keeps the first, and of the
            others one at a time.
        start: the model that all were fine-tuned from, where the rule reads it.

    Raises:
        ValueError: another rule, or as `merge_payloads`.
    """
    if rule.name not in RULES:
        raise ValueError(f"rule: got {rule.name}, expected one of {', '.join(RULES)}")
    if rule.combine != "add":
        sent = list(payloads)
        apart = sent and all(isinstance(payload.statistics, Kronecker) for payload in sent)
        merged = _layer_by_layer(rule, sent) if apart else merge_payloads(rule, sent, start)
        return merged if len(sent) > 1 else merged._replace(params=sent[0].params)
    first = total = None
    count = 0
    for payload in payloads:  # not `merge_one_by_one`, whose exact sums take four times the memory
        first = payload if first is None else first
        check_payload(payload, first, f"payloads[{count}]")
        part = lift(rule, payload, start)
        total = part if total is None else combine(rule, total, part)
        count += 1
        del payload, part
    if first is None:
        raise ValueError("payloads: expected at least one, got none")
    merged = require_squares(rule, merge_summary(rule, total, first.params, start))
    return merged if count > 1 else merged._replace(params=first.params)


def _layer_by_layer(rule: Rule, payloads: Sequence[Payload]) -> Merged:
    """Merge Kronecker factors as `merge_payloads` does, but that no solver's vector is longer than a layer.

    Layers do not couple, so the minimiser is the same. The objectives among the diagnostics are
    sums, and the others are the worst of all layers.
    """
    for number, payload in enumerate(payloads):
        require_taken(rule, payload)
        check_payload(payload, payloads[0], f"payloads[{number}]")
    each = [jax.tree.leaves(payload.params) for payload in payloads]
    merged, found = list(each[0]), []
    for parts in zip(*[payload.statistics.parts() for payload in payloads], strict=True):
        numbers = parts[0][0]
        some = [
            payload._replace(params=tuple(leaves[n] for n in numbers), statistics=part)
            for payload, leaves, (_, part) in zip(payloads, each, parts, strict=True)
        ]
        params, diagnostics, *_ = merge_clients(rule, stack(some))
        for n, value in zip(numbers, params, strict=True):
            merged[n] = value
        found.append(diagnostics)
    worst = {"objective_start": sum, "objective_end": sum, "converged": all}
    diagnostics = {name: worst.get(name, max)(one[name] for one in found) for name in found[0]}
    return Merged(jax.tree.structure(payloads[0].params).unflatten(merged), diagnostics)
