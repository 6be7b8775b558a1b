"""Merging what nodes sent, none of which is trusted: whoever's payload is refused or cannot be merged is left out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import payload
from .._trees import stack
from ..curvature import Layer
from ..federate import merge_clients
from ..merge import Merged, Payload, Rule
from ..merge._fold import require_taken
from ..merge._sent import model_of
from ..payload import Header, Limits, PayloadError

PyTree = Any


class Outcome(NamedTuple):
    """What a server makes of the replies of one exchange."""

    merged: Merged | None  # None where fewer than the quorum can be merged
    headers: dict[int, Header]  # node → what its payload says of itself, of those that were merged
    left_out: dict[int, str]  # node → why


def merge_replies(
    rule: Rule,
    start: PyTree,
    replies: Mapping[int, bytes],
    *,
    layers: Sequence[Layer] | None = None,
    limits: Limits = Limits(),
    quorum: int = 1,
) -> Outcome:
    """Merge the payloads of those nodes whose files are sound, of one kind, and can be merged.

    Nothing is decoded before headers are compared. Payloads of the commonest kind are merged; of two equally common
    ones, those that were measured as the rule measures; of these, the first that can be merged.

    Args:
        rule: one exchange.
        start: what the nodes were sent: a model, or more between exchanges.
        replies: node → the bytes of a payload file.
        layers: the model's, from `capture`; payloads' layers must be among them.
        limits: caps on payloads.
        quorum: fewest payloads that are merged.
    """
    how = {"layers": layers, "limits": limits, "start": payload.fingerprint(start)}
    model = model_of(start)
    left_out: dict[int, str] = {}
    headers: dict[int, Header] = {}
    for node in sorted(replies):
        try:
            headers[node] = payload.header_of(replies[node], model, file=f"node {node}", **how)
            _require_rule(headers[node], rule, node)
        except Exception as error:  # whatever it is that a node sent
            headers.pop(node, None)
            left_out[node] = _why(node, error)
    kinds: dict[Any, list[int]] = {}
    for node, header in headers.items():
        kinds.setdefault(_kind(header), []).append(node)
    for nodes in sorted(kinds.values(), key=lambda nodes: (-len(nodes), _unlike(headers[nodes[0]], rule), nodes)):
        opened: dict[int, Payload] = {}
        for node in nodes:
            try:
                opened[node] = _taken(node, rule, payload.loads(replies[node], model, file=f"node {node}", **how)[0])
            except Exception as error:
                left_out[node] = _why(node, error)
        doubles = _doubles({node: headers[node] for node in opened})
        left_out |= doubles
        sound = sorted(set(opened) - set(doubles), key=lambda node: headers[node].about.silo)
        merged, failed = _merged(rule, start, {node: opened[node] for node in sound}, quorum)
        left_out |= failed
        if merged is not None:
            kept = {node: headers[node] for node in sound if node not in failed}
            others = set(headers) - set(nodes) - set(left_out)
            strange = {node: f"node {node}: another kind of payload than most" for node in others}
            return Outcome(merged, kept, left_out | strange)
    return Outcome(None, {}, left_out)


def _merged(
    rule: Rule, start: PyTree, payloads: Mapping[int, Payload], quorum: int
) -> tuple[Merged | None, dict[int, str]]:
    """The merge of all payloads, or else without those that fail alone, and then without the one of largest numbers.

    Returns:
        The merge, None without a quorum, and who was left out for it.
    """
    here = dict(payloads)
    failed: dict[int, str] = {}
    while len(here) >= quorum:
        try:
            merged = merge_clients(rule, stack(list(here.values())), start)
        except Exception as error:  # of a tree that the rule does not take, say
            bad = {node: why for node in here if (why := _alone(rule, start, node, here[node]))}
            if not bad:
                return None, failed | {node: _why(node, error) for node in here}
        else:
            if all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(merged.params)):
                return merged, failed
            largest = max(here, key=lambda node: _largest(here[node]))
            bad = {largest: f"node {largest}: with it the merged model is not finite; it has the largest numbers"}
        failed |= bad
        here = {node: sent for node, sent in here.items() if node not in bad}
    return None, failed


def _alone(rule: Rule, start: PyTree, node: int, sent: Payload) -> str | None:
    """Why a payload cannot be merged even alone, if so."""
    try:
        merge_clients(rule, stack([sent]), start)
    except Exception as error:
        return _why(node, error)
    return None


def _why(node: int, error: Exception) -> str:
    """What is said of a node; our own refusals are made for that, other errors may quote what it sent."""
    if isinstance(error, PayloadError):
        return str(error)
    return f"node {node}: its payload cannot be merged ({type(error).__name__})"


def _taken(node: int, rule: Rule, sent: Payload) -> Payload:
    """The payload itself, if the rule can merge its statistics."""
    try:
        require_taken(rule, sent)
    except ValueError as error:
        raise PayloadError(f"node {node}: {error}") from error
    return sent


def _require_rule(header: Header, rule: Rule, node: int) -> None:
    if header.about.rule != rule.name:
        raise PayloadError(f"node {node}: rule: measured for {header.about.rule[:40]!r}, merged by {rule.name}")


def _kind(header: Header) -> tuple[Any, ...]:
    return header.about.likelihood, header.about.kind, header.structure, header.static, header.fisher_dtype


def _unlike(header: Header, rule: Rule) -> int:
    """In how many ways a payload was measured otherwise than the rule measures, where the rule says how."""
    said = {"kind": header.about.kind, "structure": header.structure}
    return sum(getattr(rule.measure, name, value) != value for name, value in said.items())


def _largest(sent: Payload) -> float:
    return max(float(np.max(np.abs(np.asarray(leaf)), initial=0)) for leaf in jax.tree.leaves(sent))


def _doubles(headers: Mapping[int, Header]) -> dict[int, str]:
    """Nodes whose silo's number is taken."""
    found: dict[int, str] = {}
    numbers: dict[int, int] = {}
    for node, header in headers.items():
        first = numbers.setdefault(header.about.silo, node)
        if first != node:
            found[node] = f"node {node}: silo: number {header.about.silo} is that of node {first}, too"
    return found
