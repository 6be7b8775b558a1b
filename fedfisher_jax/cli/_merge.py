"""`fedfisher merge`: what the server does. Payload files in, the global model and a report out."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from .. import _files, payload, report
from .._trees import stack
from ..federate import merge_clients
from ..merge import Merged
from ..merge._one_by_one import merge_sums
from ..payload import Limits
from ..payload import _files_of_a_merge as files_of
from ..payload import _region as region
from ..payload._files_of_a_merge import Part
from ..report import words_on_rule
from ..silos import _model_file as model_file
from . import _checkpoints as checkpoints
from ._gather import Folded, Gathered, Seen, distance, fold_files, gather, paths_of, shape_of, shown
from ._inspect import literal
from ._one_line import say
from ._ranges import require_ranges

MOST_REPORT = 2**26  # bytes of an older report


@dataclasses.dataclass(frozen=True)
class MergeSettings:
    """Merge payload files into one model. Every file is checked before use; the first that fails is named."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Payload files, regions (`fedfisher fold`), or folders of them."""
    start: Path = Path("start.safetensors")
    """The common starting model."""
    out: Path = Path("global.safetensors")
    """The global model; beside it the report, as .json, with the model file's SHA-256."""
    rule: str | None = None
    """Merge rule, by default the one that the files were measured for; another one must take what they hold."""
    damping: float | None = None
    """Damping of the fedfisher solvers, relative to a layer's mean diagonal; by default the rule's own."""
    without: tuple[int, ...] = ()
    """Numbers of silos that leave: their files are not merged, and the report says so."""
    max_bytes: int = Limits().file_bytes
    """Largest file that is accepted; twice as much after decompression, and for work on one entry at least 4 GiB."""
    model: str | None = None
    """module:function, where the start is of a network of your own."""
    base: Path | None = None
    """Folder of the model that all fine-tuned, where the payloads are of --model hf:FOLDER; --out is a folder then, as
    `from_pretrained` loads it (docs/checkpoints.md)."""
    adapter: Path | None = None
    """With a base, where the payloads are of adapters: the folder of one of the same shapes, such as a client's, for
    its config. --out is an adapter, too."""


def merge(settings: MergeSettings) -> dict[str, Any] | None:
    """Write the global model, then the report, which names the model file's SHA-256; returns the report.

    Raises:
        ValueError: a file is refused (file, entry and reason), or settings do not work.
    """
    require_ranges(settings)
    if settings.base is not None:
        if settings.damping is not None or settings.model is not None:
            raise ValueError("damping, model: with a base they are not taken")
        return checkpoints.merge_folder(settings, paths_of(settings.files), _limits(settings))
    if settings.adapter is not None:
        raise ValueError("adapter: expected it with --base alone")
    _files.require_file(settings.out)
    files, described = paths_of(settings.files), settings.out.with_suffix(".json")
    older = _require_free(settings.out, described, [settings.start, *files])
    gathered = gather(
        files,
        settings.start,
        model=settings.model,
        rule_name=settings.rule,
        max_bytes=settings.max_bytes,
        without=settings.without,
        damping=settings.damping,
    )
    start, name = gathered.start, gathered.name
    folded = fold_files(gathered)
    merged = _merged(gathered, folded)
    if merged.apply is not None:
        raise ValueError(f"rule: {name} makes another network, for which there is no model file")
    record = _record(gathered, folded, merged)
    if folded.left:
        record["left"] = [_who(one) for one in folded.left.values()]
        record["before"] = None if older is None else older["sha256"]
    made_by = f"merge of {len(folded.seen)} payloads by {name}"
    data = model_file.write(settings.out, start.kind, merged.params, made_by, start.scaling)
    record["sha256"] = hashlib.sha256(data).hexdigest()  # of what was written, whatever has been there since
    _files.write_json(described, record)
    for doubled in record["same_arrays"]:
        say(f"silos {' and '.join(map(str, doubled))} sent the same arrays: is one counted twice?")
    for word in words_on_rule(name, record):
        say(word)
    for path, by in _moved_though_agreed(folded, merged.params):
        say(f"{path}: all silos sent the same numbers, as of a frozen layer, and {name} moved them by {by:.2g}")
    Console().print(_table(record))
    print(f"{settings.out}, {described}")
    return record


def _limits(settings: MergeSettings) -> Limits:
    room = 2 * settings.max_bytes
    return Limits(file_bytes=settings.max_bytes, decoded_bytes=room, working_bytes=max(room, Limits().working_bytes))


def _require_free(out: Path, described: Path, taken: list[Path]) -> dict[str, Any] | None:
    """Refuse to write over the report, the start, a payload, or a .json beside the model that is no report.

    Returns:
        The older report beside the model, if there is one.
    """
    if out == described:
        raise ValueError(f"out: got {out}, expected another ending than that of the report, .json")
    for path in (out, described):
        _files.require_file(path, taken)
    if not described.exists():
        return None
    try:
        older = json.loads(described.read_bytes()[:MOST_REPORT])
    except (ValueError, RecursionError):
        older = None
    if not isinstance(older, dict) or not {"rule", "contributors", "sha256"} <= set(older):
        raise ValueError(f"out: got {out}, whose report would write over {described}, which is no report")
    return older


def _merged(gathered: Gathered, folded: Folded) -> Merged:
    """Payloads that are stacked are merged by the same program as in memory, to the same bits."""
    rule, start = gathered.rule, gathered.start.params
    if folded.sums is None:
        merged = merge_clients(rule, stack(list(folded.payloads.values())), start)
    else:
        merged = merge_sums(rule, folded.sums, shape_of(gathered), None, start)
    for leaf, value in zip(payload.leaves(merged.params), jax.tree.leaves(merged.params), strict=True):
        if not np.isfinite(np.asarray(value)).all():
            raise ValueError(f"rule: the merged model is not finite at {leaf.path}")
    return merged


def _record(gathered: Gathered, folded: Folded, merged: Merged) -> dict[str, Any]:
    """Who contributed, weights, bits, how far models lie apart, and how the solve went."""
    full = 32 * sum(leaf.size for leaf in jax.tree.leaves(gathered.start.params))
    headers = gathered.headers
    total, about = sum(header.examples for header in headers), headers[0].about
    apart = _distances(gathered, folded, merged.params)
    contributors = [
        {
            **_who(folded.seen[header.about.silo]),
            "weight": header.examples / total,
            "bits": header.bits,
            "bits_over_fedavg": header.bits / full,
            "compression": header.about.compression,
            "privacy": header.about.privacy,
            "distance_from_start": folded.seen[header.about.silo].distance,
            "distance_from_merged": apart.get(header.about.silo),
        }
        for header in headers
    ]
    return _files.plain(
        {
            "rule": gathered.name,
            "kind": about.kind,
            "start": about.start,
            "contributors": contributors,
            "same_arrays": _same_arrays(folded),
            "examples": total,
            "bits": sum(header.bits for header in headers),
            "fedavg_bits": full * len(headers),
            "diagnostics": merged.diagnostics,
            "zero_fisher": sorted(number for number, one in folded.seen.items() if one.zero_fisher),
            "versions": report.versions(),
        }
    )


def _who(one: Seen) -> dict[str, Any]:
    """What a silo can find itself by."""
    about = one.header.about
    return {
        "silo": about.silo,
        "name": about.name,
        "examples": one.header.examples,
        "file": one.file,
        "digest": one.digest,
    }


def _distances(gathered: Gathered, folded: Folded, merged: Any) -> dict[int, float | None]:
    """How far each silo's parameters lie from the merged ones, by a second pass over files that were summed."""
    if folded.sums is None:
        return {silo: distance(sent.params, merged) for silo, sent in folded.payloads.items()}
    sent = (part for part in gathered.parts if part.holds != region.SUMS)
    parts = [part for part in sent if any(folded.seen[n].distance is not None for n in _numbers(part, folded))]
    return {
        header.about.silo: distance(own.params, merged)
        for part in shown(parts, "comparing")
        for own, header in files_of.payloads_of(part, gathered.terms)
    }


def _numbers(part: Part, folded: Folded) -> list[int]:
    """Numbers of a file's silos that count."""
    return [silo.header.about.silo for silo in part.silos if silo.header.about.silo in folded.seen]


def _moved_though_agreed(folded: Folded, merged: Any) -> list[tuple[str, float]]:
    """Parameters that are equal in all files of several, and not in the merged model, with how far it moved them."""
    found = []
    leaves = zip(payload.leaves(merged), jax.tree.leaves(merged), folded.agreed, strict=True) if folded.agreed else ()
    for leaf, new, common in leaves:
        if common is None:
            continue
        first = np.asarray(common, np.float64)
        by = float(np.abs(np.asarray(new, np.float64) - first).max(initial=0))
        if by > 1e-5 * np.abs(first).max(initial=0):
            found.append((leaf.path, by))
    return found


def _same_arrays(folded: Folded) -> list[list[int]]:
    """Numbers of silos that sent the same arrays, as one silo does that takes several numbers."""
    groups: dict[str, list[int]] = {}
    for number, one in sorted(folded.seen.items()):
        groups.setdefault(one.digest, []).append(number)
    return [numbers for numbers in groups.values() if len(numbers) > 1]


def _table(record: dict[str, Any]) -> Table:
    table = Table(header_style="bold", caption=literal(f"{record['rule']}: {_short(record['diagnostics'])}"))
    for column in ("silo", "name", "examples", "weight", "Mbit", "× FedAvg", "from start", "from merged"):
        table.add_column(column, justify="left" if column == "name" else "right", no_wrap=True)
    for one in record["contributors"]:
        bits = f"{one['bits'] / 1e6:.2f}", f"{one['bits_over_fedavg']:.2f}"
        gaps = one["distance_from_start"], one["distance_from_merged"]
        distances = ["" if gap is None else f"{gap:.3g}" for gap in gaps]
        row = str(one["silo"]), literal(one["name"]), str(one["examples"]), f"{one['weight']:.3f}", *bits, *distances
        table.add_row(*row)
    return table


def _short(diagnostics: dict[str, Any]) -> str:
    words = (
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in diagnostics.items()
    )
    return ", ".join(words) or "no solve"
