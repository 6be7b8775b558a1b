"""FedAvg over rounds in fedjax, as `rounds.py` wants it: its own algorithm, sampler and optimisers, on a flax model."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.side_by_side import Found, Task
from fedfisher_jax import models


def rounds(task: Task, length: int) -> Callable[[], Found]:
    """Contender: so many rounds after a first one, client after client.

    Its other way, `pmap` over devices, calls `jax.device_put_replicated`, which JAX has given up.
    """
    import fedjax  # pyright: ignore[reportMissingImports]
    from fedjax.algorithms import fed_avg  # pyright: ignore[reportMissingImports]

    setattr(jax, "tree_map", jax.tree.map)  # fedjax 0.0.17 calls it by the name that JAX has given up
    with np.load(task.arrays) as arrays:
        x, y, test_x, test_y = (arrays[name] for name in ("x", "y", "test_x", "test_y"))
    net = models.build("lenet", x.shape[1:], 10)

    def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        del key
        return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, batch["x"]), batch["y"]).mean()

    parts = enumerate(np.split(np.arange(len(x)), task.clients))
    clients = fedjax.InMemoryFederatedData({str(number): {"x": x[rows], "y": y[rows]} for number, rows in parts})
    batches = fedjax.ShuffleRepeatBatchHParams(batch_size=task.batch_size, num_epochs=1)
    with fedjax.for_each_client_backend("jit"):
        algorithm = fed_avg.federated_averaging(
            jax.grad(loss), fedjax.optimizers.sgd(task.rate), fedjax.optimizers.sgd(1.0), batches
        )
    score = jax.jit(lambda params: jnp.mean(net.apply(params, test_x).argmax(1) == test_y))

    def run() -> Found:
        sampler = fedjax.client_samplers.UniformGetClientSampler(clients, task.sampled, seed=task.seed)
        state, began = algorithm.init(net.init(jax.random.key(task.seed))), 0.0
        for number in range(length + 1):
            state, _ = algorithm.apply(state, sampler.sample())
            if number == 0:
                jax.block_until_ready(state.params)
                began = time.perf_counter()
        jax.block_until_ready(state.params)
        return {"seconds": (time.perf_counter() - began) / length, "accuracy": float(score(state.params))}

    return run
