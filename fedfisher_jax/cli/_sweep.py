"""`fedfisher sweep`: many runs, and the tables and the figure of all."""

import contextlib
import dataclasses
import json
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from .. import _files, report
from ._cell import ENDED, append, state_of
from ._cluster import engine_of
from ._one_line import going_on, one_line
from ._progress import bars
from ._run import run_in
from ._settings import check, command_of
from ._sweep_elsewhere import run_elsewhere, say_failed, show_status
from ._sweep_settings import cells_of

CLEARED = 20  # cells after which compiled programs are dropped: each holds memory maps, of which Linux gives 65,530
UNTOLD = ("seconds", "seconds_measure", "seconds_merge")  # or the files would not be the same again


def sweep(settings: Any) -> None:
    """Run what is missing of every cell, here or elsewhere, and write results.jsonl, tables and figures.

    Raises:
        ValueError: settings of a cell that do not work, before any cell runs; a folder that holds other runs; cells
            that failed, after the others ran and their tables were written.
    """
    against = settings.rules[0] if settings.against is None and settings.rules else settings.against
    if against is None or against not in settings.rules:
        raise ValueError(f"against: got {against}, expected one of --rules: {', '.join(settings.rules)}")
    cells = cells_of(settings)
    for _, cell in cells:
        check(cell)
        _require_last(settings.last, cell)
    if settings.status:
        show_status(cells)
        return
    engine = None if settings.on is None else engine_of(settings.on)
    out = _files.require_folder(settings.out)
    with _files.only_writer(out):
        done, failed = (cells, []) if engine is None else run_elsewhere(engine, out, cells)
        if done:
            failed += _write_tables(settings, out, done, against)
    if failed:
        names = "; ".join(failed)
        raise ValueError(f"{len(failed)} of {len(cells)} cells failed: {names}; the same command runs them again")


def _write_tables(settings: Any, out: Path, cells: list[tuple[str, Any]], against: str) -> list[str]:
    """Run what is missing and write what the cells say; returns the names of those that failed."""
    found, failed = _run_all(out, cells)
    if not found:
        return failed
    shown = report.by_round(found) if settings.last == 1 else report.mean_of_last(found, settings.last)
    summary = report.summarise(shown, against)
    tables = [(_caption(settings, cells, found, summary), summary)]
    for measure, values in report.further(found, summary.measure):
        tables.append((f"{_capital(measure.said)}.", report.summarise(values, against, measure)))
    made_by = _made_by(settings, found)
    for name, write, more in (("table.md", report.markdown, f"\n{made_by}\n"), ("table.tex", report.latex, "")):
        _files.write_atomically(out / name, "\n".join(write(one, caption) for caption, one in tables) + more)
    _files.write_atomically(out / "table.csv", report.comma_separated(summary, [one for _, one in tables[1:]]))
    drawn = report.summarise(found if settings.last == 1 else shown, against)
    report.plot_summary(drawn, found, out / "figure")
    console = Console()
    for caption, one in tables:
        console.print(report.summary_table(one, caption, console.width))
    print(f"{out}/results.jsonl, table.md, table.csv, table.tex, figure.png, figure.pdf, cells/")
    return failed


def _run_all(out: Path, cells: list[tuple[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    console, found, failed = Console(stderr=True), [], []
    with bars(console) as progress:
        task = progress.add_task("cells", total=len(cells))
        for column, cell in cells:
            progress.update(task, description=f"{column}, seed {cell.seed}"[:26])
            try:
                cell.out.mkdir(parents=True, exist_ok=True)
                if state_of(cell.out, cell.rules) == "failed":
                    append(cell.out, "-- again")
                with going_on(lambda: f"{len(found)} of {len(cells)} cells are done", cell.overwrite):
                    record, _ = run_in(cell, Console(stderr=True, quiet=True))
            except Exception as error:  # whatever it is, it need not be the next cell's
                failed.append(cell.out.name)
                say_failed(console, cell.out, _logged(cell.out, error))
                progress.advance(task)
                continue
            found.append(_line(column, cell, json.loads(json.dumps(_files.plain(record)))))
            lines = "".join(json.dumps(line) + "\n" for line in found)
            _files.write_atomically(out / "results.jsonl", lines)
            progress.advance(task)
            if len(found) % CLEARED == 0:
                jax.clear_caches()
    return found, failed


def _logged(folder: Path, error: Exception) -> str:
    """The error in one line, after its trace was written in the cell's log."""
    said = one_line(error)
    with contextlib.suppress(OSError):  # of the very folder
        append(folder, f"{''.join(traceback.format_exception(error))}{said}\n{ENDED}failed")
    return said


def _line(column: str, cell: Any, record: dict[str, Any]) -> dict[str, Any]:
    told = {
        name: {key: value for key, value in rule.items() if key not in UNTOLD} for name, rule in record["rules"].items()
    }
    settings = {name: value for name, value in record["settings"].items() if name not in ("out", "overwrite")}
    parts = {"varied": column, "seed": cell.seed, "settings": settings, "rules": told}
    return parts | {"references": record["references"], "versions": record["versions"]}


def _caption(settings: Any, cells: list[tuple[str, Any]], found: list[dict[str, Any]], summary: report.Summary) -> str:
    counts = sorted(Counter(line["varied"] for line in found).values())  # fewer where a cell failed
    seeds = f"{counts[0]} to {counts[-1]}" if counts[0] != counts[-1] else counts[0]
    named = ("dataset", "model", "clients", "rounds")
    shared = [sorted({str(getattr(cell, name)) for _, cell in cells}) for name in named]
    data, model, clients, rounds = (values[0] if len(values) == 1 else "several" for values in shared)
    data = Path(data).name
    who = "" if clients == "several" else f"{clients} clients, "  # the columns say how many
    how = "one shot" if rounds == "1" else f"{rounds} rounds"
    spread = f"mean ± standard deviation over {seeds} seeds" if counts[-1] > 1 else "one seed"
    paired = "; differences are paired by seed" if len(settings.rules) > 1 else ""
    last = f", mean of the last {settings.last}" if settings.last > 1 else ""
    return f"{_capital(summary.measure.said)}, {data}, {model}, {who}{how}{last}: {spread}{paired}."


def _made_by(settings: Any, found: list[dict[str, Any]]) -> str:
    """The command, but for where the table lies, and the versions that made the cells: several where these differ."""
    told: dict[str, list[str]] = {}
    for line in found:
        for name, version in line["versions"].items():
            told.setdefault(name, []).append(str(version))
    versions = ", ".join(f"{name} {' and '.join(dict.fromkeys(several))}" for name, several in told.items())
    elsewhere = dataclasses.replace(settings, out=type(settings).out)
    return f"`{command_of(elsewhere, 'sweep')}`; {versions}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _require_last(last: int, cell: Any) -> None:
    own = cell.rounds - cell.warm_up_rounds
    if not 1 <= last <= own:
        raise ValueError(f"last: got {last}, expected 1 to {own}, the rounds of every rule")
