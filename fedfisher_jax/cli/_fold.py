"""`fedfisher fold`: what a region does. Payload files in, one file out that stands for their silos."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from .. import _files
from ..curvature.structures._kronecker import Kronecker
from ..merge._one_by_one import passes_of
from ..payload import Limits
from ..payload import _container as container
from ..payload import _files_of_a_merge as files_of
from ..payload import _products_file as products_file
from ..payload import _region as region
from ..payload._region import Silo
from ..solve._products import recompressed
from ._fold_files import Folded, again, clients_of, fold_files
from ._gather import Gathered, gather, paths_of
from ._ranges import require_ranges


@dataclasses.dataclass(frozen=True)
class FoldSettings:
    """Fold payload files into one region file, which `merge` and `fold` take like the files of its silos.

    For a rule that adds it holds one exact sum, however many silos there are: no silo can be taken out of it. For a
    rule that stacks (Kronecker factors) it holds all payloads.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Payload files, regions, or folders of them."""
    start: Path = Path("start.safetensors")
    """The common starting model."""
    out: Path = Path("region.safetensors")
    """The region file."""
    rule: str | None = None
    """Merge rule, by default the one that the files were measured for; the region is for it alone."""
    without: tuple[int, ...] = ()
    """Numbers of silos to leave out."""
    rank: int | None = None
    """Kronecker products that are kept of each layer, for a rule that stacks them: the nearest sum of so many, whose
    error is said; by default all payloads are kept."""
    names: bool = False
    """Write the silos' names, too; else their numbers alone."""
    max_bytes: int = Limits().file_bytes
    """Largest file that is accepted."""
    model: str | None = None
    """module:function, where the start is of a network of your own."""


def fold(settings: FoldSettings) -> None:
    """Write the region file.

    Raises:
        ValueError: a file is refused (file, entry and reason), or settings do not work.
    """
    require_ranges(settings)
    paths = paths_of(settings.files)
    _files.require_file(settings.out, [settings.start, *paths])
    gathered = gather(
        paths,
        settings.start,
        model=settings.model,
        rule_name=settings.rule,
        max_bytes=settings.max_bytes,
        without=settings.without,
    )
    sent = region.payload_shape(gathered.headers[0], gathered.start.params)
    if settings.rank is not None and not (gathered.rule.passes and isinstance(sent.statistics, Kronecker)):
        raise ValueError(f"rank: {gathered.name} stacks no Kronecker products")
    folded = fold_files(gathered, hold=False)
    if settings.rank is None:
        data = region_of(gathered, folded, settings.names)
    else:
        data = _cut(gathered, folded, settings)
    container.write_bytes(settings.out, data)
    examples = sum(header.examples for header in gathered.headers)
    print(f"{settings.out}: {len(folded.seen)} silos, {examples} examples, {len(data)} bytes, for {gathered.name}")


def region_of(gathered: Gathered, folded: Folded, names: bool) -> bytes:
    """The bytes of the region that stands for the silos that were folded, as readers take it.

    Raises:
        PayloadError: it would be more than readers take, or a file has changed.
    """
    data = _packed(gathered, folded, names)
    region.silos_of(*container.unpack(data, gathered.terms.limits, "region"), gathered.terms.limits)
    return data


def _cut(gathered: Gathered, folded: Folded, settings: FoldSettings) -> bytes:
    """The bytes of a region that keeps a few Kronecker products; says how far they are from the sum of all."""
    rank, start = settings.rank or 0, gathered.start.params
    parts = [part for part in gathered.parts if part.holds in files_of.APART]
    passes = passes_of(gathered.rule, lambda: (sent for sent, _ in again(gathered, parts)), start)
    products = recompressed(folded.products, clients_of(gathered, folded, passes), rank)
    silos = [Silo(one.header, one.digest) for _, one in sorted(folded.seen.items())]
    data = products_file.packed(products, template_of(gathered), gathered.name, silos, settings.names, gathered.lifted)
    terms = gathered.terms
    raw, arrays = container.unpack(data, terms.limits, "region")
    products_file.unpacked(raw, arrays, region.silos_of(raw, arrays, terms.limits), start)
    paths = [leaf.path for leaf in silos[0].header.leaves]
    for number, layer in enumerate(products.terms.layers):
        share = products.dropped[number] / max(products.kept[number], 1e-300)
        shift = f"shifted by {products.shifts[number]:.2g} to have no negative eigenvalue"
        print(f"{paths[layer.weight]}: its curvature is off by at most {share:.2%} of its norm, {shift}")
    return data


def template_of(gathered: Gathered) -> dict[str, Any]:
    """Read the JSON header of any silo's payload."""
    raw, _ = files_of.stored(gathered.parts[0], gathered.terms)
    return raw.get("payload") or (raw["silos"][0] if region.is_region(raw) else raw)


def _packed(gathered: Gathered, folded: Folded, names: bool) -> bytes:
    if folded.sums is not None:
        silos = [Silo(one.header, one.digest) for _, one in sorted(folded.seen.items())]
        return region.pack_sums(folded.sums, template_of(gathered), gathered.name, silos, names, gathered.lifted)
    if folded.products:
        raise ValueError("rank: got none, and a file holds few Kronecker products, which are folded by --rank alone")
    held = []
    for part in gathered.parts:
        raw, arrays = files_of.stored(part, gathered.terms)
        held += region.members(raw, arrays) if region.is_region(raw) else [(raw, arrays)]
    kept = sorted((one for one in held if one[0]["silo"] not in gathered.without), key=lambda one: one[0]["silo"])
    return region.pack_stack(kept, gathered.name, names)
