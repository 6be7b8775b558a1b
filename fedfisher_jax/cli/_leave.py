"""`fedfisher leave`: silos are taken out of a region, and of the model that was merged from it."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from .. import _files
from ..merge._robust import How
from ..payload import Limits
from ._merge import MergeSettings, merge_files


@dataclasses.dataclass(frozen=True)
class LeaveSettings:
    """Take silos out of a region: it and the model become what they are where those silos never took part.

    The region, the model and the model's report are written anew; a record of it all is for the silos to keep.
    """

    region: Annotated[Path, tyro.conf.Positional]
    """The region that the model was merged from (`fedfisher fold`, `fedfisher merge --into`)."""
    silo: tuple[int, ...]
    """Numbers of the silos that leave."""
    payloads: tuple[Path, ...] = ()
    """Their payload files, where the region holds a sum: nothing else can be taken out of it."""
    start: Path = Path("start.safetensors")
    """The common starting model."""
    out: Path = Path("global.safetensors")
    """The global model; beside it the report, as .json."""
    record: Path = Path("left.json")
    """The record: who left, the hashes of model and region before and after, and what leaving does not remove."""
    rule: str | None = None
    """The rule with the options that the region was folded by, where contributions depend on these:
    regmean,off_diagonal=0.1."""
    robust: How | None = None
    """With a region that holds payloads: do not trust every silo, as for `merge`; what the model was merged with."""
    faulty: int | None = None
    """With robust, as for `merge`."""
    cap: float | None = None
    """With robust, as for `merge`."""
    damping: float | None = None
    """Damping of the fedfisher solvers, relative to a layer's mean diagonal; by default the rule's own."""
    in_memory: int = MergeSettings.in_memory
    """Bytes of all payloads together up to which a rule that stacks holds them."""
    max_bytes: int = Limits().file_bytes
    """Largest file that is accepted."""
    model: str | None = None
    """module:function, where the start is of a network of your own."""


def leave(settings: LeaveSettings) -> dict[str, Any]:
    """Write the model, its report, the region and the record anew; returns the record.

    Raises:
        ValueError: a file is refused, a silo is not in the region, its payload is missing where it is needed or is
            another one than that in the region, no silo would stay, or the model was merged by other settings.
    """
    if not settings.silo:
        raise ValueError("silo: got none, expected the numbers of the silos that leave")
    if not settings.region.is_file():
        raise ValueError(f"region: {settings.region}: no such file")
    _files.require_file(settings.out)
    same = ("start", "out", "rule", "robust", "faulty", "cap", "damping", "in_memory", "max_bytes", "model")
    given = {name: getattr(settings, name) for name in same}
    taken = [settings.region, settings.start, settings.out, settings.out.with_suffix(".json"), *settings.payloads]
    _files.require_file(settings.record, taken, "record")
    merged = MergeSettings(files=(), into=settings.region, without=settings.silo, names=True, **given)
    record = merge_files(merged, settings.payloads, settings.record)["leaving"]
    print(f"{settings.record}: for the silos that left")
    for word in record["not_removed"]:
        print(f"not removed: {word}")
    return record
