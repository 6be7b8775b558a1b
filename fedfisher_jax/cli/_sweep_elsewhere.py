"""The cells of a sweep by an engine (`--on`), what became of those that failed, and how far all are (`--status`)."""

import collections
import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from ._cell import LOG, Job, last_lines, state_of
from ._cluster import Engine, run_jobs
from ._progress import bars
from ._settings import RunSettings, words_of

Cells = list[tuple[str, RunSettings]]
AS_IT_IS: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


def run_elsewhere(engine: Engine, out: Path, cells: Cells) -> tuple[Cells, list[str]]:
    """Run what is missing of all cells; which are done, and the names of those that failed.

    The ends of the failed ones' logs are printed. With `--overwrite`, all cells are missing.

    Raises:
        KeyboardInterrupt: the user's; cells that run are stopped.
    """
    missing = [cell for _, cell in cells if cell.overwrite or state_of(cell.out, cell.rules) != "done"]
    rules = {cell.out: cell.rules for cell in missing}
    failed: dict[Path, str] = {}
    console = Console(stderr=True)
    with bars(console) as progress:
        task = progress.add_task("cells", total=len(cells), completed=len(cells) - len(missing))
        for job, said in run_jobs(engine, [_job(cell) for cell in missing], out):
            if not said and state_of(job.folder, rules[job.out]) != "done":
                said = f"it ended well elsewhere, and {job.folder} has no result: do all machines share it?"
            if said:
                failed[job.out] = said
                _say_with_log(console, job.out, said)
            progress.advance(task)
    done = [(column, dataclasses.replace(cell, overwrite=False)) for column, cell in cells if cell.out not in failed]
    return done, [path.name for path in failed]


def show_status(cells: Cells) -> None:
    """Print how many cells are done, failed, begun and waiting, and of those that failed the ends of their logs."""
    console, states = Console(), {cell.out: state_of(cell.out, cell.rules) for _, cell in cells}
    counts = collections.Counter(states.values())
    words = {"done": "done", "failed": "failed", "begun": "begun (they run, or were lost)", "waiting": "waiting"}
    console.print(f"{len(cells)} cells: " + ", ".join(f"{counts[state]} {said}" for state, said in words.items()))
    for path, state in states.items():
        if state == "failed":
            _say_with_log(console, path, "")


def _job(cell: RunSettings) -> Job:
    again = ("--overwrite",) if cell.overwrite else ()
    return Job(cell.out.name, (*words_of(cell), *again), cell.out, Path.cwd())


def say_failed(console: Console, path: Path, said: str) -> None:
    """Print that a cell failed, perhaps why, and where its log is."""
    console.print(f"failed: {path.name}{said and ': '}{said} ({path / LOG})", **AS_IT_IS)


def _say_with_log(console: Console, path: Path, said: str) -> None:
    say_failed(console, path, said)
    for line in last_lines(path):
        console.print(f"    {line}", **AS_IT_IS)
