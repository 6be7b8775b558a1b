"""What `merge` and `fold` do with gathered files: read them one by one, check and fold what they hold."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import track

from ..curvature import Fisher, trace
from ..merge import Payload
from ..merge._exact_sums import Sums, joined
from ..merge._one_by_one import add_payload, contribution_shape, remove_payload
from ..merge._outliers import Look, look
from ..payload import Header, PayloadError
from ..payload import _files_of_a_merge as files_of
from ..payload import _region as region
from ..payload._files_of_a_merge import Part
from ..payload._region import Silo
from ..solve import Objective
from ..solve._passes import Passes, objective_by_passes
from ..solve._products import Products
from ._gather import Gathered, prepared

MANY = 20  # files from which on progress is shown
T = TypeVar("T")


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
    rule, start = gathered.rule, gathered.start.sent
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
            one = _look(sent, header, gathered.start.params, part.path)
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
    return contribution_shape(gathered.rule, prepared(gathered, sent), gathered.start.sent)


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
    return remove_payload(gathered.rule, sums, prepared(gathered, sent), gathered.start.sent), one


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
