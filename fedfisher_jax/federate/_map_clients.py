"""Many clients at once: one interface to run a pure per-client function, and how the clients share the machine.

A per-client function is `function(shared, client) -> result`: `shared` (data arrays, starting point) lies on the device
once, `client` is one slice of a pytree with a leading client axis (rows of indices, sizes, keys). The result for a
client does not depend on strategy, order of clients, groups, padding or device count, to float tolerance.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._compat import standard_promotion
from .._trees import pick
from ._over_devices import pmapped, sharded
from ._over_threads import cores, threaded

PyTree = Any
STRATEGIES = ("sequential", "threads", "vectorised", "devices", "pmap")


class CohortReport(NamedTuple):
    """How a cohort ran."""

    strategy: str
    workers: int  # threads or devices that ran clients side by side
    group: int  # clients in one vectorised call
    waste: float  # share of client-steps that were padding, between 0 and 1


def report_of(reports: Sequence[tuple[CohortReport, float]]) -> CohortReport:
    """One report of several parts of a cohort, each with its client-steps."""
    parts, work = zip(*reports, strict=True)
    room = sum(steps / max(1 - part.waste, 1e-9) for part, steps in reports)
    workers, group = max(part.workers for part in parts), max(part.group for part in parts)
    return CohortReport(parts[-1].strategy, workers, group, _waste(sum(work), room))


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
        results = threaded(function, shared, ordered, workers, tell)
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
        spread = pmapped if strategy == "pmap" else sharded
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
