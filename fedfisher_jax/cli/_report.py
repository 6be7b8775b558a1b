"""`fedfisher report`: runs as one page that opens by double click, anywhere."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from .. import _files
from ..report import page


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """Write one HTML page of one or several runs: tables, figures, what went wrong, and the command to repeat each."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of `fedfisher run`, or of `fedfisher sweep`, whose cells are shown."""
    out: Path | None = None
    """The file to write; by default report.html in the first folder."""


def report_runs(settings: ReportSettings) -> None:
    """Write the page.

    Raises:
        ValueError: a folder without a run, or a damaged record; it is named.
    """
    if not settings.folders:
        raise ValueError("folders: expected at least one, got none")
    found = [folder for given in settings.folders for folder in _runs_in(given)]
    names = [folder.name if len(found) > 1 else str(folder) for folder in found]
    if len(set(names)) != len(names):
        names = [str(folder) for folder in found]
    out = settings.folders[0] / "report.html" if settings.out is None else settings.out
    _files.require_file(out, [folder / "result.json" for folder in found])
    text = page([(name, _read(folder)) for name, folder in zip(names, found, strict=True)])
    _files.write_atomically(out, text)
    print(f"{out}: {len(found)} run{'s' * (len(found) > 1)}, {len(text.encode()) / 1e3:.0f} kB")


def _runs_in(folder: Path) -> list[Path]:
    if (folder / "result.json").is_file():
        return [folder]
    inside = sorted(file.parent for file in (folder / "cells").glob("*/result.json"))
    if not inside:
        raise ValueError(f"folders: got {folder}, expected the folder of a run, with a result.json, or of a sweep")
    return inside


def _read(folder: Path) -> dict:
    try:
        found = json.loads((folder / "result.json").read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"folders: {folder}/result.json is damaged, expected an object of JSON") from error
    if not isinstance(found, dict):
        raise ValueError(f"folders: {folder}/result.json is a {type(found).__name__}, expected an object of JSON")
    return found
