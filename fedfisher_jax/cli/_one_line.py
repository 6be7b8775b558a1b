"""What a person sees of an error: one line that any terminal can show."""

import os
import shutil
import sys

REPORT_AT = "the issues of the project's page"
LEAST_WIDTH = 40  # in narrower terminals help texts are never done wrapping
FORESEEN = (ValueError, TypeError, OSError, ImportError)  # what the library and the system say about input


def one_line(error: BaseException) -> str:
    """The error's text in one printable line; of an error that nobody foresaw, that it is a bug, and what to do."""
    said = _printable(" ".join(str(error).split()) or type(error).__name__)
    if isinstance(error, FORESEEN):
        return said
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, SystemExit):
        return f"code that was imported left with status {said}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in said:
        return f"there is not enough memory: {said[:500]}"
    return (
        f"{type(error).__name__}: {said[:500]}. This is a bug, of fedfisher or of code that you named: run it again "
        f"with --debug, and report what it prints under {REPORT_AT}"
    )


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
