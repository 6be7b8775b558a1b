"""What `merge` and `fold` have in common: files are looked at, their rule is found, and they are read one by one."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import track

from ..curvature import Capture, Fisher, trace
from ..merge import Payload, Rule, catalogue
from ..merge._exact_sums import Sums, joined
from ..merge._fold import require_taken
from ..merge._one_by_one import add_payload, contribution_shape, remove_payload
from ..merge._options import plain_name
from ..merge._outliers import Look, look
from ..payload import Header, Limits, PayloadError
from ..payload import _files_of_a_merge as files_of
from ..payload import _region as region
from ..payload._files_of_a_merge import Part, Terms
from ..payload._header import require_same
from ..payload._region import Silo
from ..silos import _model_file as model_file
from ..silos._network import likelihood_of
from ..solve import Objective
from ..solve._passes import Passes, objective_by_passes
from ..solve._products import Products
from ._once import layers_of, rule_of

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
    leaving: dict[int, Part]  # payload files of those among them that are within a sum

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
    payloads: dict[int, Payload]  # of a rule that stacks, where they are held, by the silos' numbers, in their order
    products: list[Products]  # regions of a rule that stacks that were cut
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
    leaving: Sequence[Path] = (),
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
        leaving: payload files of those among them that are within a sum.
        damping: the damping of the rule's solver, where it has one.

    Raises:
        ValueError: a file is refused, the rule takes other files, or a silo to leave out is not there or within a sum.
    """
    room = 2 * max_bytes
    working = max(room, Limits().working_bytes)
    limits = Limits(file_bytes=max_bytes, decoded_bytes=room, working_bytes=working)
    start = model_file.read(start_path, model)
    example = jax.ShapeDtypeStruct((1, *start.kind.input_shape), jnp.float32)
    captured = layers_of(start.network.apply, start.params, example)
    terms = Terms(start.params, captured.layers, limits, start=start.fingerprint)
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
    said, name = name if damping is None else catalogue.with_option(name, "damping", damping), plain_name(name)
    rule = rule_for(start, captured, said, about.kind)
    for part in parts:
        if part.holds not in files_of.APART and name != about.rule:
            raise ValueError(f"rule: {part.path} holds a sum for {about.rule[:80]}, which {name} cannot merge")
    going = _leaving(leaving, parts, terms)
    gathered = Gathered(start, name, rule, parts, terms, _without(without, parts, going), going)
    try:
        require_taken(rule, prepared(gathered, region.payload_shape(parts[0].silos[0].header, start.params)))
    except ValueError as error:
        raise ValueError(f"{error}; the files are for {about.rule[:80]}") from error
    return gathered


def rule_for(start: model_file.Model, captured: Capture, name: str, kind: str | None) -> Rule:
    """Make the rule that files are merged by, whose statistics were measured so."""
    offers = (("captured", captured), *((("kind", kind),) if kind in KINDS else ()))
    return rule_of(name, start.network.apply, likelihood_of(start.kind.likelihood), offers)


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


def again(gathered: Gathered, parts: Iterable[Part]) -> Iterator[tuple[Payload, Header]]:
    """Read the payloads that count once more, after they were found to be sound.

    Args:
        gathered: the files.
        parts: the same files, perhaps with progress; regions without payloads are passed over.

    Raises:
        PayloadError: a file has changed.
    """
    for part in parts:
        if part.holds in files_of.APART:
            for sent, header in files_of.payloads_of(part, gathered.terms, sound=True):
                if header.about.silo not in gathered.without:
                    yield prepared(gathered, sent), header


def fold_files(gathered: Gathered, hold: bool = True) -> Folded:
    """Read all files once, one at a time, and fold what they hold.

    Args:
        gathered: the files.
        hold: whether payloads of a rule that stacks are kept.

    Raises:
        PayloadError: an array is refused, or a file has changed.
    """
    sums, agreed = None, None
    payloads: dict[int, Payload] = {}
    products: list[Products] = []
    seen: dict[int, Seen] = {}
    left: dict[int, Seen] = {}
    rule, start = gathered.rule, gathered.start.params
    for part in shown(gathered.parts, "reading"):
        if part.holds == region.SUMS:
            more = files_of.sums_of(part, shape_of(gathered), gathered.terms)
            for silo in part.silos:
                number = silo.header.about.silo
                if number in gathered.without:
                    more, left[number] = _taken_out(gathered, more, silo, part)
                else:
                    seen[number] = Seen(silo.header, silo.digest, file=Path(part.path).name)
            sums, agreed = more if sums is None else joined(sums, more), []
            continue
        if part.holds == region.PRODUCTS:
            products, agreed = [*products, files_of.products_of(part, gathered.terms)], []
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
            elif hold:
                payloads[header.about.silo] = prepared(gathered, sent)
    return Folded(
        sums, dict(sorted(payloads.items())), products, seen, left, agreed if agreed and len(seen) > 1 else []
    )


def clients_of(gathered: Gathered, folded: Folded, passes: Passes) -> tuple[float, Objective, Passes] | None:
    """The number of examples of the silos whose payloads are there, their objective, and passes over them, if any."""
    apart = [silo.header for part in gathered.parts if part.holds in files_of.APART for silo in part.silos]
    examples = sum(header.examples for header in apart if header.about.silo in folded.seen)
    return (float(examples), objective_by_passes(passes), passes) if examples else None


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
    return float(_gap(first, second))


@jax.jit
def _gap(first: Any, second: Any) -> jax.Array:
    return optax.tree.norm(jax.tree.map(jnp.subtract, first, second))


def _taken_out(gathered: Gathered, sums: Sums, silo: Silo, part: Part) -> tuple[Sums, Seen]:
    """The sum without a silo that is in it, by its payload."""
    file = gathered.leaving[silo.header.about.silo]
    ((sent, header),) = files_of.payloads_of(file, gathered.terms)
    one = _look(sent, header, gathered.start.params, file.path)
    if (one.digest, header.examples) != (silo.digest, silo.header.examples):
        raise PayloadError(
            f"{file.path}: is another payload of silo {header.about.silo} than the one in {part.path}: "
            "the SHA-256 of its arrays, or its number of examples, is not the same"
        )
    return remove_payload(gathered.rule, sums, prepared(gathered, sent), gathered.start.params), one


def _leaving(paths: Sequence[Path], parts: list[Part], terms: Terms) -> dict[int, Part]:
    """Payload files by their silos' numbers, all of which are within sums."""
    summed = {silo.header.about.silo for part in parts if part.holds == region.SUMS for silo in part.silos}
    found = {}
    for part in files_of.parts_of(paths, terms) if paths else ():
        number = part.silos[0].header.about.silo
        if part.holds != files_of.PAYLOAD or number not in summed:
            raise ValueError(f"payloads: {part.path}: got silo {number}, expected a silo that is within a sum")
        require_same(part.silos[0].header, parts[0].silos[0].header, part.path, parts[0].path)
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


def _look(sent: Payload, header: Header, start: Any, path: str) -> Seen:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((sent.params, sent.statistics)):
        digest.update(np.asarray(leaf).tobytes())
    zero = isinstance(sent.statistics, Fisher) and not float(_trace(sent.statistics))
    return Seen(header, digest.hexdigest(), distance(sent.params, start), zero, Path(path).name, look(sent))


_trace = jax.jit(trace)


def _agreed(before: list[np.ndarray | None] | None, params: Any) -> list[np.ndarray | None]:
    """What the parameters have in common with those before; None: there are none before."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    if before is None:
        return list(leaves)
    if not before:
        return []
    both = zip(before, leaves, strict=True)
    return [old if old is not None and np.array_equal(old, new) else None for old, new in both]
