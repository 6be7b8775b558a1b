"""Whether a folder holds the run that is asked for, whole or in part, another one, or none."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from .. import _files, data

TRAINED = "trained.npz"  # the clients of one shot that are trained so far
FOUND = ("clients", "rules", "references", "seconds", "cohort", "words")  # the parts of a record that are results
ELSEWHERE = (
    "out",
    "dataset",
    "data_dir",
    "strategy",
    "distributed",
    "overwrite",
    "track",
)  # settings that change no result


def begun(settings: Any, dataset: data.Dataset, out: Path, first: bool) -> dict[str, Any] | None:
    """The record of this very run where the folder holds one, whole if it is "complete"; else None.

    A run that is asked for more rules than the folder holds is this very run, and not complete.

    Raises:
        ValueError: the folder holds another run, or results of rules that are not asked for; what differs is named.
    """
    made_by, result = out / _files.MADE_BY, out / "result.json"
    if settings.overwrite:
        if not first:
            return None  # whatever lies there until the first host has removed it
        for path in (made_by, result, out / TRAINED):
            path.unlink(missing_ok=True)
    elif result.exists() and not made_by.exists():
        raise ValueError(f"out: {out} holds a run, and not what made it; name another folder, or say --overwrite")
    arrays = dataset.train_x, dataset.train_y, dataset.test_x, dataset.test_y, dataset.groups
    given = {name: value for name, value in dataclasses.asdict(settings).items() if name not in ELSEWHERE}
    identity = _files.plain(given) | {"data": _files.content(arrays)[:12]}
    usual = {field.name: field.default for field in dataclasses.fields(settings) if field.name in given}
    usual = {name: value for name, value in usual.items() if value is not dataclasses.MISSING}
    same, defaults = ({name: json.dumps(_files.plain(v)) for name, v in many.items()} for many in (identity, usual))
    record, remedy = _read(result), ", or say --overwrite"
    told = list((record or {}).get("rules", ()))
    if lost := [name for name in told if name not in settings.rules]:
        raise ValueError(
            f"folder: {out} holds another run: rules {', '.join(told)} there, without {', '.join(lost)} here; "
            f"name another folder{remedy}"
        )
    _files.require_same_run(out, same, write=first, remedy=remedy, defaults=defaults, may_change=("rules",))
    whole = record is not None and record.get("complete") and set(settings.rules) <= set(told)
    return None if record is None else record | {"complete": bool(whole)}


def _read(result: Path) -> dict[str, Any] | None:
    """The record of a folder; None where there is none, or one that somebody else damaged: it is written whole."""
    try:
        record = json.loads(result.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def found_in(before: dict[str, Any] | None) -> dict[str, Any]:
    """What a record of one shot that was stopped has found: nothing until its first rule is done."""
    return {name: before[name] for name in FOUND} if before and before.get("rules") else {}
