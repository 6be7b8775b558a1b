"""Clients over the devices of all hosts, which are one axis of a mesh, each device with several clients."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._trees import pick

PyTree = Any


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


def from_first(tree: PyTree) -> PyTree:
    """Give all hosts the first one's arrays, to the bit; on every host they have the same shapes and types."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    leaves, treedef = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    mine = np.concatenate([np.frombuffer(leaf.tobytes(), np.uint8) for leaf in leaves])
    bytes_ = np.asarray(multihost_utils.broadcast_one_to_all(mine)).astype(np.uint8)
    pieces = np.split(bytes_, np.cumsum([leaf.nbytes for leaf in leaves])[:-1])
    pairs = zip(pieces, leaves, strict=True)
    return treedef.unflatten([jnp.asarray(np.frombuffer(b.tobytes(), x.dtype).reshape(x.shape)) for b, x in pairs])


def this_copy(tree: PyTree) -> PyTree:
    """This host's first copy of replicated arrays, as ordinary arrays."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def sharded(function: Callable, shared: PyTree, clients: PyTree, workers: int) -> PyTree:
    """Run `function` for each client by `shard_map`; the number of clients is a multiple of `workers`."""
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


def pmapped(function: Callable, shared: PyTree, clients: PyTree, workers: int) -> PyTree:
    """Run `function` for each client by `pmap` on this host's devices; clients as in `sharded`."""
    # From the host, since pmap refuses arrays that lie on one device where there are several.
    split = jax.tree.map(lambda leaf: leaf.reshape(workers, -1, *leaf.shape[1:]), jax.device_get(clients))
    # On one device, or the next operation is spread over all of them and waits for itself.
    results = jax.device_put(jax.block_until_ready(_pmap(function)(shared, split)), jax.local_devices()[0])
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results)


@lru_cache(maxsize=64)
def _pmap(function: Callable) -> Callable:
    return jax.pmap(lambda everyone, mine: jax.lax.map(partial(function, everyone), mine), in_axes=(None, 0))
