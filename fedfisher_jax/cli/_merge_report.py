"""The report of a merge of files: who contributed what, how far models lie apart, and how the solve went."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from .. import _files, payload, report
from ..curvature import Fisher
from ..curvature._cotangents import KINDS
from ..merge import Kind, Merged, Payload
from ..merge._outliers import from_others, predicted_losses, words_on_outliers
from ..payload._files_of_a_merge import PAYLOAD
from ._fold_files import Folded, Seen, again, distance, shown
from ._gather import Gathered
from ._inspect import literal
from ._leaving import sha256_of

COLUMNS = ("silo", "name", "examples", "weight", "Mbit", "× FedAvg", "from start", "from merged", "from others")


def report_of(gathered: Gathered, folded: Folded, merged: Merged) -> dict[str, Any]:
    """Who contributed, weights, bits, how far models lie apart, and how the solve went."""
    full = 32 * sum(leaf.size for leaf in jax.tree.leaves(gathered.start.params))
    headers = gathered.headers
    total, about = sum(header.examples for header in headers), headers[0].about
    apart = _compared(gathered, folded, merged.params)
    looks = {number: one.look for number, one in folded.seen.items() if one.look is not None}
    others = dict(zip(looks, from_others(list(looks.values())), strict=True)) if looks else {}
    contributors = [
        {
            **_who(folded.seen[header.about.silo]),
            "weight": header.examples / total,
            "bits": header.bits,
            "bits_over_fedavg": header.bits / full,
            "compression": header.about.compression,
            "privacy": header.about.privacy,
            "distance_from_start": folded.seen[header.about.silo].distance,
            "distance_from_others": others.get(header.about.silo),
            **apart.get(header.about.silo, {"distance_from_merged": None, "predicted_loss": None}),
        }
        for header in headers
    ]
    return _files.plain(
        {
            "rule": gathered.name,
            "merged_by": gathered.said,
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
    who = {"silo": one.header.about.silo, "name": one.header.about.name, "examples": one.header.examples}
    return who | {"file": one.file, "digest": one.digest}


def left_of(gathered: Gathered, folded: Folded) -> list[dict[str, Any]]:
    """Those who left, with the SHA-256 of their own files, where they had some."""
    own = {p.silos[0].header.about.silo: Path(p.path) for p in gathered.parts if p.holds == PAYLOAD}
    own |= {number: Path(part.path) for number, part in gathered.leaving.items()}
    return [_who(one) | {"sha256": sha256_of(own.get(number))} for number, one in sorted(folded.left.items())]


def _compared(gathered: Gathered, folded: Folded, merged: Any) -> dict[int, dict[str, Any]]:
    """Each silo's model compared with the merged one, by another pass over files that are not held."""
    kind = gathered.parts[0].silos[0].header.about.kind
    kept = None if kind is None else Kind(kind)  # as in the file, see `prepared`

    def one(sent: Payload) -> dict[str, Any]:
        known = kind in KINDS and isinstance(sent.statistics, Fisher)
        losses = predicted_losses(sent._replace(kind=kept), merged, gathered.start.params) if known else None
        return {"distance_from_merged": distance(sent.params, merged), "predicted_loss": losses}

    if folded.payloads:
        return {silo: one(sent) for silo, sent in folded.payloads.items()}
    if all(seen.distance is None for seen in folded.seen.values()):
        return {}
    parts = shown(gathered.parts, "comparing")
    return {header.about.silo: one(sent) for sent, header in again(gathered, parts)}


def moved_though_agreed(folded: Folded, merged: Any) -> list[tuple[str, float]]:
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


def table_of(record: dict[str, Any]) -> Table:
    """Make the table of the contributors to a merge."""
    table = Table(header_style="bold", caption=literal(f"{record['rule']}: {_short(record['diagnostics'])}"))
    for column in COLUMNS:
        named = column == "name"  # is never cut before the headings of numbers are folded
        table.add_column(column, justify="left" if named else "right", no_wrap=named)
    for one in record["contributors"]:
        bits = f"{one['bits'] / 1e6:.2f}", f"{one['bits_over_fedavg']:.2f}"
        gaps = one["distance_from_start"], one["distance_from_merged"], one["distance_from_others"]
        distances = ["" if gap is None else f"{gap:.3g}" for gap in gaps]
        row = str(one["silo"]), literal(one["name"]), str(one["examples"]), f"{one['weight']:.3f}", *bits, *distances
        table.add_row(*row)
    return table


def _short(diagnostics: dict[str, Any]) -> str:
    words = (
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in diagnostics.items()
    )
    return ", ".join(words) or "no solve"


def words_on(folded: Folded) -> list[str]:
    """What is odd about silos beside others."""
    looks = {number: one.look for number, one in folded.seen.items() if one.look is not None}
    return words_on_outliers(looks, {number: folded.seen[number].header.examples for number in looks})
