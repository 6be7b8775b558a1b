"""`fedfisher merge`: what the server does. Payload files in, the global model and a report out."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

from .. import _files, payload, report
from .._trees import stack
from ..curvature import capture
from ..federate import merge_clients, zero_fishers
from ..merge import catalogue
from ..merge._rule import require_taken
from ..payload import Header, Limits
from ..report import words_on_rule
from ..silos import _model_file as model_file
from ..silos._network import likelihood_of
from ..solve._conjugate_gradients import conjugate_gradients
from . import _checkpoints as checkpoints
from ._inspect import literal
from ._one_line import say
from ._ranges import require_ranges

KINDS = ("exact", "monte_carlo", "empirical")  # of Fisher information, which rules that measure it can be told
MOST_REPORT = 2**26  # bytes of an older report


@dataclasses.dataclass(frozen=True)
class MergeSettings:
    """Merge payload files into one model. Every file is checked before use; the first that fails is named."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Payload files, or folders of them."""
    start: Path = Path("start.safetensors")
    """The common starting model."""
    out: Path = Path("global.safetensors")
    """The global model; beside it the report, as .json, with the model file's SHA-256."""
    rule: str | None = None
    """Merge rule, by default the one that the files were measured for; another one must take what they hold."""
    damping: float | None = None
    """Damping of the fedfisher solvers, relative to a layer's mean diagonal; by default the rule's own."""
    max_bytes: int = Limits().file_bytes
    """Largest file that is accepted; twice as much after decompression, and for work on one entry at least 4 GiB."""
    model: str | None = None
    """module:function, where the start is of a network of your own."""
    base: Path | None = None
    """Folder of the model that all fine-tuned, where the payloads are of --model hf:FOLDER; --out is a folder then, as
    `from_pretrained` loads it (docs/checkpoints.md)."""


def merge(settings: MergeSettings) -> dict[str, Any] | None:
    """Write the global model, then the report, which names the model file's SHA-256; returns the report.

    Raises:
        ValueError: a file is refused (file, entry and reason), or settings do not work.
    """
    require_ranges(settings)
    if settings.base is not None:
        if settings.damping is not None or settings.model is not None:
            raise ValueError("damping, model: with a base they are not taken")
        return checkpoints.merge_folder(settings, _paths(settings.files), _limits(settings))
    _files.require_file(settings.out)
    files, described = _paths(settings.files), settings.out.with_suffix(".json")
    _require_free(settings.out, described, [settings.start, *files])
    limits = _limits(settings)
    start = model_file.read(settings.start, settings.model)
    example = jax.ShapeDtypeStruct((1, *start.kind.input_shape), jnp.float32)
    captured = capture(start.network.apply, start.params, example)
    found = payload.read_all(files, start.params, layers=captured.layers, limits=limits, start=start.fingerprint)
    headers = [header for _, header in found]
    if headers[0].about.likelihood != start.kind.likelihood:
        raise ValueError(f"start: its likelihood is {start.kind.likelihood}, the files' {headers[0].about.likelihood}")
    name = settings.rule or headers[0].about.rule
    if ":" in name and settings.rule is None:  # files make nothing run
        raise ValueError(f"rule: the files are for {name[:80]!r}; say --rule {name[:80]} to import that")
    options: dict[str, Any] = (
        {} if settings.damping is None else {"solver": conjugate_gradients(damping=settings.damping)}
    )
    if options and name not in catalogue.SOLVED:
        raise ValueError(f"damping: {name} has none")
    payloads = [sent for sent, _ in found]
    offers: dict[str, Any] = {"captured": captured}
    if name == headers[0].about.rule:  # which gave every rule's statistics the same kind in files of version 0.2
        payloads = [sent._replace(kind=None) for sent in payloads]
    if headers[0].about.kind in KINDS:
        offers["kind"] = headers[0].about.kind
    likelihood = likelihood_of(start.kind.likelihood)
    rule = catalogue.named_rule(name, start.network.apply, likelihood, offers=offers, **options)
    try:
        require_taken(rule, payloads[0])
    except ValueError as error:
        raise ValueError(f"{error}; the files are for {headers[0].about.rule[:80]}") from error
    merged = _merged(rule, payloads, start.params)
    if merged.apply is not None:
        raise ValueError(f"rule: {name} makes another network, for which there is no model file")
    record = _record(name, start.params, found, merged)
    made_by = f"merge of {len(found)} payloads by {name}"
    data = model_file.write(settings.out, start.kind, merged.params, made_by, start.scaling)
    record["sha256"] = hashlib.sha256(data).hexdigest()  # of what was written, whatever has been there since
    _files.write_json(described, record)
    for doubled in record["same_arrays"]:
        say(f"silos {' and '.join(map(str, doubled))} sent the same arrays: is one counted twice?")
    for word in words_on_rule(name, record):
        say(word)
    for path, by in _moved_though_agreed([sent.params for sent, _ in found], merged.params):
        say(f"{path}: all silos sent the same numbers, as of a frozen layer, and {name} moved them by {by:.2g}")
    Console().print(_table(record))
    print(f"{settings.out}, {described}")
    return record


def _limits(settings: MergeSettings) -> Limits:
    room = 2 * settings.max_bytes
    return Limits(file_bytes=settings.max_bytes, decoded_bytes=room, working_bytes=max(room, Limits().working_bytes))


def _require_free(out: Path, described: Path, taken: list[Path]) -> None:
    """Refuse to write over the report, the start, a payload, or a .json beside the model that is no report."""
    if out == described:
        raise ValueError(f"out: got {out}, expected another ending than that of the report, .json")
    for path in (out, described):
        _files.require_file(path, taken)
    if not described.exists():
        return
    try:
        older = json.loads(described.read_bytes()[:MOST_REPORT])
    except (ValueError, RecursionError):
        older = None
    if not isinstance(older, dict) or not {"rule", "contributors", "sha256"} <= set(older):
        raise ValueError(f"out: got {out}, whose report would write over {described}, which is no report")


def _paths(given: tuple[Path, ...]) -> list[Path]:
    paths = []
    for path in given:
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"files: no .safetensors file in {path}")
        paths += inside
    return paths


def _merged(rule: Any, payloads: list[Any], start: Any) -> Any:
    """The same program as in memory, so that the result is the same, bit for bit."""
    merged = merge_clients(rule, stack(payloads), start)
    for leaf, value in zip(payload.leaves(merged.params), jax.tree.leaves(merged.params), strict=True):
        if not np.isfinite(np.asarray(value)).all():
            raise ValueError(f"rule: the merged model is not finite at {leaf.path}")
    return merged


def _record(name: str, start: Any, found: list[tuple[Any, Header]], merged: Any) -> dict[str, Any]:
    """Who contributed, weights, bits, how far models lie apart, and how the solve went."""
    full = 32 * sum(leaf.size for leaf in jax.tree.leaves(start))
    total = sum(header.examples for _, header in found)

    def distance(first: Any, second: Any) -> float | None:
        if first is None:  # no parameters were sent
            return None
        return float(optax.tree.norm(jax.tree.map(jnp.subtract, first, second)))

    contributors = [
        {
            "silo": header.about.silo,
            "name": header.about.name,
            "examples": header.examples,
            "weight": header.examples / total,
            "bits": header.bits,
            "bits_over_fedavg": header.bits / full,
            "compression": header.about.compression,
            "privacy": header.about.privacy,
            "distance_from_start": distance(sent.params, start),
            "distance_from_merged": distance(sent.params, merged.params),
        }
        for sent, header in found
    ]
    return _files.plain(
        {
            "rule": name,
            "kind": found[0][1].about.kind,
            "start": found[0][1].about.start,
            "contributors": contributors,
            "same_arrays": _same_arrays(found),
            "examples": total,
            "bits": sum(header.bits for _, header in found),
            "fedavg_bits": full * len(found),
            "diagnostics": merged.diagnostics,
            "zero_fisher": _zero_fishers(found),
            "versions": report.versions(),
        }
    )


def _moved_though_agreed(sent: list[Any], merged: Any) -> list[tuple[str, float]]:
    """Parameters that are equal in all files of several, and not in the merged model, with how far it moved them."""
    if len(sent) < 2 or jax.tree.structure(sent[0]) != jax.tree.structure(merged):
        return []
    found = []
    for leaf, new, *theirs in zip(payload.leaves(merged), *map(jax.tree.leaves, (merged, *sent)), strict=True):
        first = np.asarray(theirs[0], np.float64)
        by = float(np.abs(np.asarray(new, np.float64) - first).max(initial=0))
        if all(np.array_equal(first, one) for one in theirs[1:]) and by > 1e-5 * np.abs(first).max(initial=0):
            found.append((leaf.path, by))
    return found


def _zero_fishers(found: list[tuple[Any, Header]]) -> list[int]:
    """Numbers of silos whose Fisher is zero everywhere."""
    return [header.about.silo for sent, header in found if zero_fishers(jax.tree.map(lambda leaf: leaf[None], sent))]


def _same_arrays(found: list[tuple[Any, Header]]) -> list[list[int]]:
    """Numbers of silos that sent the same arrays, as one silo does that takes several numbers."""
    groups: dict[str, list[int]] = {}
    for sent, header in found:
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves((sent.params, sent.statistics)):
            digest.update(np.asarray(leaf).tobytes())
        groups.setdefault(digest.hexdigest(), []).append(header.about.silo)
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
