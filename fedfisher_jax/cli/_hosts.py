"""The hosts of `run --distributed`: on each a process that computes, and the one that was started, which watches it.

When a host dies, JAX's runtime ends the processes of all others from C++, with a stack and with no way to say it
otherwise. The watcher says one line instead, with an exit code of its own. What C++ prints is kept from the terminal,
and is shown where a process died of something else.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import jax

from ._cell import PROGRAM, stop

INSIDE = "FEDFISHER_HOST"  # in the environment of the process that computes: the number of its error stream
HEARTBEAT = 10  # seconds without a sign of life after which a host counts as dead
LOST = 75  # the exit code where another host died: what is temporary, by sysexits.h
SIGNS = ("distributed service detected fatal errors", "stopped sending heartbeats")
GONE = (
    "another host of this run is gone, so this one ended, too; the same command goes on from the last checkpoint, on "
    "as many hosts as there are then"
)


class Ended(BaseException):
    """The process that was watched ended with a code, and has said why."""

    def __init__(self, code: int):
        self.code = code


def inside() -> bool:
    """Whether this is the process that computes."""
    return INSIDE in os.environ


def watch(words: Sequence[str]) -> None:
    """Run a command of `fedfisher` as a process, and say in one line what nobody else can.

    Raises:
        Ended: with its exit code, where that is not 0; `LOST` where another host died.
    """
    with tempfile.TemporaryFile() as log:
        said = os.dup(sys.stderr.fileno())
        try:
            how = {"stdin": subprocess.PIPE, "stderr": log, "pass_fds": (said,)}
            command = [sys.executable, "-c", PROGRAM, *words]
            process = subprocess.Popen(command, env=os.environ | {INSIDE: str(said)}, **how)
        finally:
            os.close(said)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            code = process.wait()
        finally:
            stop(process)
        if code == 0:
            return
        log.seek(0)
        heard = log.read().decode(errors="replace")
    if code == -signal.SIGABRT and any(sign in heard for sign in SIGNS):
        print(f"fedfisher: {GONE}", file=sys.stderr, flush=True)
        raise Ended(LOST)
    if code < 0:
        print(f"{heard}fedfisher: killed by signal {-code} on this host", file=sys.stderr, flush=True)
        raise Ended(128 - code)
    raise Ended(code)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other hosts; errors of the runtime wait until it is known whether they come of a host that died."""
    sys.stderr = os.fdopen(int(os.environ[INSIDE]), "w", buffering=1, errors="backslashreplace")
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    try:
        yield
    except jax.errors.JaxRuntimeError:
        time.sleep(2 * HEARTBEAT)  # within which it ends this process, if one has
        raise
