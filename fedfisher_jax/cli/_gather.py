"""What `merge` and `fold` have in common: files are looked at, their rule is found, and they are read one by one."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import track

from ..curvature import Capture, capture
from ..federate import zero_fishers
from ..merge import Payload, Rule, catalogue
from ..merge._exact_sums import Sums, joined
from ..merge._one_by_one import add_payload, contribution_shape
from ..merge._outliers import Look, look
from ..merge._rule import require_taken
from ..payload import Header, Limits
from ..payload import _files_of_a_merge as files_of
from ..payload import _region as region
from ..payload._files_of_a_merge import Part, Terms
from ..silos import _model_file as model_file
from ..silos._network import likelihood_of
from ..solve._conjugate_gradients import conjugate_gradients

KINDS = ("exact", "monte_carlo", "empirical")  # of Fisher information, which rules that measure it can be told
MANY = 20  # files from which on progress is shown
T = TypeVar("T")


class Gathered(NamedTuple):
    """The files of a merge, none of whose arrays has been decoded yet, and what they are merged by."""

    start: model_file.Model
    name: str  # of the rule
    rule: Rule
    parts: list[Part]
    terms: Terms
    without: frozenset[int]  # numbers of silos

    @property
    def headers(self) -> list[Header]:
        """What the files say of each silo that counts, by their numbers."""
        found = [silo.header for part in self.parts for silo in part.silos]
        return sorted((h for h in found if h.about.silo not in self.without), key=lambda h: h.about.silo)


class Seen(NamedTuple):
    """What is kept of a payload that was read."""

    header: Header
    digest: str  # SHA-256 of its arrays
    distance: float | None = None  # from the start; None where it holds no parameters, or lies within a sum
    zero_fisher: bool = False  # everywhere
    file: str = ""
    look: Look | None = None  # to compare it with the others; None within a sum


class Folded(NamedTuple):
    """The files of a merge after one pass over them."""

    sums: Sums | None  # of a rule that adds
    payloads: dict[int, Payload]  # of a rule that stacks, by the silo's number, in the order of the numbers
    seen: dict[int, Seen]  # by the silo's number
    left: dict[int, Seen]  # those that were left out
    agreed: list[np.ndarray | None]  # parameters that are equal in all payloads of several, None where they are not


def paths_of(given: tuple[Path, ...]) -> list[Path]:
    """List the files, folders replaced by the .safetensors files in them."""
    paths = []
    for path in given:
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"files: no .safetensors file in {path}")
        paths += inside
    return paths


def gather(
    paths: Sequence[Path],
    start_path: Path,
    *,
    model: str | None,
    rule_name: str | None,
    max_bytes: int,
    without: tuple[int, ...] = (),
    damping: float | None = None,
) -> Gathered:
    """Look at all files, and find their rule.

    Args:
        paths: files of payloads and regions.
        start_path: the common starting model.
        model: module:function, where the start is of a network of one's own.
        rule_name: the rule; None for the one that the files were measured for.
        max_bytes: largest file that is accepted.
        without: numbers of silos to leave out.
        damping: the damping of the rule's solver, where it has one.

    Raises:
        ValueError: a file is refused, the rule takes other files, or a silo to leave out is not there or within a sum.
    """
    room = 2 * max_bytes
    working = max(room, Limits().working_bytes)
    limits = Limits(file_bytes=max_bytes, decoded_bytes=room, working_bytes=working)
    start = model_file.read(start_path, model)
    example = jax.ShapeDtypeStruct((1, *start.kind.input_shape), jnp.float32)
    captured = capture(start.network.apply, start.params, example)
    terms = Terms(start.params, captured.layers, limits, start=start.fingerprint)
    parts = files_of.parts_of(paths, terms)
    about = parts[0].silos[0].header.about
    if about.likelihood != start.kind.likelihood:
        raise ValueError(f"start: its likelihood is {start.kind.likelihood}, the files' {about.likelihood}")
    name = rule_name or about.rule
    if ":" in name and rule_name is None:  # files make nothing run
        raise ValueError(f"rule: the files are for {name[:80]!r}; say --rule {name[:80]} to import that")
    options: dict[str, Any] = {} if damping is None else {"solver": conjugate_gradients(damping=damping)}
    if options and name not in catalogue.SOLVED:
        raise ValueError(f"damping: {name} has none")
    rule = rule_of(start, captured, name, about.kind, **options)
    for part in parts:
        if part.holds == region.SUMS and name != about.rule:
            raise ValueError(f"rule: {part.path} holds a sum for {about.rule[:80]}, which {name} cannot merge")
    gathered = Gathered(start, name, rule, parts, terms, _without(without, parts))
    try:
        require_taken(rule, prepared(gathered, region.payload_shape(parts[0].silos[0].header, start.params)))
    except ValueError as error:
        raise ValueError(f"{error}; the files are for {about.rule[:80]}") from error
    return gathered


def rule_of(start: model_file.Model, captured: Capture, name: str, kind: str | None, **options: Any) -> Rule:
    """Make the rule that files are merged by, whose statistics were measured so."""
    offers: dict[str, Any] = {"captured": captured} | ({"kind": kind} if kind in KINDS else {})
    likelihood = likelihood_of(start.kind.likelihood)
    return catalogue.named_rule(name, start.network.apply, likelihood, offers=offers, **options)


def prepared(gathered: Gathered, sent: Payload) -> Payload:
    """The payload as the rule takes it: version 0.2 gave every rule's statistics the same kind."""
    same = gathered.name == gathered.parts[0].silos[0].header.about.rule
    return sent._replace(kind=None) if same else sent


def fold_files(gathered: Gathered) -> Folded:
    """Read all files once, one at a time, and fold what they hold.

    Raises:
        PayloadError: an array is refused, or a file has changed.
    """
    sums, agreed = None, None
    payloads: dict[int, Payload] = {}
    seen: dict[int, Seen] = {}
    left: dict[int, Seen] = {}
    rule, start = gathered.rule, gathered.start.params
    for part in shown(gathered.parts, "reading"):
        if part.holds == region.SUMS:
            more = files_of.sums_of(part, shape_of(gathered), gathered.terms)
            sums, agreed = more if sums is None else joined(sums, more), []
            seen |= {s.header.about.silo: Seen(s.header, s.digest, file=Path(part.path).name) for s in part.silos}
            continue
        for sent, header in files_of.payloads_of(part, gathered.terms):
            one = _look(sent, header, start, part.path)
            if header.about.silo in gathered.without:
                left[header.about.silo] = one
                continue
            seen[header.about.silo] = one
            agreed = _agreed(agreed, sent.params)
            if rule.combine == "add":
                sums = add_payload(rule, sums, prepared(gathered, sent), start)
            else:
                payloads[header.about.silo] = prepared(gathered, sent)
    return Folded(sums, dict(sorted(payloads.items())), seen, left, agreed if agreed and len(seen) > 1 else [])


def shape_of(gathered: Gathered) -> Any:
    """Shapes and types of a silo's contribution to the sum."""
    sent = region.payload_shape(gathered.parts[0].silos[0].header, gathered.start.params)
    return contribution_shape(gathered.rule, prepared(gathered, sent), gathered.start.params)


def shown(items: Sequence[T], words: str) -> Iterable[T]:
    """Show progress, and the time that is left, where there is much to do and somebody looks."""
    console = Console(stderr=True)
    if len(items) < MANY or not console.is_terminal:
        return items
    return track(items, words, console=console, transient=True)


def distance(first: Any, second: Any) -> float | None:
    """The Euclidean distance of two models; None where no parameters were sent."""
    if first is None:
        return None
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, first, second)))


def _without(numbers: tuple[int, ...], parts: list[Part]) -> frozenset[int]:
    """Numbers of silos to leave out, all of which can be."""
    places = {silo.header.about.silo: part for part in parts for silo in part.silos}
    for number in numbers:
        if number not in places:
            raise ValueError(f"without: got {number}, which is in none of the files")
        if places[number].holds == region.SUMS:
            raise ValueError(
                f"without: {number} is within the sum of {places[number].path}: fold that again without it"
            )
    if set(numbers) >= set(places):
        raise ValueError("without: got all silos, expected some to stay")
    return frozenset(numbers)


def _look(sent: Payload, header: Header, start: Any, path: str) -> Seen:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((sent.params, sent.statistics)):
        digest.update(np.asarray(leaf).tobytes())
    zero = bool(zero_fishers(jax.tree.map(lambda leaf: leaf[None], sent)))
    return Seen(header, digest.hexdigest(), distance(sent.params, start), zero, Path(path).name, look(sent))


def _agreed(before: list[np.ndarray | None] | None, params: Any) -> list[np.ndarray | None]:
    """What the parameters have in common with those before; None: there are none before."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    if before is None:
        return list(leaves)
    if not before:
        return []
    both = zip(before, leaves, strict=True)
    return [old if old is not None and np.array_equal(old, new) else None for old, new in both]
