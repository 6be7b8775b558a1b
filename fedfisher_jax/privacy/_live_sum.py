"""The server of a live secure sum, over any transport: first letters are here, later ones are asked for.

Nobody is trusted to send sound letters: whoever does not is left out and named, as long as enough stay.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ..curvature import Layer
from ..merge import Rule
from ..merge._one_by_one import merge_sums
from ..merge._sent import model_of
from ..payload import Header, Limits, PayloadError, fingerprint
from ..payload import _files_of_a_merge as files_of
from ..silos._merge_replies import Outcome
from . import _secure_letters as letters
from ._one_story import require_signed, story
from ._secure_letters import Letter, agreed_by
from ._secure_steps import require_pair_alike
from ._secure_total import Terms, Total, total_of

PyTree = Any
# (step, nodes, letters that each of them gets by whose they are, who stayed) → what nodes answer, and why others do not
Ask = Callable[[str, Collection[int], Mapping[int, bytes], list[int]], tuple[dict[int, bytes], dict[int, str]]]


class Agreement(NamedTuple):
    """What the server knows before a sum."""

    identities: tuple[bytes, ...]
    threshold: int | None
    ending: str  # of the sum's name, which silos choose alike
    rule: Rule  # one exchange
    start: PyTree  # what silos were sent
    layers: tuple[Layer, ...] | None = None
    limits: Limits = Limits()
    quorum: int = 1


class Found(NamedTuple):
    """What became of a sum."""

    outcome: Outcome
    bits: int = 0  # of all letters
    total: Total | None = None
    why: str = ""  # there is none


def merge_live(known: Agreement, sent: Mapping[int, bytes], ask: Ask) -> Found:
    """Carry the letters of one sum, and merge it.

    Args:
        known: what the server knows.
        sent: node → its first letter.
        ask: asks nodes for a step: "share", "mask", "reveal".
    """
    left_out: dict[int, str] = {}
    try:
        return _merged(known, sent, ask, left_out)
    except Exception as error:  # RoundVoid, letters that contradict each other, whatever comes of numbers that lie
        why = str(error) if isinstance(error, ValueError) else type(error).__name__
        return Found(Outcome(None, {}, left_out), why=why)


def _merged(known: Agreement, sent: Mapping[int, bytes], ask: Ask, left_out: dict[int, str]) -> Found:
    first = _read(known, sent, letters.KEYS, left_out)
    headers = _alike(known, first, left_out)
    first = {node: letter for node, letter in first.items() if node in headers}
    if not first:
        raise ValueError("nobody joined")
    agreed = agreed_by(next(iter(first.values())).name, known.identities, known.threshold)
    announced = {one.silo: one.announced for one in first.values() if one.announced is not None}
    told = story(agreed, {silo: one.keys for silo, one in announced.items()})
    bits = sum(8 * len(sent[node]) for node in first)

    def without(found: dict[int, Letter], bad: Callable[[int, Letter], bool], why: str) -> None:
        for node in [node for node, letter in found.items() if bad(node, letter)]:
            left_out[node] = f"node {node}: {why}"
            del found[node]

    def step(name: str, nodes: Collection[int], given: Mapping[int, bytes], holds: str, stayed: Any = ()) -> tuple:
        nonlocal bits
        answers, silent = ask(name, nodes, given, list(stayed))
        left_out.update({node: f"{words} ({name})" for node, words in silent.items()})
        found = _read(known, {node: data for node, data in answers.items() if node in nodes}, holds, left_out)
        strange = lambda node, one: (one.story, one.silo) != (told, first[node].silo)  # noqa: E731
        without(found, strange, f"its silo was shown other keys, or is another one ({name})")
        bits += sum(8 * len(answers[node]) for node in found)
        return found, {node: answers[node] for node in found}

    shared, sealed = step("share", first, {node: sent[node] for node in first}, letters.SHARES)
    if gone := sorted(set(first) - set(shared)):
        raise ValueError(f"nodes {', '.join(map(str, gone))} joined and sent no shares")
    terms = Terms(known.rule, next(iter(headers.values())), model_of(known.start), known.start)
    masked, _ = step("mask", first, sealed, letters.MASKED)
    count = sum(leaf.size for leaf in jax.tree.leaves(terms.shape))
    why = f"its masked numbers are not as many as {known.rule.name} adds, {count}"
    without(masked, lambda _, one: one.words is None or len(one.words) != count, why)
    words = {one.silo: one.words for one in masked.values() if one.words is not None}
    if len(words) < max(known.quorum, agreed.threshold):
        raise ValueError(f"{len(words)} nodes stayed, expected {max(known.quorum, agreed.threshold)}")
    revealed, _ = step("reveal", masked, {}, letters.REVEALED, sorted(words))
    without(revealed, lambda _, one: one.stayed != set(words), "it revealed for another sum")
    shares = {one.silo: one.revealed for one in revealed.values() if one.revealed is not None}
    total = total_of(terms, agreed, announced, words, shares)
    merged = merge_sums(known.rule, total.sums, total.shape, None, known.start)
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(merged.params)):
        raise ValueError("the merged model is not finite")
    return Found(Outcome(merged, {node: (headers[node],) for node in masked}, left_out), bits, total)


def _alike(known: Agreement, first: Mapping[int, Letter], left_out: dict[int, str]) -> dict[int, Header]:
    """The headers of the largest group of nodes that would add the same thing; the others are left out."""
    headers: dict[int, Header] = {}
    groups: list[list[int]] = []
    silos: set[int] = set()
    for node, letter in first.items():
        try:
            headers[node] = _checked(known, letter)
            if letter.silo in silos:
                raise PayloadError(f"{letter.path}: of silo {letter.silo}, which another node is")
        except Exception as error:  # whatever it is that a node sent
            left_out[node] = _why(node, error)
            continue
        silos.add(letter.silo)
        group = next((group for group in groups if _are_alike(letter, first[group[0]])), None)
        groups.append([node]) if group is None else group.append(node)
    most = max(groups, key=len, default=[])
    strangers = {node for group in groups if group is not most for node in group}
    left_out |= {node: f"node {node}: would add something else than most" for node in strangers}
    return {node: headers[node] for node in most}


def _are_alike(letter: Letter, first: Letter) -> bool:
    try:
        require_pair_alike(letter, first)
    except PayloadError:
        return False
    return letter.name == first.name


def _checked(known: Agreement, letter: Letter) -> Header:
    """The header of what a node would add, if it is for this sum and signed."""
    path, said = letter.path, letter.announced
    agreed = agreed_by(letter.name, known.identities, known.threshold)
    sizes = letter.settings.clients, letter.settings.threshold
    if said is None or sizes != (agreed.clients, agreed.threshold) or not letter.name.endswith(known.ending):
        wanted = f"of {agreed.clients} silos, threshold {agreed.threshold}, and {known.ending!r}"
        raise PayloadError(f"{path}: for {letter.name!r}, {sizes}, expected a sum {wanted}")
    try:
        require_signed(agreed, letter.silo, said.keys)
    except ValueError as error:
        raise PayloadError(f"{path}: {error}") from error
    like = model_of(known.start)
    terms = {"layers": known.layers, "limits": known.limits, "file": path, "start": fingerprint(known.start)}
    header = files_of.checked(said.template, 0, like, **terms)
    if header.about.rule != known.rule.name:
        raise PayloadError(f"{path}: rule: measured for {header.about.rule[:40]!r}, merged by {known.rule.name}")
    arrays = len(jax.tree.leaves(Terms(known.rule, header, like, known.start).shape))
    if len(said.scales) != arrays:
        raise PayloadError(f"{path}: scales: got {len(said.scales)}, expected {arrays}")
    return header


def _read(known: Agreement, sent: Mapping[int, bytes], holds: str, left_out: dict[int, str]) -> dict[int, Letter]:
    """The letters of a kind whose form is right, by node."""
    found: dict[int, Letter] = {}
    for node, data in sorted(sent.items()):
        try:
            found[node] = letters.loads(data, f"node {node}", holds, known.limits)
        except Exception as error:  # whatever it is that a node sent
            left_out[node] = _why(node, error)
    return found


def _why(node: int, error: Exception) -> str:
    """What is said of a node; our own refusals are made for that, other errors may quote what it sent."""
    return str(error) if isinstance(error, PayloadError) else f"node {node}: no letter ({type(error).__name__})"
