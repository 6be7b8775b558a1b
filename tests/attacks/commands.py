"""The `fedfisher` command run in this process: its exit status, and what it printed."""

import contextlib
import io

from fedfisher_jax import cli


def command(*words):
    """Exit status (or the exception that came through, as text) and output of `fedfisher words`."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            cli.main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code or 0, out.getvalue()
    except BaseException as error:  # that none comes through is what is tested
        return f"{type(error).__name__} came through: {error}", out.getvalue()
    return 0, out.getvalue()


def refused(*words):
    """The one line with which a command exits with 2."""
    status, text = command(*words)
    assert status == 2, (status, text)
    lines = text.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("fedfisher: ") and len(lines[0]) > 20, text
    return lines[0]
