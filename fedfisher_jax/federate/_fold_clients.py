"""Fold thousands of clients in groups: memory is bounded by a group, and a killed run goes on where it stopped.

Additive contributions are summed where the clients run (within a program, over threads, by `psum` over devices) and
never gathered. Stacked ones keep only payloads.
"""

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from .._compat import standard_promotion
from .._files import content, write_atomically
from .._trees import pick, weighted_sum, widened
from ._map_clients import CohortReport, count_clients, default_strategy, map_clients, report_of
from ._over_devices import clients_mesh, everywhere, replicate, require_same_everywhere, this_copy
from ._over_threads import client_threads, compiled, cores

PyTree = Any
Reports = list[tuple[CohortReport, float]]  # of each group, with its client-steps


@standard_promotion
def fold_clients(
    function: Callable[[Any, Any], PyTree],
    shared: PyTree,
    clients: PyTree,
    *,
    combine: str,
    group: int = 64,
    strategy: str | None = None,
    steps: Sequence[int] | np.ndarray | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    done: Callable[[int], None] | None = None,
    found: Callable[[int], None] | None = None,
    run: Callable[..., tuple[PyTree, CohortReport]] = map_clients,
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
        steps: how much work each client is, see `map_clients`.
        done: called with the number of clients that just finished.
        found: called with the number of clients that a checkpoint holds, before others run.
        run: what runs a group that is stacked: `map_clients`, or a function that is called like it.

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
    path = None if checkpoint is None else Path(checkpoint)
    if path and not path.parent.is_dir():
        raise ValueError(f"checkpoint: no folder {path.parent}")
    shape = jax.eval_shape(function, shared, pick(clients, 0))
    grouped = combine if combine == "stack" else f"{group} {combine}"  # of which a sum's bits depend
    mark = content({grouped: (shared, clients, shape)}) if path else ""
    finished, summary, reports = _read(path, mark, shape) if path and path.exists() else (0, None, [])
    if path:
        require_same_everywhere(finished, f"checkpoint: got {path}, expected a file that all hosts share")
    if found and finished:
        found(finished)
    work = np.ones(count) if steps is None else np.asarray(steps, float)
    for start in range(finished, count, group):
        rows = np.arange(start, min(start + group, count))
        part = pick(clients, rows)
        if combine == "add":
            # The last group is filled up with copies that weigh nothing, so that it is no new program.
            fill = np.minimum(np.arange(start, start + group), count - 1)
            part = pick(clients, fill)
            count_in = jnp.arange(group) < len(rows)
            result, _, workers = jax.block_until_ready(
                sum_clients(_Summand(function), strategy, shared, part, count_in)
            )
            report = CohortReport(strategy, workers, group, 0.0)
            summary = result if summary is None else jax.tree.map(jnp.add, summary, result)
        else:
            result, report = run(function, shared, part, strategy=strategy, group=group, steps=work[rows])
            joined = lambda a, b: np.concatenate([a, b])  # noqa: E731
            result = jax.tree.map(np.asarray, result)
            summary = result if summary is None else jax.tree.map(joined, summary, result)
        reports.append((report, float(work[rows].sum())))
        if path:
            _write(path, mark, start + len(rows), summary, reports)
        if done:
            done(len(rows))
    return jax.tree.map(jnp.asarray, summary), report_of(reports)


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


def _write(path: Path, mark: str, finished: int, summary: PyTree, reports: Reports) -> None:
    if jax.process_index() != 0:
        return
    buffer = io.BytesIO()
    leaves: dict[str, Any] = {f"leaf{number}": np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(summary))}
    about = {"mark": mark, "finished": finished, "reports": json.dumps(reports)}
    np.savez(buffer, **{name: np.array(value) for name, value in about.items()}, **leaves)
    write_atomically(path, buffer.getvalue())


def _read(path: Path, mark: str, shape: PyTree) -> tuple[int, PyTree, Reports]:
    """How many clients a checkpoint holds, their summary, and how they ran."""
    leaves, tree = jax.tree.flatten(shape)
    try:
        with np.load(path, allow_pickle=False) as file:
            found, finished = str(file["mark"]), int(file["finished"])
            stored = [file[f"leaf{number}"] for number in range(len(leaves))]
            reports: Reports = [(CohortReport(*report), work) for report, work in json.loads(str(file["reports"]))]
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
        raise ValueError(f"checkpoint: {path} is not a checkpoint of this library ({error})") from error
    if found != mark:
        raise ValueError(f"checkpoint: {path} belongs to other clients or another grouping; delete it or name another")
    summary = [a.view(leaf.dtype) if a.dtype.kind == "V" else a for a, leaf in zip(stored, leaves, strict=True)]
    return finished, jax.tree.unflatten(tree, summary), reports  # numpy's files know no bfloat16
