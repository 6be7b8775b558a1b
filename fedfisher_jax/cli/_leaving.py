"""What a silo that left can keep: what it was taken out of, hashes before and after, and what leaving does not do."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..merge._options import named

NOT_REMOVED = (
    "What models of later rounds, or models that were trained on, learnt from a model that the silo had a part in.",
    "Copies of the payload file, of regions and of models that were sent out, or are in backups.",
    "What the difference of the models before and after says about the silo, to those who have both.",
    "The silo's number, its number of examples and its hashes, in this record and in older reports.",
)


def sha256_of(path: Path | None) -> str | None:
    """The SHA-256 of a file's bytes, as `sha256sum` prints it; None where there is no file."""
    if path is None or not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_as_merged(out: Path, older: Mapping[str, Any] | None, said: str, robust: Mapping[str, Any] | None) -> None:
    """Refuse to merge those that stay by other settings than the model was merged by that the others leave.

    Args:
        out: the model.
        older: the report beside it, if there is one.
        said: the rule with its options.
        robust: how, faulty and cap; None where every silo is trusted.

    Raises:
        ValueError: which setting, and what to say.
    """
    if older is None:
        return
    before = older.get("merged_by")
    if isinstance(before, str) and _parts(before) != _parts(said):
        raise ValueError(f"rule: got {said[:80]}, and {out} was merged by {before[:80]!r}: say --rule {before[:80]}")
    distrust = older.get("robust")
    if distrust != robust:
        flags = [f"--{'robust' if k == 'how' else k} {v}" for k, v in (distrust or {}).items() if v is not None]
        given = "none" if robust is None else ", ".join(f"{key} {value}" for key, value in robust.items())
        raise ValueError(f"robust: got {given}, and {out} was merged with {' '.join(flags) or 'none'}: say so")


def _parts(said: str) -> list[Any]:
    """The parts of a rule's name with their options, numbers as such."""

    def value(word: str) -> float | str:
        try:
            return float(word)
        except ValueError:
            return word

    found = (named(part) for part in said.split("+"))
    return [(one.name, {key: value(word) for key, word in one.options.items()}, set(one.features)) for one in found]


def record_of(
    left: Sequence[Mapping[str, Any]],
    before: Mapping[str, str | None],
    model: str,
    region: str | None,
    files: Sequence[str],
    stay: Sequence[int],
) -> dict[str, Any]:
    """Say who left a merge, and what the model is merged from now.

    Args:
        left: what the merge saw of each silo that left: number, name, examples, file, SHA-256 of the arrays and of the
            file, where it was a file of its own.
        before: the SHA-256 of the model and of the region that this merge replaced, by "model" and "region".
        model: the SHA-256 of the new model.
        region: that of the new region, where one is kept.
        files: what was merged, except payload files of silos that left.
        stay: the numbers of the silos that the model is made of now.
    """
    return {
        "left": list(left),
        "before": dict(before),
        "after": {"model": model, "region": region, "silos": sorted(stay)},
        "merged": [{"file": Path(file).name, "sha256": sha256_of(Path(file))} for file in files],
        "equals": "the merge that never saw the silos that left",
        "not_removed": list(NOT_REMOVED),
    }
