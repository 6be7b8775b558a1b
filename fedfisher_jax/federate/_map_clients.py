"""Many clients at once: one interface to run a pure per-client function, and how the clients share the machine.

A per-client function is `function(shared, client) -> result`: `shared` (data arrays, starting point) lies on the device
once, `client` is one slice of a pytree with a leading client axis (rows of indices, sizes, keys). The result for a
client does not depend on strategy, order of clients, groups, padding or device count, to float tolerance.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._compat import standard_promotion
from .._trees import pick, stack

PyTree = Any
HANDS = "fedfisher-client"  # what the names of threads that run clients begin with
STRATEGIES = ("sequential", "threads", "vectorised", "devices", "pmap")


class CohortReport(NamedTuple):
    """How a cohort ran."""

    strategy: str
    workers: int  # threads or devices that ran clients side by side
    group: int  # clients in one vectorised call
    waste: float  # share of client-steps that were padding, between 0 and 1


def default_strategy() -> str:
    """Devices where there are several, threads on a CPU of several cores, vectorised on one accelerator."""
    if jax.device_count() > 1:
        return "devices"
    if jax.default_backend() != "cpu":
        return "vectorised"
    return "threads" if cores() > 1 else "sequential"


@standard_promotion
def map_clients(
    function: Callable[[Any, Any], PyTree],
    shared: PyTree,
    clients: PyTree,
    *,
    strategy: str | None = None,
    group: int = 32,
    steps: Sequence[int] | np.ndarray | None = None,
    done: Callable[[int], None] | None = None,
) -> tuple[PyTree, CohortReport]:
    """Run `function` for each client.

    Args:
        function: (shared, client) → pytree of arrays; the same object between calls, or it is traced again.
        shared: arrays that all clients read.
        clients: pytree with a leading client axis.
        strategy: one of `STRATEGIES`; default `default_strategy()`. "sequential": one after the other in one program.
            "threads": one program per client, as many at a time as there are cores. "vectorised": `vmap` over groups.
            "devices": `shard_map` over the devices of all hosts on a mesh axis `clients`, one client after the other
            within a device. "pmap" does the same by `pmap` on this host's devices.
        group: clients in one vectorised call.
        steps: how much work each client is: long ones start first, and a vectorised group holds clients of like length,
            since all its clients take as long as its longest.
        done: called with the number of clients that just finished, for progress.

    Returns:
        Results with a leading client axis in the order of `clients`, and how it ran.

    Raises:
        ValueError: unknown strategy, no clients, leaves for different numbers of clients, `group` < 1, `steps` of
            another length.

    Example:
        >>> import jax.numpy as jnp, fedfisher_jax as ff
        >>> weigh = lambda shared, client: shared * client
        >>> results, report = ff.map_clients(weigh, 2.0, jnp.arange(3.0), strategy="vectorised")
        >>> results.tolist(), report.strategy
        ([0.0, 2.0, 4.0], 'vectorised')
    """
    strategy = default_strategy() if strategy is None else strategy
    count = _check(clients, strategy, group, steps)
    work = np.ones(count) if steps is None else np.asarray(steps, float)
    order = np.argsort(-work, kind="stable")
    ordered = pick(clients, order)
    tell = done or (lambda _: None)
    waste, workers, size = 0.0, 1, 1
    if strategy == "sequential":
        results = _sequential(function, shared, ordered)
        tell(count)
    elif strategy == "threads":
        workers = min(cores(), count)
        results = _threads(function, shared, ordered, workers, tell)
    elif strategy == "vectorised":
        size = min(group, count)
        results = _vectorised(function, shared, ordered, size, tell)
        waste = padding_waste(work[order], size)
    else:
        workers = jax.local_device_count() if strategy == "pmap" else jax.device_count()
        # Deal clients out like cards, so that every device gets long and short ones.
        rows = -(-count // workers)
        deal = np.arange(rows * workers).reshape(rows, workers).T.ravel()
        padded = pick(ordered, np.minimum(deal, count - 1))
        spread = _pmapped if strategy == "pmap" else _sharded
        dealt = spread(function, shared, padded, workers)
        tell(count)
        results = jax.tree.map(lambda leaf: leaf[np.argsort(deal)[:count]], dealt)
        load = work[order][np.minimum(deal, count - 1)].reshape(workers, rows).sum(1)
        waste = _waste(work.sum(), load.max() * workers)
    back = np.argsort(order)
    return pick(results, back), CohortReport(strategy, workers, size, waste)


def padding_waste(steps: Sequence[int] | np.ndarray, group: int) -> float:
    """Share of client-steps that do nothing when consecutive groups run as long as their longest client."""
    work = np.asarray(steps, float)
    blocks = [work[start : start + group] for start in range(0, len(work), group)]
    return _waste(work.sum(), sum(block.max() * group for block in blocks))


def _waste(work: float, room: float) -> float:
    """Share of the room that is not work; none where there is nothing to do."""
    return float(1 - work / room) if room else 0.0


@partial(jax.jit, static_argnums=0)
def _sequential(function: Callable, shared: PyTree, clients: PyTree) -> PyTree:
    return jax.lax.map(partial(function, shared), clients)


@partial(jax.jit, static_argnums=0)
def _group(function: Callable, shared: PyTree, clients: PyTree) -> PyTree:
    return jax.vmap(partial(function, shared))(clients)


@partial(jax.jit, static_argnums=0)
def _one(function: Callable, shared: PyTree, client: PyTree) -> PyTree:
    return function(shared, client)


def _threads(function: Callable, shared: PyTree, clients: PyTree, workers: int, tell: Callable) -> PyTree:
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


def _vectorised(function: Callable, shared: PyTree, clients: PyTree, group: int, tell: Callable) -> PyTree:
    count = jax.tree.leaves(clients)[0].shape[0]
    parts = []
    for start in range(0, count, group):
        rows = np.minimum(np.arange(start, start + group), count - 1)  # the last group repeats its last client
        part = _group(function, shared, pick(clients, rows))
        kept = min(group, count - start)
        parts.append(jax.block_until_ready(jax.tree.map(lambda leaf, kept=kept: leaf[:kept], part)))
        tell(kept)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def clients_mesh(workers: int) -> Mesh:
    """The first `workers` devices of all hosts on one axis, `clients`."""
    return Mesh(np.array(jax.devices()[:workers]), ("clients",))


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """The same arrays on every device of the mesh; each host passes its own equal copy."""
    sharding = NamedSharding(mesh, PartitionSpec())
    mine = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]

    def place(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        return jax.make_array_from_single_device_arrays(
            leaf.shape, sharding, [jax.device_put(leaf, device) for device in mine]
        )

    return jax.tree.map(place, tree)


def require_same_everywhere(value: Any, otherwise: str) -> None:
    """Wait for all hosts, and compare a number of each.

    Raises:
        ValueError: `otherwise`, where they differ.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        if len(np.unique(multihost_utils.process_allgather(np.asarray(value, np.int32)))) > 1:
            raise ValueError(otherwise)


def this_copy(tree: PyTree) -> PyTree:
    """This host's first copy of replicated arrays, as ordinary arrays."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _sharded(function: Callable, shared: PyTree, clients: PyTree, workers: int) -> PyTree:
    results = _shard_mapped(function, workers, *replicate(clients_mesh(workers), (shared, clients)))
    return this_copy(everywhere(workers, results))


@partial(jax.jit, static_argnums=(0, 1))
def _shard_mapped(function: Callable, workers: int, shared: PyTree, clients: PyTree) -> PyTree:
    each, all_ = PartitionSpec("clients"), PartitionSpec()
    mapped = jax.shard_map(
        lambda everyone, mine: jax.lax.map(partial(function, everyone), mine),
        mesh=clients_mesh(workers),
        in_specs=(all_, each),
        out_specs=each,
        check_vma=False,
    )
    return mapped(shared, clients)


def everywhere(workers: int, results: PyTree, total: bool = False) -> PyTree:
    """Results that lie along the mesh axis, gathered (or summed over devices) to every device of every host.

    A program of its own, started once the results are there: on CPU a device that waits for the others within a longer
    program holds threads that they need to get there.
    """
    return _everywhere(workers, total, jax.block_until_ready(results))


@partial(jax.jit, static_argnums=(0, 1))
def _everywhere(workers: int, total: bool, results: PyTree) -> PyTree:
    def exchange(mine: PyTree) -> PyTree:
        if total:
            return jax.lax.psum(pick(mine, 0), "clients")
        return jax.lax.all_gather(mine, "clients", tiled=True)

    each, all_ = PartitionSpec("clients"), PartitionSpec()
    mesh = clients_mesh(workers)
    return jax.shard_map(exchange, mesh=mesh, in_specs=(each,), out_specs=all_, check_vma=False)(results)


def _pmapped(function: Callable, shared: PyTree, clients: PyTree, workers: int) -> PyTree:
    # From the host, since pmap refuses arrays that lie on one device where there are several.
    split = jax.tree.map(lambda leaf: leaf.reshape(workers, -1, *leaf.shape[1:]), jax.device_get(clients))
    # On one device, or the next operation is spread over all of them and waits for itself.
    results = jax.device_put(jax.block_until_ready(_pmap(function)(shared, split)), jax.local_devices()[0])
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results)


@lru_cache(maxsize=64)
def _pmap(function: Callable) -> Callable:
    return jax.pmap(lambda everyone, mine: jax.lax.map(partial(function, everyone), mine), in_axes=(None, 0))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_clients(clients: PyTree) -> int:
    """How many clients there are, which is the leading axis of every leaf.

    Raises:
        ValueError: none, or leaves for different numbers of clients.
    """
    found = sorted({jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(clients)})
    if not found or found[0] in ((), (0,)):
        raise ValueError("clients: expected at least one, got none")
    if len(found) > 1:
        raise ValueError(f"clients: got leaves for {found[0][0]} and for {found[1][0]} clients, expected equally many")
    return found[0][0]


def _check(clients: PyTree, strategy: str, group: int, steps: Any) -> int:
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: got {strategy!r}, expected one of {', '.join(STRATEGIES)}")
    count = count_clients(clients)
    if group < 1:
        raise ValueError(f"group: expected at least 1 client, got {group}")
    if steps is not None and len(steps) != count:
        raise ValueError(f"steps: expected {count} numbers, one per client, got {len(steps)}")
    return count
