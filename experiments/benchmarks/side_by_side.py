"""Contenders side by side: each in a process of its own, run in turn A B A B …, compared pair by pair.

A contender is `"module:factory"`, a module of this folder: its process calls the factory once, with everything compiled
and warmed up there, and gets a function to be timed. Own processes keep thread pools, forced device counts and memory
apart.
"""

import contextlib
import importlib
import importlib.util
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.lib import provenance

PACKAGE = "experiments.benchmarks"
Seconds = dict[str, list[float]]  # contender → one entry per round

Found = dict[str, float]  # seconds of a round, accuracy, and the part of a round that is training

# One program thread each: what a process per core needs. Set before a contender's libraries are loaded.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Task(NamedTuple):
    """A federation: every contender trains the same network on the same clients."""

    arrays: str  # .npz file: x [N, 28, 28, 1], y [N], test_x, test_y
    clients: int  # examples are dealt out in their order, equally many to each
    sampled: int  # clients of a round
    batch_size: int
    rate: float  # of plain SGD, one epoch a round
    seed: int


def require(*modules: str) -> None:
    """Ends the script with what to install unless all modules can be imported."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"{', '.join(missing)} missing: experiments/benchmarks/README.md says what to install")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Contender:
    """A process that holds one function ready.

    Args:
        factory: "module:function" of this folder; called in the process, returns the function without arguments to be
            timed. That one is run once before the contest.
        arguments: what the factory is called with.
        env: environment variables of the process.
    """

    def __init__(self, factory: str, *arguments: Any, env: Mapping[str, str] | None = None):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        with environment(env or {}):
            self.process = context.Process(target=_serve, args=(theirs, factory, arguments), daemon=True)
            self.process.start()
        theirs.close()

    def start(self, command: str = "run") -> None:
        """Ask for a run without waiting for it."""
        self.pipe.send(command)

    def finish(self) -> Any:
        """Wait for the answer."""
        try:
            failed, answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"a contender died with exit code {self.process.exitcode}") from None
        if failed:
            raise RuntimeError(answer)
        return answer

    def __call__(self) -> None:
        """One run."""
        self.start()
        self.finish()

    def value(self) -> Any:
        """What the last run returned."""
        self.start("value")
        return self.finish()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


class Team:
    """Several contenders that do one job together, say one per core."""

    def __init__(self, members: Sequence[Contender]):
        self.members = members

    def __call__(self) -> None:
        """One run of all at once."""
        for member in self.members:
            member.start()
        for member in self.members:
            member.finish()

    def finish(self) -> None:
        """Wait until all are ready."""
        for member in self.members:
            member.finish()

    def close(self) -> None:
        """End all processes."""
        for member in self.members:
            member.close()


@contextlib.contextmanager
def ready(contenders: Mapping[str, Contender | Team]) -> Iterator[Mapping[str, Contender | Team]]:
    """Waits until all have compiled and warmed up, one after the other; ends their processes afterwards."""
    try:
        for contender in contenders.values():
            contender.finish()
        yield contenders
    finally:
        for contender in contenders.values():
            contender.close()


def alternate(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> Seconds:
    """Seconds of each contender in each round; within a round they run in turn, every other round backwards."""
    seconds: Seconds = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders) if number % 2 == 0 else reversed(list(contenders)):
            began = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def fastest(seconds: Seconds, names: Sequence[str]) -> str:
    """The one of `names` with the smallest median."""
    return min(names, key=lambda name: statistics.median(seconds[name]))


def ratio(seconds: Seconds, ours: str, theirs: str) -> dict[str, float]:
    """How many times faster `ours` is: median, smallest and largest over the rounds of the ratio within a round."""
    pairs = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    return {"median": statistics.median(pairs), "low": min(pairs), "high": max(pairs)}


def show(found: Mapping[str, float]) -> str:
    """A ratio in a table."""
    return f"{found['median']:.2f}× ({found['low']:.2f}–{found['high']:.2f})"


def load() -> float | None:
    """Programs that wanted a core over the last minute: above ours, others were measured too."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def worker(script: str, one: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one run, given as ``--worker`` to a fresh process of a script here; returns what it prints last.

    Raises:
        RuntimeError: the process failed; the message holds what it wrote.
    """
    busy = load()
    command = [sys.executable, "-m", f"{PACKAGE}.{script}", "--worker", json.dumps(one)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=provenance.ROOT)
    if done.returncode:
        raise RuntimeError(f"{one}: exit code {done.returncode}\n{done.stderr}")
    return {**json.loads(done.stdout.splitlines()[-1]), "load_before": busy}


PEAK_SIDE = 2048
PEAK_FLOP = 2 * PEAK_SIDE**3


def matrix_product() -> Callable[[], float]:
    """Contender: one large float32 product, this machine's practical peak; `PEAK_FLOP` operations."""
    import jax

    a = jax.random.normal(jax.random.key(0), (PEAK_SIDE, PEAK_SIDE))
    product = jax.jit(lambda m: m @ m)
    return lambda: float(jax.block_until_ready(product(a))[0, 0])


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _serve(pipe: Any, factory: str, arguments: Sequence[Any]) -> None:
    try:
        module, name = factory.split(":")
        run = getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)(*arguments)
        value = run()
        pipe.send((False, None))
        while True:
            if pipe.recv() == "run":
                value = run()
                pipe.send((False, None))
            else:
                pipe.send((False, value))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception:
        pipe.send((True, traceback.format_exc()))
