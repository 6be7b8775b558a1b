"""What every experiment script shares: the command line, resumed runs, tables, figures, provenance.

A script is four steps: read its settings, make the grid of runs, run what is missing, report::

    @dataclasses.dataclass(frozen=True)
    class Settings(common.Settings):
        rounds: int = 10  # script-specific fields become flags: --rounds 10

    def main() -> None:
        settings = common.command_line(Settings, __doc__)
        grid = [{"method": m, "seed": s} for m in METHODS for s in range(settings.seed, settings.seed + 5)]
        records = common.run_all(settings.out, grid, run)     # run(settings of one run) -> dict of results
        common.report(settings.out, table=..., summary=..., figure=...)

Files in ``--out``: ``results.jsonl`` (a line per run, as it comes), ``table.md``, ``figure.png``, ``summary.json``.
A run is identified by its dictionary of settings; runs already in ``results.jsonl`` are not repeated, so a killed
script goes on where it stopped. Start over by deleting the folder.
"""

import collections
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
import rich.progress
import tyro
from cycler import cycler
from matplotlib.figure import Figure

from experiments.lib import provenance
from fedfisher_jax._files import only_writer, plain, read_json_lines, write_atomically, write_figure
from fedfisher_jax.report._colours import LOCAL as LOCAL
from fedfisher_jax.report._colours import REFERENCE as REFERENCE
from fedfisher_jax.report._colours import colours_of

ROOT = provenance.ROOT
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")  # Okabe-Ito and grey
STYLE: dict[Any, Any] = {
    "figure.dpi": 130,
    "font.size": 9,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


# ---- command line ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Settings:
    """Flags of every script; a script adds its own by subclassing.

    Attributes:
        quick: A small version of the experiment, for a look and for tests; by default kept apart from the real results.
        seed: The first seed; scripts that repeat use ``seed, seed + 1, …``.
        out: Folder of the results; by default of the topic and the script, and below ``quick/`` with ``--quick``.
    """

    quick: bool = False
    seed: int = 0
    out: Path = Path("experiments/results/<topic>/<script>")


S = TypeVar("S", bound=Settings)


def command_line(
    cls: type[S],
    description: str | None = None,
    args: Sequence[str] | None = None,
    quick: Mapping[str, Any] | None = None,
) -> S:
    """Reads ``cls`` from the command line (or ``args``), fills the default ``out`` and makes that folder.

    With ``--quick``, `quick` holds the defaults of other flags; a flag that is given counts.
    """
    settings = tyro.cli(cls, description=description, args=args)
    if settings.quick and quick:
        settings = tyro.cli(cls, description=description, args=args, default=cls(quick=True, **quick))
    if settings.out == cls.out:
        script = Path(sys.argv[0]).resolve()
        folder = script.parent.relative_to(ROOT / "experiments") if script.is_relative_to(ROOT / "experiments") else ""
        out = ROOT / "experiments" / "results" / ("quick" if settings.quick else "") / folder / script.stem
        settings = dataclasses.replace(settings, out=out)
    settings.out.mkdir(parents=True, exist_ok=True)
    return settings


# ---- runs that resume ------------------------------------------------------------------------------------------------


def contents(settings: Mapping[str, Any]) -> dict[str, str]:
    """What is in the .npz files that settings name, by setting: another table under an old name is another run."""
    named = {name: Path(str(value)).expanduser() for name, value in settings.items() if str(value).endswith(".npz")}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for name, path in named.items() if path.is_file()}


def run_key(settings: Mapping[str, Any], content: Mapping[str, str] | None = None) -> str:
    """The identity of a run: its settings, in whatever order, and the content of files that they name.

    Args:
        settings: The settings.
        content: What `contents` said when the run was made; by default what it says now.
    """
    found = contents(settings) if content is None else content
    return json.dumps([plain(settings), dict(found)] if found else plain(settings), sort_keys=True)


def key_of(record: Mapping[str, Any]) -> str:
    """The identity of the run that a line of ``results.jsonl`` tells of."""
    return run_key(record["settings"], record.get("content", {}))


def read_results(path: Path) -> list[dict[str, Any]]:
    """Complete records of a ``results.jsonl``; the torn last line that a kill may leave is ignored.

    Raises:
        ValueError: a line is damaged; it is named by its number.
    """
    return read_json_lines(path, "settings", "result")


def append_result(path: Path, record: Mapping[str, Any]) -> None:
    """Appends a record and its commit, a line that is on disk when this returns; a torn last line is cut off first."""
    with open(path, "ab+") as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        found = {"content": content} if (content := contents(record["settings"])) else {}
        file.write(json.dumps(plain({**record, **found, "commit": provenance.commit()})).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def run_all(
    out: Path, grid: Iterable[Mapping[str, Any]], run: Callable[..., Mapping[str, Any]], label: str = "runs"
) -> list[dict[str, Any]]:
    """Runs every settings dictionary of `grid` that is not in ``results.jsonl`` yet, with progress and time left.

    Args:
        out: Folder of the results.
        grid: One dictionary of JSON-like settings per run.
        run: Called as ``run(**settings)``; returns the dictionary of results of that run.
        label: What the progress bar calls the runs.

    Returns:
        One record ``{"settings": …, "result": …, "seconds": …}`` per entry of `grid`, in its order.
    """
    with only_writer(out):
        return _run_missing(out / "results.jsonl", list(grid), run, label)


def _run_missing(
    path: Path, grid: Sequence[Mapping[str, Any]], run: Callable[..., Mapping[str, Any]], label: str
) -> list[dict[str, Any]]:
    done = {key_of(r): r for r in read_results(path)}
    todo = [s for s in grid if run_key(s) not in done]
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns) as progress:
        task = progress.add_task(label, total=len(grid), completed=len(grid) - len(todo))
        for settings in todo:
            start = time.perf_counter()
            result = run(**settings)
            record = {"settings": settings, "result": result, "seconds": round(time.perf_counter() - start, 3)}
            append_result(path, record)
            done[run_key(settings)] = plain(record)
            progress.advance(task)
    return [done[run_key(s)] for s in grid]


def column(records: Iterable[Mapping[str, Any]], name: str, **where: Any) -> np.ndarray:
    """Result `name` of the records whose settings match `where`, as a float array (None reads as NaN)."""
    chosen = [r["result"][name] for r in records if all(r["settings"].get(k) == v for k, v in where.items())]
    return np.asarray(chosen, dtype=float)


# ---- tables, figures, summaries --------------------------------------------------------------------------------------


def mean_std(values: Any, digits: int = 1, scale: float = 1.0) -> str:
    """``mean±std`` over the first axis (sample std, n − 1), `digits` decimals each; NaNs are shown, not skipped."""
    values = scale * np.atleast_1d(np.asarray(values, dtype=float))
    spread = f"±{values.std(ddof=1):.{digits}f}" if values.size > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def figure(rows: int = 1, columns: int = 1, width: float = 4.2, height: float = 3.2) -> tuple[Figure, np.ndarray]:
    """A figure in the shared style and its ``[rows, columns]`` array of axes; sizes are inches per panel."""
    matplotlib.rcParams.update(STYLE)  # for good: legends and texts added later read it too
    fig = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False)


def rule_colours(names: Iterable[str], rules: Mapping[str, str] | None = None) -> dict[str, str]:
    """The colour of each rule of a figure, which is the same in all figures.

    Args:
        names: What the script calls them.
        rules: The rule that a name stands for, where it is not its own.
    """
    stands = {name: (rules or {}).get(name, name) for name in names}
    own = colours_of(stands.values())
    return {name: own[rule] for name, rule in stands.items()}


def run_commits(path: Path) -> dict[str, int]:
    """How many runs of a ``results.jsonl`` each commit made; runs older than this record are under "unrecorded"."""
    return dict(collections.Counter(record.get("commit", "unrecorded") for record in read_results(path)))


def report(out: Path, table: str, summary: Mapping[str, Any], fig: Figure | None = None) -> None:
    """Writes ``table.md``, ``summary.json`` and ``figure.png``, each at once, with the provenance; prints the table."""
    source = provenance.describe() | {"runs": run_commits(out / "results.jsonl")}
    runs = ", ".join(f"{count} at {made_by}" for made_by, count in source["runs"].items())
    versions = ", ".join(f"{k} {v}" for k, v in source["versions"].items())
    where = f"`{source['command']}` at {source['commit']}, {source['date']}" + (f" (runs: {runs})" if runs else "")
    note = f"\n{where}; {versions}; {source['machine']}\n"
    write_atomically(out / "table.md", table + note)
    write_atomically(out / "summary.json", json.dumps(plain({**summary, "provenance": source}), indent=2) + "\n")
    if fig is not None:
        write_figure(fig, out / "figure.png")
    print(table + note)
