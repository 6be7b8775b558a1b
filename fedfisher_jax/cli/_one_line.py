"""What a person sees of an error: one line that any terminal can show."""

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPORT_AT = "the issues of the project's page"
AGAIN = 5.0  # seconds, longer than a command needs to clean up
LEAST_WIDTH = 40  # in narrower terminals help texts are never done wrapping
PACKAGE = Path(__file__).parent.parent
SAID_BY_US = (ValueError, TypeError)  # where this package raises them: what it says about input
SAID_BY_THE_SYSTEM = (OSError, ImportError)


class Terminated(KeyboardInterrupt):
    """The system asks the process to end (SIGTERM), as Slurm and Docker do: it ends as after Ctrl-C."""


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, with its temporary files removed; in the main thread alone.

    An exception of a signal's handler is lost where it meets a finaliser or a callback from compiled code: it is raised
    again until the command has ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    alarm = getattr(signal, "SIGALRM", None)  # not on every system
    again = alarm is not None and signal.getsignal(alarm) is signal.SIG_DFL

    def stop(number: int, frame: Any) -> None:
        del frame
        heard.append(number)
        if again:
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
        raise Terminated if heard[0] == signal.SIGTERM else KeyboardInterrupt

    ours = [signal.SIGTERM, signal.SIGINT, *([alarm] if again else [])]
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.signal(number, stop) for number in ours if signal.getsignal(number) in usual}
    try:
        yield
    finally:
        if again:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def going_on(kept: Callable[[], str], overwrite: bool) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM say what is kept of what was done, and which command goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        kind = Terminated if isinstance(stop, Terminated) else KeyboardInterrupt
        command = "the same command without --overwrite" if overwrite else "the same command"
        raise kind(f"{kept()}; {command} goes on from there") from None


def one_line(error: BaseException) -> str:
    """The error's text in one printable line; of an error that nobody foresaw, that it is a bug, and what to do."""
    if isinstance(error, KeyboardInterrupt):
        how = "terminated" if isinstance(error, Terminated) else "interrupted"
        return f"{how}: {error}" if str(error) else f"{how}: what was written is whole; the same command does it again"
    said = _printable(" ".join(str(error).split()) or type(error).__name__)
    if isinstance(error, SAID_BY_THE_SYSTEM) or isinstance(error, SAID_BY_US) and raised_here(error):
        return said
    if isinstance(error, SystemExit):
        return f"code that was imported left with status {said}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in said:
        return f"there is not enough memory: {said[:500]}"
    return (
        f"{type(error).__name__}: {said[:500]}. This is a bug, of fedfisher or of code that you named: run it again "
        f"with --debug, and report what it prints under {REPORT_AT}"
    )


def raised_here(error: BaseException) -> bool:
    """Tell whether this package raised an error itself; what other libraries raise when it calls them is a bug."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and PACKAGE in Path(trace.tb_frame.f_code.co_filename).parents


def say(word: str) -> None:
    """Tell a person, in a line on the error stream, what is no error and yet odd."""
    print(f"fedfisher: note: {_printable(word)}", file=sys.stderr, flush=True)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def fit_terminal() -> None:
    """Let help and tables work in terminals that are very narrow, or cannot show every character."""
    if shutil.get_terminal_size().columns < LEAST_WIDTH:
        os.environ["COLUMNS"] = str(LEAST_WIDTH)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
