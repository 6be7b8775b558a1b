"""`fedfisher merge`: what the server does. Payload files in, the global model and a report out."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.console import Console

from .. import _files, payload
from .._trees import stack
from ..federate import merge_clients
from ..merge import Merged, Payload, robust
from ..merge._fold import require_squares
from ..merge._one_by_one import merge_objective, merge_products, merge_sums, passes_of
from ..merge._robust import How
from ..merge._sent import model_of
from ..payload import Limits
from ..payload import _container as container
from ..payload._files_of_a_merge import APART, PAYLOAD
from ..report import words_on_rule
from ..silos import _model_file as model_file
from ..solve._conjugate_gradients import ITERATIONS
from ..solve._passes import objective_by_passes
from . import _merge_checkpoints as checkpoints
from ._fold import region_of
from ._fold_files import MANY, Folded, again, clients_of, fold_files, shape_of
from ._gather import Gathered, gather, limits_of, needs_passes, paths_of
from ._leaving import record_of, require_as_merged, sha256_of
from ._measure_settings import TORCH
from ._merge_report import left_of, moved_though_agreed, report_of, table_of, words_on
from ._one_line import say
from ._progress import bars, stage
from ._ranges import require_ranges

MORE_PASSES = 4  # two before the solver's first step, two after its last
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
    robust: How | None = None
    """Do not trust every silo (docs/privacy.md), with all payloads in memory; trimmed, median: --rule fedavg alone."""
    faulty: int | None = None
    """With robust trimmed, krum or outliers: how many silos may be faulty; by default (n − 3) / 2 of n."""
    cap: float | None = None
    """With robust: largest share of the weight that a silo may have; by default 2 / n."""
    without: tuple[int, ...] = ()
    """Numbers of silos that leave: their files are not merged, and the report says so."""
    into: Path | None = None
    """A region of all silos that were merged so far, or a name for one: it is merged, too, and the files are folded
    into it, so that silos that come later, or leave (`fedfisher leave`), need no other file than their own."""
    names: bool = False
    """Write the silos' names into that region, too; else their numbers alone."""
    max_bytes: int = Limits().file_bytes
    """Largest file that is accepted; twice as much after decompression, and for work on one entry at least 4 GiB."""
    in_memory: int = 2**26
    """Bytes of all payloads together up to which a rule that stacks (fedfisher-kfac) holds them; where they are more,
    it reads the files again for each step of its solver."""
    model: str | None = None
    """module:function, where the start is of a network of your own; or torch:module:function, where the payloads are
    of such a module: --out is a state dict then, .safetensors or PyTorch's .pt, that `load_state_dict` takes."""
    base: Path | None = None
    """Folder of the model that all fine-tuned, where the payloads are of --model hf:FOLDER; --out is a folder then, as
    `from_pretrained` loads it (docs/checkpoints.md). For torch:module:function: the state dict that all fine-tuned;
    by default its numbers are as the function makes them."""
    adapter: Path | None = None
    """With a base, where the payloads are of adapters: the folder of one of the same shapes, such as a client's, for
    its config. --out is an adapter, too."""


def merge(settings: MergeSettings) -> dict[str, Any] | None:
    """Write the global model, then the report, which names the model file's SHA-256; returns the report.

    Raises:
        ValueError: a file is refused (file, entry and reason), or settings do not work.
    """
    require_ranges(settings)
    module = (settings.model or "").startswith(TORCH)
    if settings.adapter is not None and (settings.base is None or module):
        raise ValueError("adapter: expected it with --base FOLDER alone")
    if settings.base is None and not module:
        return merge_files(settings)
    refused = (
        "start",
        "damping",
        "into",
        "names",
        "robust",
        "faulty",
        "cap",
        "without",
        *(() if module else ("model",)),
    )
    if given := [name for name in refused if getattr(settings, name) != getattr(MergeSettings, name)]:
        raise ValueError(f"{', '.join(given)}: with a model of PyTorch not taken; --rule takes options, rule,damping=3")
    if module:
        _files.require_file(settings.out)
    files, limits = paths_of(settings.files), limits_of(settings.max_bytes)
    if not module:
        return checkpoints.merge_folder(settings, files, limits)
    taken = files if settings.base is None else [*files, settings.base]
    _require_free(settings.out, settings.out.with_suffix(".json"), taken)
    return checkpoints.merge_state(settings, files, limits)


def merge_files(settings: MergeSettings, leaving: tuple[Path, ...] = (), left: Path | None = None) -> dict[str, Any]:
    """Do what `merge` does where there is no base.

    Args:
        settings: what to merge.
        leaving: payload files of silos that leave and are within a sum.
        left: where the record of those that leave is written, before the region loses them.

    Raises:
        ValueError: as `merge`.
    """
    require_ranges(settings)
    if settings.names and settings.into is None:
        raise ValueError("names: needs --into, the region that they are written to")
    _files.require_file(settings.out)
    files, described = paths_of(settings.files), settings.out.with_suffix(".json")
    _require_free(settings.out, described, [settings.start, *files, *leaving])
    if settings.into is not None:
        _files.require_file(settings.into, [settings.start, settings.out, described, *files, *leaving], "into")
        files += [settings.into] if settings.into.exists() else []
    before = {"model": sha256_of(settings.out), "region": sha256_of(settings.into)}
    gathered = gather(
        files,
        settings.start,
        model=settings.model,
        rule_name=settings.rule,
        max_bytes=settings.max_bytes,
        without=settings.without,
        leaving=leaving,
        damping=settings.damping,
    )
    if any(part.path == str(settings.into) and part.holds == PAYLOAD for part in gathered.parts):
        raise ValueError(f"into: got {settings.into}, which is a silo's payload, expected a region or a new name")
    start, name = gathered.start, gathered.name
    distrust = None
    if settings.robust is not None:
        distrust = {"how": settings.robust, "faulty": settings.faulty, "cap": settings.cap}
    if left is not None:
        require_as_merged(settings.out, report_beside(settings.out), gathered.said, distrust)
    gathered = _distrusting(gathered, settings)
    folded = fold_files(gathered, hold=not needs_passes(gathered, settings.in_memory))
    merged = _merged(gathered, folded)
    if merged.apply is not None:
        raise ValueError(f"rule: {name} makes another network, for which there is no model file")
    record = report_of(gathered, folded, merged)
    if distrust is not None:
        record["robust"] = distrust
    region = None if settings.into is None else region_of(gathered, folded, settings.names)
    made_by = f"merge of {len(folded.seen)} payloads by {name}"
    data = model_file.write(settings.out, start.kind, merged.params, made_by, start.scaling, start.classes)
    record["sha256"] = _sha256(data)  # of what was written, whatever has been there since
    if folded.left:
        after = None if region is None else _sha256(region)
        stay = [part.path for part in gathered.parts if any(s.header.about.silo in folded.seen for s in part.silos)]
        record["leaving"] = record_of(
            left_of(gathered, folded), before, record["sha256"], after, stay, list(folded.seen)
        )
        if left is not None:
            _files.write_json(left, record["leaving"])
    _files.write_json(described, record)
    if settings.into is not None and region is not None:  # last: a merge that is killed before can be done again
        container.write_bytes(settings.into, region)
    for doubled in record["same_arrays"]:
        say(f"silos {' and '.join(map(str, doubled))} sent the same arrays: is one counted twice?")
    for word in words_on_rule(name, record) + words_on(folded):
        say(word)
    for path, by in moved_though_agreed(folded, merged.params):
        say(f"{path}: all silos sent the same numbers, as of a frozen layer, and {name} moved them by {by:.2g}")
    if model_of(merged.params) is not merged.params:
        say(f"{settings.out}: a step of {name} is half done, or another one is to come: measure --rule {name} there")
    Console().print(table_of(record))
    print(f"{settings.out}, {described}")
    return record


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _distrusting(gathered: Gathered, settings: MergeSettings) -> Gathered:
    """The files with a rule that does not trust every silo, where that is asked for."""
    if settings.robust is None:
        if settings.faulty is not None or settings.cap is not None:
            raise ValueError("faulty, cap: need robust")
        return gathered
    for part in gathered.parts:
        if part.holds not in APART:
            raise ValueError(f"robust: {part.path} holds a sum, in which no silo can be told from the others")
    return gathered._replace(rule=robust(gathered.rule, settings.robust, faulty=settings.faulty, cap=settings.cap))


def _require_free(out: Path, described: Path, taken: list[Path]) -> None:
    """Refuse to write over the report, the start, a payload, or a .json beside the model that is no report."""
    if out == described:
        raise ValueError(f"out: got {out}, expected another ending than that of the report, .json")
    for path in (out, described):
        _files.require_file(path, taken)
    report_beside(out)


def report_beside(out: Path) -> dict[str, Any] | None:
    """Read the older report beside a model, if there is one.

    Raises:
        ValueError: the .json beside it is no report.
    """
    described = out.with_suffix(".json")
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
    """Payloads that are held are merged by the same program as in memory, to the same bits."""
    rule, start = gathered.rule, gathered.start.sent
    if folded.sums is not None:
        merged = merge_sums(rule, folded.sums, shape_of(gathered), None, start)
    elif folded.payloads:
        merged = merge_clients(rule, stack(list(folded.payloads.values())), start)
    else:
        merged = _solved_by_passes(gathered, folded)
    for leaf, value in zip(payload.leaves(merged.params), jax.tree.leaves(merged.params), strict=True):
        if not np.isfinite(np.asarray(value)).all():
            raise ValueError(f"rule: the merged model is not finite at {leaf.path}")
    return merged


def _solved_by_passes(gathered: Gathered, folded: Folded) -> Merged:
    """Payloads are read again for each step of the solver; the time that is shown as left is that of the most steps."""
    most, console = ITERATIONS + MORE_PASSES, Console(stderr=True)
    with bars(console, disable=len(gathered.parts) < MANY or not console.is_terminal) as progress:
        done = stage(progress, f"solving, at most {most} passes", most * len(gathered.parts))

        def one_pass() -> Iterator[Payload]:
            parts = (part for part in gathered.parts if done() is None)
            return (sent for sent, _ in again(gathered, parts))

        rule, start = gathered.rule, gathered.start.params
        passes = passes_of(rule, one_pass, start)
        if not folded.products:
            return require_squares(rule, merge_objective(rule, objective_by_passes(passes), start, start))
        clients = clients_of(gathered, folded, passes)
        return merge_products(rule, folded.products, clients and clients[:2], start)
