"""The merge of fine-tuned checkpoints' payloads."""

from collections.abc import Iterable, Iterator
from typing import Any

from ..merge import Merged, Payload, Rule, merge_one_by_one, merge_payloads

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


def merge(rule: Rule, payloads: Iterable[Payload], start: PyTree = None) -> Merged:
    """Merge checkpoints by the payloads that were measured of them.

    As `merge_payloads`, but that a single payload's parameters come out bit for bit: the minimiser of one client's
    objective is its model, and sums and quotients of weights would only round it. Parts that nobody trained belong
    into the function, by `ff.trainable`: rules may move parameters on which all payloads agree.

    Args:
        rule: one of `RULES`.
        payloads: at least one; a rule that adds (all but fedfisher-kfac and -lowrank) lets each go before the next.
        start: the model that all were fine-tuned from, where the rule reads it.

    Raises:
        ValueError: another rule, or as `merge_payloads`.
    """
    if rule.name not in RULES:
        raise ValueError(f"rule: got {rule.name}, expected one of {', '.join(RULES)}")
    sent: list[PyTree] = []

    def noted() -> Iterator[Payload]:
        for payload in payloads:
            sent.append(None if sent else payload.params)
            yield payload

    if rule.combine == "add":
        merged = merge_one_by_one(rule, noted(), start)
    else:
        merged = merge_payloads(rule, list(noted()), start)
    return merged if len(sent) > 1 else merged._replace(params=sent[0])
