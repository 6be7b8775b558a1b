"""Engines that run the cells of a sweep elsewhere: processes of this machine, Slurm by submitit, Dask.

They place, queue, and start again; nothing of that is done here. Cells share the file system that `--out` lies in.
"""

import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..federate._map_clients import cores
from ..merge._options import named
from ._cell import Job, stop

KINDS = "local[=N], slurm[,OPTION=VALUE,…] or dask=tcp://HOST:PORT"
SLURM = {
    "partition": "slurm_partition",
    "time": "timeout_min",
    "memory": "mem_gb",
    "gpus": "gpus_per_node",
    "cpus": "cpus_per_task",
    "at_once": "slurm_array_parallelism",
    "account": "slurm_account",
    "qos": "slurm_qos",
    "constraint": "slurm_constraint",
}
NUMBERS = ("time", "memory", "gpus", "cpus", "at_once")
LOOKED = 0.1  # seconds between looks at local processes
ASKED = 5.0  # seconds between questions to Slurm
MINUTES = 60  # of a cell, where none are said
Ended = Iterator[tuple[Job, str]]  # jobs as they end, with what is wrong: empty where nothing is


class Engine(NamedTuple):
    """An engine that was asked for."""

    kind: str
    where: str  # what stands after "="
    options: dict[str, Any]


def engine_of(text: str) -> Engine:
    """Read what `--on` says.

    Raises:
        ValueError: no engine, or an option that it does not have.
        ImportError: its package is not there; what to install is said.
    """
    said = named(text, "on")
    kind, equals, where = said.name.partition("=")
    if kind not in ENGINES or (kind == "dask") != bool(where) and kind != "local" or equals and not where:
        raise ValueError(f"on: got {text[:80]!r}, expected {KINDS}")
    options: dict[str, Any] = {}
    for name, value in said.options.items():
        if kind != "slurm" or name not in SLURM:
            known = f"one of {', '.join(SLURM)}".replace("_", "-") if kind == "slurm" else f"none with {kind}"
            raise ValueError(f"on: got the option {name.replace('_', '-')[:40]!r}, expected {known}")
        options[SLURM[name]] = _count(name, value) if name in NUMBERS else value
    if kind == "local" and where:
        _count("local", where)
    for module in {"slurm": ["submitit"], "dask": ["distributed"]}.get(kind, []):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(f"on: {kind} needs more: pip install 'fedfisher-jax[{kind}]'") from error
    return Engine(kind, where, options)


def run_jobs(engine: Engine, jobs: Sequence[Job], folder: Path) -> Ended:
    """Run all jobs, and tell of each when it ends; those that did not end are stopped with this.

    Args:
        engine: where.
        jobs: what is to be run.
        folder: where the engine may keep its own files.
    """
    return ENGINES[engine.kind](engine, jobs, folder) if jobs else iter(())


def _local(engine: Engine, jobs: Sequence[Job], folder: Path) -> Ended:
    del folder
    waiting, count = list(reversed(jobs)), int(engine.where or cores())
    running: dict[Any, Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < count:
                job = waiting.pop()
                running[job.start()] = job
            time.sleep(LOOKED)
            for process in [process for process in running if process.poll() is not None]:
                stop(process)
                job = running.pop(process)
                yield job, job.end(process.returncode)
    finally:
        for process in running:
            stop(process)


def _slurm(engine: Engine, jobs: Sequence[Job], folder: Path) -> Ended:
    """One array of jobs; submitit submits those anew that Slurm took the machine away from."""
    import submitit  # pyright: ignore[reportMissingImports]

    executor = submitit.AutoExecutor(folder / "slurm", cluster="slurm")
    executor.update_parameters(name="fedfisher", **{"timeout_min": MINUTES, **engine.options})
    with executor.batch():
        futures = [executor.submit(job) for job in jobs]
    try:
        yield from _as_they_end(futures, jobs, lambda every: submitit.helpers.as_completed(every, poll_frequency=ASKED))
    finally:
        for future in futures:
            if not future.done():
                future.cancel()


def _dask(engine: Engine, jobs: Sequence[Job], folder: Path) -> Ended:
    """A task each; the scheduler gives those of a worker that died to another one, three times at most."""
    del folder
    import distributed  # pyright: ignore[reportMissingImports]

    with distributed.Client(engine.where, timeout=30) as client:
        futures = [client.submit(job, pure=False) for job in jobs]
        yield from _as_they_end(futures, jobs, distributed.as_completed)


def _as_they_end(futures: Sequence[Any], jobs: Sequence[Job], in_order: Callable[[Any], Iterable[Any]]) -> Ended:
    places = {id(future): job for future, job in zip(futures, jobs, strict=True)}
    for future in in_order(futures):
        job, error = places[id(future)], future.exception()
        if error is not None:  # not of the cell, whose process ends with a code, but of whoever ran it
            job.tell(lost := f"lost: {' '.join(str(error).split())[:500] or type(error).__name__}")
        yield job, future.result() if error is None else lost


def _count(name: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"on: {name.replace('_', '-')}: got {value[:40]!r}, expected a whole number, at least 1")
    return int(value)


ENGINES: dict[str, Callable[[Engine, Sequence[Job], Path], Ended]] = {"local": _local, "slurm": _slurm, "dask": _dask}
