"""Fold thousands of clients in groups: memory is bounded by a group, and a killed run goes on where it stopped.

Additive contributions are summed where the clients run (within a program, over threads, by `psum` over devices) and
never gathered. Stacked ones keep only payloads.
"""

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from .._compat import standard_promotion
from .._trees import pick, weighted_sum, widened
from ._groups import checkpoint_of, in_groups, stacked_on
from ._map_clients import CohortReport, count_clients, default_strategy, map_clients
from ._over_devices import clients_mesh, everywhere, replicate, this_copy
from ._over_threads import client_threads, compiled, cores

PyTree = Any


@standard_promotion
def fold_clients(
    function: Callable[[Any, Any], PyTree],
    shared: PyTree,
    clients: PyTree,
    *,
    combine: str,
    group: int = 64,
    strategy: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    done: Callable[[int], None] | None = None,
) -> tuple[PyTree, CohortReport]:
    """Run `function` for each client and fold the results group by group.

    Args:
        function: (shared, client) → contribution, a pytree of arrays (say, a trained client's lifted payload); the same
            object between calls, or it is traced again.
        shared: arrays that all clients read.
        clients: pytree with a leading client axis.
        combine: "add" sums contributions leaf by leaf; "stack" keeps them along a leading client axis.
        group: clients between checkpoints. With "vectorised" they all run at once; otherwise one at a time per worker.
        strategy: how clients share the machine, see `map_clients`; "devices" sums by `psum` over the mesh axis
            `clients`, across hosts too.
        checkpoint: file written, whole, after each group; found there, its groups are not run again. Delete it to start
            over. The result is the one of an uninterrupted run, bit for bit. A checkpoint of other clients, shared
            arrays (a seed among them), shapes or, with "add", groups is refused; another function with results of equal
            shapes cannot be told. Several hosts share the file, which the first one writes.
        done: called with the number of clients that just finished.

    Returns:
        The folded contributions, and how it ran.

    Raises:
        ValueError: unknown `combine`, `group` < 1, no clients, leaves for different numbers of clients, or a checkpoint
            of another run or in a folder that is not there.

    Example:
        >>> import jax.numpy as jnp, fedfisher_jax as ff
        >>> weigh = lambda shared, client: shared * client
        >>> total, _ = ff.fold_clients(weigh, 2.0, jnp.arange(5.0), combine="add", group=2, strategy="sequential")
        >>> float(total)
        20.0
    """
    if combine not in ("add", "stack"):
        raise ValueError(f"combine: got {combine!r}, expected add or stack")
    if group < 1:
        raise ValueError(f"group: expected at least 1 client, got {group}")
    strategy = default_strategy() if strategy is None else strategy
    count = count_clients(clients)
    group = min(group, count)

    def added(rows: np.ndarray) -> tuple[PyTree, CohortReport, float]:
        # The last group is filled up with copies that weigh nothing, so that it is no new program.
        part = pick(clients, np.minimum(np.arange(rows[0], rows[0] + group), count - 1))
        count_in = jnp.arange(group) < len(rows)
        result, _, workers = jax.block_until_ready(sum_clients(_Summand(function), strategy, shared, part, count_in))
        return result, CohortReport(strategy, workers, group, 0.0), float(len(rows))

    def stacked(rows: np.ndarray) -> tuple[PyTree, CohortReport, float]:
        result, report = map_clients(function, shared, pick(clients, rows), strategy=strategy, group=group)
        return jax.tree.map(np.asarray, result), report, float(len(rows))

    kept = checkpoint_of(checkpoint, f"{group} add" if combine == "add" else "stack", function, shared, clients)
    run, join = (added, jnp.add) if combine == "add" else (stacked, stacked_on)
    return in_groups(run, join, count, group, kept, done)


@dataclasses.dataclass(frozen=True)
class _Summand:
    """A function all of whose result is summed."""

    function: Callable

    def __call__(self, shared: PyTree, client: PyTree) -> tuple[PyTree, None]:
        return self.function(shared, client), None


def sum_clients(
    function: Callable[[Any, Any], tuple[PyTree, PyTree]],
    strategy: str,
    shared: PyTree,
    clients: PyTree,
    valid: jax.Array,
) -> tuple[PyTree, PyTree, int]:
    """Sum over clients where they run, and keep what is asked for of each.

    Args:
        function: (shared, client) → (summed, kept).
        strategy: sequential, vectorised (both can be part of a larger jitted program), threads or devices.
        shared: arrays that all clients read.
        clients: pytree with a leading client axis.
        valid: [M] which of them count in the sum.

    Returns:
        Σ summed, kept with a leading client axis, and how many ran side by side.

    Raises:
        ValueError: another strategy.
    """
    group = valid.shape[0]
    if strategy == "vectorised":
        return *_vectorised_sum(function, shared, clients, valid), 1
    if strategy == "sequential":
        return *_running_sum(function, shared, clients, valid), 1
    workers = min(cores() if strategy == "threads" else jax.device_count(), group)
    if strategy == "devices" and jax.process_count() > 1:
        workers = jax.device_count()  # a host without a device in the mesh could not take part
    deal = np.arange(-(-group // workers) * workers).reshape(-1, workers).T  # [workers, rows]: like cards
    back = np.argsort(deal.ravel())[:group]
    real = jnp.asarray(deal < group) & valid[np.minimum(deal, group - 1)]
    dealt = pick(clients, np.minimum(deal, group - 1))
    if strategy == "threads":
        hands = [pick((dealt, real), w) for w in range(workers)]
        program = compiled(_running_sum, function, shared, *hands[0])
        with client_threads(workers) as pool:
            results = list(pool.map(lambda hand: jax.block_until_ready(program(shared, *hand)), hands))
        sums, kept = zip(*results, strict=True)
        kept = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[back], *kept)
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *sums), kept, workers
    if strategy == "devices":
        mesh = clients_mesh(workers)
        sums, kept = _device_sums(function, workers, *replicate(mesh, (shared, dealt, real)))
        total = this_copy(everywhere(workers, sums, total=True))
        return total, pick(this_copy(everywhere(workers, kept)), back), workers
    raise ValueError(f"strategy: got {strategy!r}, expected sequential, threads, vectorised or devices to add")


@partial(jax.jit, static_argnums=0)
def _vectorised_sum(function: Callable, shared: PyTree, clients: PyTree, valid: Any) -> tuple[PyTree, PyTree]:
    results, kept = jax.vmap(partial(function, shared))(clients)
    return weighted_sum(valid, widened(results)), kept


@partial(jax.jit, static_argnums=0)
def _running_sum(function: Callable, shared: PyTree, clients: PyTree, valid: Any) -> tuple[PyTree, PyTree]:
    def add(total: PyTree, client: tuple) -> tuple[PyTree, PyTree]:
        who, real = client
        result, kept = jax.lax.cond(real, lambda: function(shared, who), lambda: zeros)
        return jax.tree.map(lambda old, new: old + new.astype(old.dtype), total, result), kept

    shapes = jax.eval_shape(function, shared, pick(clients, 0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, widened(zeros[0]), (clients, valid))


@partial(jax.jit, static_argnums=(0, 1))
def _device_sums(function: Callable, workers: int, shared: PyTree, dealt: PyTree, real: Any) -> PyTree:
    """Each device's sum and what is kept of its clients, along the mesh axis."""

    def on_device(everyone: PyTree, mine: PyTree, valid: Any) -> tuple[PyTree, PyTree]:
        hand = pick(mine, 0)
        total, kept = _running_sum(function, everyone, hand, valid[0])
        return jax.tree.map(lambda leaf: leaf[None], total), kept

    each, all_ = PartitionSpec("clients"), PartitionSpec()
    mesh = clients_mesh(workers)
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=(all_, each, each), out_specs=each, check_vma=False)
    return mapped(shared, dealt, real)
