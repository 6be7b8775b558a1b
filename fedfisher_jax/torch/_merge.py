"""The merge of fine-tuned checkpoints' payloads."""

from collections.abc import Iterable
from typing import Any

from .._compat import standard_promotion
from ..merge import Merged, Payload, Rule, merge_payloads
from ..merge._fold import check_payload, combine, lift, merge_summary, require_squares

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
        merged = merge_payloads(rule, sent, start)
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
