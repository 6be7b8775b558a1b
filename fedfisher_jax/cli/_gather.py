"""How `merge` and `fold` begin: all files are looked at, and their rule is found, before any array is decoded."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..curvature import Capture
from ..curvature._cotangents import KINDS
from ..federate._described import described
from ..merge import Payload, Rule, catalogue
from ..merge._fold import require_taken
from ..merge._natural_gradient import exchange_at
from ..merge._options import plain_name
from ..payload import Header, Limits
from ..payload import _files_of_a_merge as files_of
from ..payload import _region as region
from ..payload._files_of_a_merge import Part, Terms
from ..payload._header import require_same
from ..silos import _model_file as model_file
from ..silos._network import likelihood_of
from ._once import layers_of, rule_of


class Gathered(NamedTuple):
    """The files of a merge, none of whose arrays has been decoded yet, and what they are merged by."""

    start: model_file.Model
    name: str  # of the rule
    said: str  # the same with all its options
    lifted: str  # the same with its options, where the contributions of silos depend on them; else ""
    rule: Rule
    parts: list[Part]
    terms: Terms
    without: frozenset[int]  # numbers of silos
    leaving: dict[int, Part]  # payload files of those among them that are within a sum

    @property
    def headers(self) -> list[Header]:
        """What the files say of each silo that counts, by their numbers."""
        found = [silo.header for part in self.parts for silo in part.silos]
        return sorted((h for h in found if h.about.silo not in self.without), key=lambda h: h.about.silo)


def paths_of(given: tuple[Path, ...]) -> list[Path]:
    """List the files, folders replaced by the .safetensors files in them."""
    paths = []
    for path in given:
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"files: no .safetensors file in {path}")
        paths += inside
    return paths


def limits_of(max_bytes: int) -> Limits:
    """Make the caps for files of so many bytes."""
    room = 2 * max_bytes
    return Limits(file_bytes=max_bytes, decoded_bytes=room, working_bytes=max(room, Limits().working_bytes))


def gather(
    paths: Sequence[Path],
    start_path: Path,
    *,
    model: str | None,
    rule_name: str | None,
    max_bytes: int,
    without: tuple[int, ...] = (),
    leaving: Sequence[Path] = (),
    damping: float | None = None,
    secure: bool = False,
) -> Gathered:
    """Look at all files, and find their rule.

    Args:
        paths: files of payloads and regions.
        start_path: the common starting model.
        model: module:function, where the start is of a network of one's own.
        rule_name: the rule; None for the one that the files were measured for.
        max_bytes: largest file that is accepted.
        without: numbers of silos to leave out.
        leaving: payload files of those among them that are within a sum.
        damping: the damping of the rule's solver, where it has one.
        secure: whether the files are for a secure sum, which alone takes those whose noise is divided among silos.

    Raises:
        ValueError: a file is refused, the rule takes other files, or a silo to leave out is not there or within a sum.
    """
    start = model_file.read(start_path, model)
    example = jax.ShapeDtypeStruct((1, *start.kind.input_shape), jnp.float32)
    captured = layers_of(start.network.apply, start.params, example)
    terms = Terms(start.params, captured.layers, limits_of(max_bytes), start=start.fingerprint, secure=secure)
    parts = files_of.parts_of(paths, terms)
    about = parts[0].silos[0].header.about
    if about.likelihood != start.kind.likelihood:
        raise ValueError(f"start: its likelihood is {start.kind.likelihood}, the files' {about.likelihood}")
    name = rule_name or about.rule
    if ":" in name and rule_name is None:  # files make nothing run
        raise ValueError(f"rule: the files are for {name[:80]!r}; say --rule {name[:80]} to import that")
    if rule_name is None and plain_name(name) != name:  # nor do they make a server work for ever
        raise ValueError(f"rule: the files are for {name[:80]!r}, with options, which --rule alone may say")
    if damping is not None and plain_name(name) not in catalogue.SOLVED:
        raise ValueError(f"damping: {name} has none")
    text = name
    said, name = name if damping is None else catalogue.with_option(name, "damping", damping), plain_name(name)
    rule = rule_for(start, captured, said, about.kind)
    lifted = "" if described(rule.lift) == described(rule_for(start, captured, name, about.kind).lift) else text
    for part in parts:
        if part.holds not in files_of.APART and name != about.rule:
            raise ValueError(f"rule: {part.path} holds a sum for {about.rule[:80]}, which {name} cannot merge")
        if part.holds not in files_of.APART and part.lifted != lifted:
            theirs, ours = part.lifted or about.rule, lifted or name
            raise ValueError(
                f"rule: {part.path} holds a sum by {theirs[:80]}, whose contributions are others than those of {ours}: "
                f"say --rule {theirs[:80]}"
            )
    going = _leaving(leaving, parts, terms)
    gathered = Gathered(start, name, said, lifted, rule, parts, terms, _without(without, parts, going), going)
    try:
        require_taken(rule, prepared(gathered, region.payload_shape(parts[0].silos[0].header, start.params)))
    except ValueError as error:
        raise ValueError(f"{error}; the files are for {about.rule[:80]}") from error
    return gathered


def rule_for(start: model_file.Model, captured: Capture, name: str, kind: str | None) -> Rule:
    """Make the rule that files are merged by, whose statistics were measured so."""
    offers = (("captured", captured), *((("kind", kind),) if kind in KINDS else ()))
    return exchange_at(rule_of(name, start.network.apply, likelihood_of(start.kind.likelihood), offers), start.sent)


def prepared(gathered: Gathered, sent: Payload) -> Payload:
    """The payload as the rule takes it: version 0.2 gave every rule's statistics the same kind."""
    same = gathered.name == gathered.parts[0].silos[0].header.about.rule
    return sent._replace(kind=None) if same else sent


def needs_passes(gathered: Gathered, in_memory: int) -> bool:
    """Tell whether all payloads together are more bytes than may be held, and the rule can read them again instead."""
    if gathered.rule.combine != "stack" or not gathered.rule.passes:
        return False
    if any(part.holds == region.PRODUCTS for part in gathered.parts):
        return True
    sent = region.payload_shape(gathered.headers[0], gathered.start.params)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(sent))
    return size * len(gathered.headers) > in_memory


def _leaving(paths: Sequence[Path], parts: list[Part], terms: Terms) -> dict[int, Part]:
    """Payload files by their silos' numbers, all of which are within sums."""
    summed = {silo.header.about.silo for part in parts if part.holds == region.SUMS for silo in part.silos}
    found = {}
    for part in files_of.parts_of(paths, terms) if paths else ():
        number = part.silos[0].header.about.silo
        if part.holds != files_of.PAYLOAD or number not in summed:
            raise ValueError(f"payloads: {part.path}: got silo {number}, expected a silo that is within a sum")
        first, own = parts[0].silos[0].header, part.silos[0].header
        own = own._replace(about=dataclasses.replace(own.about, rule=first.about.rule))  # a sum may be by another rule
        require_same(own, first, part.path, parts[0].path)
        found[number] = part
    return found


def _without(numbers: tuple[int, ...], parts: list[Part], leaving: dict[int, Part]) -> frozenset[int]:
    """Numbers of silos to leave out, all of which can be."""
    places = {silo.header.about.silo: part for part in parts for silo in part.silos}
    for number in numbers:
        if number not in places:
            raise ValueError(f"without: got {number}, which is in none of the files")
        if places[number].holds == region.PRODUCTS:
            raise ValueError(
                f"without: {number} is within the products of {places[number].path}, out of which nobody can be taken: "
                "fold that again without it"
            )
        if places[number].holds == region.SUMS and number not in leaving:
            raise ValueError(
                f"without: {number} is within the sum of {places[number].path}: fold that again without it, or take it "
                "out by its payload file (fedfisher leave --payloads)"
            )
    if set(numbers) >= set(places):
        raise ValueError("without: got all silos, expected some to stay")
    for number in set(leaving) - set(numbers):
        raise ValueError(f"payloads: got one of silo {number}, expected those of silos that leave")
    return frozenset(numbers)
