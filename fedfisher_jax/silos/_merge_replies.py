"""Merging what nodes sent, none of which is trusted: whoever's payload is refused or cannot be merged is left out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .._trees import stack
from ..curvature import Layer
from ..federate import merge_clients
from ..merge import Merged, Payload, Rule
from ..merge._exact_sums import Sums, joined
from ..merge._fold import require_taken
from ..merge._one_by_one import add_payload, contribution_shape, merge_products, merge_sums, passes_of
from ..merge._sent import model_of
from ..payload import Header, Limits, PayloadError, fingerprint
from ..payload import _files_of_a_merge as files_of
from ..payload import _region as region
from ..payload._files_of_a_merge import Part, Terms
from ..solve._passes import objective_by_passes
from ..solve._products import Products

PyTree = Any


class Outcome(NamedTuple):
    """What a server makes of the replies of one exchange."""

    merged: Merged | None  # None where fewer than the quorum can be merged
    headers: dict[int, tuple[Header, ...]]  # node → what is said of each of its silos, of nodes that were merged
    left_out: dict[int, str]  # node → why


class Sent(NamedTuple):
    """What a node sent, decoded: payloads, or what a region holds in their place."""

    payloads: dict[int, Payload]  # by their silos' numbers
    sums: Sums | None = None  # of the silos of a region, by a rule that adds
    shape: PyTree = None  # of a contribution to it
    products: Products | None = None  # of the silos of a region whose curvature was cut


def merge_replies(
    rule: Rule,
    start: PyTree,
    replies: Mapping[int, bytes],
    *,
    layers: Sequence[Layer] | None = None,
    limits: Limits = Limits(),
    quorum: int = 1,
    regions: bool | str = False,
) -> Outcome:
    """Merge the payloads of those nodes whose files are sound, of one kind, and can be merged.

    Nothing is decoded before headers are compared. Payloads of the commonest kind are merged; of two equally common
    ones, those that were measured as the rule measures; of these, the first that can be merged.

    Args:
        rule: one exchange.
        start: what the nodes were sent: a model, or more between exchanges.
        replies: node → the bytes of a payload file, or of a region.
        layers: the model's, from `capture`; payloads' layers must be among them.
        limits: caps on payloads.
        quorum: fewest nodes whose payloads are merged.
        regions: whether nodes may send regions, and so stand for several silos; a text is the rule with its options
            that sums of contributions which depend on these must say.
    """
    terms = Terms(model_of(start), layers, limits, start=fingerprint(start))
    left_out: dict[int, str] = {}
    parts: dict[int, Part] = {}
    for node in sorted(replies):
        try:
            part, _, _ = files_of.opened(replies[node], f"node {node}", terms)
            _require_taken(part, rule, regions)
            parts[node] = part
        except Exception as error:  # whatever it is that a node sent
            left_out[node] = _why(node, error)
    kinds: dict[Any, list[int]] = {}
    for node, part in parts.items():
        kinds.setdefault(_kind(_first(part)), []).append(node)
    for nodes in sorted(kinds.values(), key=lambda nodes: (-len(nodes), _unlike(_first(parts[nodes[0]]), rule), nodes)):
        sent: dict[int, Sent] = {}
        for node in nodes:
            try:
                sent[node] = _decoded(node, replies[node], rule, start, terms)
            except Exception as error:
                left_out[node] = _why(node, error)
        doubles = _doubles({node: parts[node] for node in sent})
        left_out |= doubles
        sound = {node: one for node, one in sent.items() if node not in doubles}
        merged, failed = _merged(rule, start, sound, quorum)
        left_out |= failed
        if merged is not None:
            kept = {node: tuple(s.header for s in parts[node].silos) for node in sound if node not in failed}
            others = set(parts) - set(nodes) - set(left_out)
            strange = {node: f"node {node}: another kind of payload than most" for node in others}
            return Outcome(merged, kept, left_out | strange)
    return Outcome(None, {}, left_out)


def _merged(rule: Rule, start: PyTree, sent: Mapping[int, Sent], quorum: int) -> tuple[Merged | None, dict[int, str]]:
    """The merge of all payloads, or else without those that fail alone, and then without the one of largest numbers.

    Returns:
        The merge, None without a quorum, and who was left out for it.
    """
    here = dict(sent)
    failed: dict[int, str] = {}
    while len(here) >= quorum:
        try:
            merged = _together(rule, start, here.values())
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
        here = {node: one for node, one in here.items() if node not in bad}
    return None, failed


def _together(rule: Rule, start: PyTree, sent: Iterable[Sent]) -> Merged:
    """Payloads alone are merged by the program of memory, in the order of the silos' numbers, to the same bits."""
    numbered = {number: payload for one in sent for number, payload in one.payloads.items()}
    payloads = [numbered[number] for number in sorted(numbered)]
    products = [one.products for one in sent if one.products is not None]
    if products:
        examples = float(sum(float(one.weight) for one in payloads))
        clients = (examples, objective_by_passes(passes_of(rule, lambda: payloads, start))) if payloads else None
        return merge_products(rule, products, clients, start)
    regions = [(one.sums, one.shape) for one in sent if one.sums is not None]
    if not regions:
        return merge_clients(rule, stack(payloads), start)
    total, shape = regions[0]
    for more, _ in regions[1:]:
        total = joined(total, more)
    for payload in payloads:
        total = add_payload(rule, total, payload, start)
    return merge_sums(rule, total, shape, None, start)


def _decoded(node: int, data: bytes, rule: Rule, start: PyTree, terms: Terms) -> Sent:
    """What a node sent, if the rule can merge it."""
    part, raw, arrays = files_of.opened(data, f"node {node}", terms)
    if part.holds in files_of.APART:
        found = files_of.payloads_in(part, raw, arrays, terms)
        return Sent({header.about.silo: _taken(node, rule, payload) for payload, header in found})
    like = _taken(node, rule, region.payload_shape(_first(part), terms.like))
    if part.holds == region.SUMS:
        shape = contribution_shape(rule, like, start)
        return Sent({}, files_of.sums_in(part, arrays, shape), shape)
    return Sent({}, products=files_of.products_in(part, raw, arrays, terms))


def _alone(rule: Rule, start: PyTree, node: int, sent: Sent) -> str | None:
    """Why a payload cannot be merged even alone, if so."""
    try:
        _together(rule, start, [sent])
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


def _require_taken(part: Part, rule: Rule, regions: bool | str) -> None:
    """Refuse a file for another rule, and a region where there are none or that the rule cannot fold."""
    named = _first(part).about.rule
    if named != rule.name:
        raise PayloadError(f"{part.path}: rule: measured for {named[:40]!r}, merged by {rule.name}")
    if part.holds == files_of.PAYLOAD:
        return
    if not regions:
        raise PayloadError(f"{part.path}: holds a region of {len(part.silos)} silos, which nodes may not (regions)")
    if (part.holds == region.SUMS) != (rule.combine == "add") or (part.holds == region.PRODUCTS and not rule.passes):
        raise PayloadError(f"{part.path}: holds {part.holds[:60]}, which {rule.name} does not fold into")
    expected = regions if isinstance(regions, str) else ""
    if part.holds not in files_of.APART and part.lifted != expected:
        raise PayloadError(
            f"{part.path}: holds a sum by {part.lifted[:80] or rule.name}, merged by {expected or rule.name} (regions)"
        )


def _first(part: Part) -> Header:
    return part.silos[0].header


def _kind(header: Header) -> tuple[Any, ...]:
    return header.about.likelihood, header.about.kind, header.structure, header.static, header.fisher_dtype


def _unlike(header: Header, rule: Rule) -> int:
    """In how many ways a payload was measured otherwise than the rule measures, where the rule says how."""
    said = {"kind": header.about.kind, "structure": header.structure}
    return sum(getattr(rule.measure, name, value) != value for name, value in said.items())


def _largest(sent: Sent) -> float:
    """The largest number of a node's payloads, of a sum that of its mean."""
    sums = () if sent.sums is None else sent.sums.high
    weight = float(sums["weight"]) if isinstance(sums, Mapping) and "weight" in sums else 1.0
    return max(_size((list(sent.payloads.values()), sent.products)), _size(sums) / weight)


def _size(tree: PyTree) -> float:
    return max((float(np.max(np.abs(np.asarray(leaf)), initial=0)) for leaf in jax.tree.leaves(tree)), default=0.0)


def _doubles(parts: Mapping[int, Part]) -> dict[int, str]:
    """Nodes one of whose silos' numbers is taken; a region takes none from a silo that answers itself."""
    found: dict[int, str] = {}
    numbers: dict[int, int] = {}
    for node, part in sorted(parts.items(), key=lambda one: one[1].holds != files_of.PAYLOAD):
        own = [silo.header.about.silo for silo in part.silos]
        taken = [number for number in own if number in numbers]
        if taken:
            found[node] = f"node {node}: silo: number {taken[0]} is that of node {numbers[taken[0]]}, too"
        else:
            numbers |= dict.fromkeys(own, node)
    return found
