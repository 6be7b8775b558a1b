"""One cell of a sweep as a process of its own, wherever an engine runs it; its log lies beside its result.

The process is `fedfisher run …`, which ends when what started it does, whose end of a pipe it holds: a cell that is
begun again elsewhere, after its worker was killed, never finds the first attempt still writing.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

LOG, RESULT, ENDED = "log.txt", "result.json", "-- ended: "
ORPHANED = 143  # the exit code of a process whose parent is gone, as after SIGTERM
LINES = 5  # of a log that are shown
PROGRAM = f"from {__name__} import run_and_listen; run_and_listen()"


@dataclasses.dataclass(frozen=True)
class Job:
    """A cell, to be run by whom it is sent to.

    Attributes:
        name: what the cell is called.
        words: the arguments of `fedfisher` that run it.
        out: its folder, below `here`.
        here: the folder that the sweep was started in, from which paths count.
    """

    name: str
    words: tuple[str, ...]
    out: Path
    here: Path

    @property
    def folder(self) -> Path:
        """The cell's folder, from anywhere."""
        return self.here / self.out

    def start(self) -> subprocess.Popen:
        """Start the cell's process; what it prints goes to the end of its log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOG, "ab") as log:
            now = datetime.datetime.now().isoformat(" ", "seconds")
            log.write(f"-- {now}, {socket.gethostname()}: fedfisher {shlex.join(self.words)}\n".encode())
            log.flush()
            command = [sys.executable, "-c", PROGRAM, *self.words]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
            return subprocess.Popen(command, cwd=self.here, start_new_session=True, **pipes)

    def __call__(self) -> str:
        """Run the cell to its end; what is wrong with it, empty where nothing is."""
        process = self.start()
        try:
            process.wait()
        finally:
            stop(process)
        return self.end(process.returncode)

    def end(self, code: int) -> str:
        """What an exit code means, which the log is told, too; empty where the cell is done."""
        said = "" if code == 0 else f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        self.tell(said or "done")
        return said

    def tell(self, said: str) -> None:
        """Write in the cell's log how it ended."""
        self.folder.mkdir(parents=True, exist_ok=True)
        append(self.folder, f"{ENDED}{said}")

    def checkpoint(self) -> Any:
        """What submitit submits when Slurm takes the machine away: the same cell, which goes on where it can."""
        import submitit  # pyright: ignore[reportMissingImports]

        return submitit.helpers.DelayedSubmission(self)


def stop(process: subprocess.Popen) -> None:
    """End a cell's process, if it has not ended, by letting go of the pipe."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    process.wait()


def append(folder: Path, said: str) -> None:
    """Write a line, or more, at the end of a cell's log."""
    with open(folder / LOG, "ab") as file:
        file.write(f"{said}\n".encode(errors="replace"))


def state_of(folder: Path, rules: Collection[str]) -> str:
    """What a cell's folder says of it and of its rules: done, failed, begun (it runs, or was lost), or waiting."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((folder / RESULT).read_bytes())
        if isinstance(record, dict) and record.get("complete") and set(rules) <= set(record.get("rules", ())):
            return "done"
    if not (folder / LOG).exists():
        return "begun" if (folder / RESULT).exists() else "waiting"
    return "failed" if (last_lines(folder, 1) or [""])[0].startswith(ENDED) else "begun"


def last_lines(folder: Path, count: int = LINES) -> list[str]:
    """The last lines of a cell's log that are not empty, as printable text; none where there is no log."""
    try:
        with open(folder / LOG, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 100_000))
            text = log.read().decode(errors="replace")
    except OSError:
        return []
    lines = ("".join(c for c in line if c.isprintable() or c == "\t").rstrip() for line in text.splitlines())
    return [line[:500] for line in lines if line][-count:]


def run_and_listen() -> None:
    """Run the command of this process, and end it at once when the other end of the pipe is closed."""
    from ._cli import main

    threading.Thread(target=_end_with_parent, daemon=True).start()
    main(sys.argv[1:])


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing ever comes
    os._exit(ORPHANED)
