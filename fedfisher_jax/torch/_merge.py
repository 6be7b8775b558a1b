"""The merge of fine-tuned checkpoints' payloads."""

from collections.abc import Sequence
from typing import Any

from ..merge import Merged, Payload, Rule, merge_payloads

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


def merge(rule: Rule, payloads: Sequence[Payload], start: PyTree = None) -> Merged:
    """Merge checkpoints by the payloads that were measured of them.

    As `merge_payloads`, but that a single payload's parameters come out bit for bit: the minimiser of one client's
    objective is its model, and sums and quotients of weights would only round it. Parts that nobody trained belong
    into the function, by `ff.trainable`: rules may move parameters on which all payloads agree.

    Args:
        rule: one of `RULES`.
        payloads: at least one.
        start: the model that all were fine-tuned from, where the rule reads it.

    Raises:
        ValueError: another rule, or as `merge_payloads`.
    """
    if rule.name not in RULES:
        raise ValueError(f"rule: got {rule.name}, expected one of {', '.join(RULES)}")
    merged = merge_payloads(rule, payloads, start)
    return merged if len(payloads) > 1 else merged._replace(params=payloads[0].params)
