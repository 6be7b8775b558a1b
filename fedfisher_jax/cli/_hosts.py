"""The hosts of `run --distributed`: on each a process that computes, and the one that was started, which watches it.

When a host dies, JAX's runtime ends the processes of all others from C++, with a stack and with no way to say it
otherwise. The watcher says one line instead, with an exit code of its own. What C++ prints is kept from the terminal,
and is shown where a process died of something else.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from ._cell import PROGRAM, stop
from ._one_line import raised_here

INSIDE = "FEDFISHER_HOST"  # in the environment of the process that computes: numbers of what it prints to
HEARTBEAT = 10  # seconds without a sign of life after which a host counts as dead
NAME = 64  # bytes of a host's name
LOST = 75  # the exit code where another host died: what is temporary, by sysexits.h
SIGNS = ("distributed service detected fatal errors", "stopped sending heartbeats")
GONE = (
    "another host of this run is gone, or cannot be reached, so this one ended, too; the same command goes on from the "
    "last checkpoint, on as many hosts as there are then"
)


class Ended(Exception):
    """A host ended with a code of its own, and why, where that was not said yet."""

    def __init__(self, code: int, said: str = ""):
        super().__init__(said)
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
        sys.stdout.flush()
        streams = os.dup(1), os.dup(2)
        try:
            how = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log, "pass_fds": streams}
            command = [sys.executable, "-c", PROGRAM, *words]
            process = subprocess.Popen(command, env=os.environ | {INSIDE: "{},{}".format(*streams)}, **how)
        finally:
            for stream in streams:
                os.close(stream)
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
        raise Ended(LOST, GONE)
    if code < 0:
        print(heard, file=sys.stderr, flush=True)
        raise Ended(128 - code, f"this host's process was killed by signal {-code}")
    raise Ended(code)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other hosts, and tell errors that come of a host that died from others.

    Raises:
        Ended: another host died.
        ValueError: JAX finds no other hosts.
    """
    streams = map(int, os.environ[INSIDE].split(","))
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, errors="backslashreplace") for stream in streams)
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    except ValueError as error:
        raise ValueError(f"distributed: {error} Expected a pod, or a step of Slurm (srun) or Open MPI") from error
    try:
        yield
    except Exception as error:
        if "Gloo" in str(error):  # by which CPUs exchange arrays; it notices a closed connection at once
            raise Ended(LOST, GONE) from error
        if not raised_here(error):
            time.sleep(2 * HEARTBEAT)  # within which the runtime ends this process, if a host died
        raise


def who_is_here() -> str:
    """Say which hosts take part, with how many devices; all of them call it."""
    name = np.frombuffer(socket.gethostname().encode()[:NAME].ljust(NAME, b"\0"), np.uint8)
    rows = multihost_utils.process_allgather(name).reshape(-1, NAME)
    names = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]
    devices = Counter(device.process_index for device in jax.devices())
    each = ", ".join(f"{name} with {devices[number]}" for number, name in enumerate(names))
    words = "1 host" if len(names) == 1 else f"{len(names)} hosts"
    return f"{words}, {jax.device_count()} devices: {each}; bars count what all of them have done"
