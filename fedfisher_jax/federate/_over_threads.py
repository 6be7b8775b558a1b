"""Clients over threads: a program for each client, as many at a time as there are cores."""

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from .._trees import pick, stack

PyTree = Any
HANDS = "fedfisher-client"  # what the names of threads that run clients begin with


@partial(jax.jit, static_argnums=0)
def _one(function: Callable, shared: PyTree, client: PyTree) -> PyTree:
    return function(shared, client)


def threaded(function: Callable, shared: PyTree, clients: PyTree, workers: int, tell: Callable) -> PyTree:
    """Run `function` for each client on so many threads, and `tell(1)` as each one finishes."""
    shared = jax.tree.map(jnp.asarray, shared)

    def client(number: int) -> PyTree:
        return pick(clients, number)

    program = compiled(_one, function, shared, client(0))

    def run(number: int) -> PyTree:
        result = jax.block_until_ready(program(shared, client(number)))
        tell(1)
        return result

    count = jax.tree.leaves(clients)[0].shape[0]
    with client_threads(workers) as pool:
        return stack(list(pool.map(run, range(count))))


@contextlib.contextmanager
def client_threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for clients. After Ctrl-C nobody waits for what they compute, which cannot be stopped from within."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix=HANDS)
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(wait=not isinstance(error, KeyboardInterrupt), cancel_futures=True)
        raise
    pool.shutdown()


def compiled(jitted: Any, function: Callable, *arguments: PyTree) -> Callable:
    """What `jitted(function, *arguments)` runs, compiled once per function and shapes, not per thread or call."""
    leaves, tree = jax.tree.flatten(arguments)
    return _compiled(jitted, function, tree, tuple(jax.typeof(leaf) for leaf in leaves))


@lru_cache(maxsize=64)
def _compiled(jitted: Any, function: Callable, tree: Any, avals: tuple) -> Callable:
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in avals]
    return jitted.lower(function, *jax.tree.unflatten(tree, shapes)).compile()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
