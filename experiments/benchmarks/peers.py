"""FedAvg over rounds in Flower's simulation and in BlazeFL, both on PyTorch, as `rounds.py` wants it. Imports no JAX.

All examples lie in memory as tensors and are shuffled by one index, without a `DataLoader`.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from experiments.benchmarks.side_by_side import Found, Task
from experiments.benchmarks.torch_side import network


@functools.lru_cache(maxsize=1)
def tensors(path: str) -> dict[str, Any]:
    """The arrays, images as PyTorch has them; once a process."""
    with np.load(path) as arrays:
        found = {name: torch.as_tensor(arrays[name]) for name in arrays.files}
    return {name: a.permute(0, 3, 1, 2).contiguous() if name.endswith("x") else a.long() for name, a in found.items()}


def batches(task: Task, client: int, generator: Any = None) -> Iterator[tuple[Any, Any]]:
    """One shuffled epoch of a client."""
    arrays = tensors(task.arrays)
    size = len(arrays["y"]) // task.clients
    for rows in (client * size + torch.randperm(size, generator=generator)).split(task.batch_size):
        yield arrays["x"][rows], arrays["y"][rows]


def accuracy(task: Task, model: Any) -> float:
    """Accuracy of the model on the test examples."""
    arrays = tensors(task.arrays)
    with torch.no_grad():
        return float((model(arrays["test_x"]).argmax(1) == arrays["test_y"]).float().mean())


def flower(task: Task, rounds: int, workers: int) -> Callable[[], Found]:
    """Contender: so many rounds after a first one, by Flower's simulation with so many actors of one thread each."""
    import flwr.clientapp  # pyright: ignore[reportMissingImports]
    import flwr.serverapp  # pyright: ignore[reportMissingImports]
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict  # pyright: ignore[reportMissingImports]
    from flwr.serverapp.strategy import FedAvg  # pyright: ignore[reportMissingImports]
    from flwr.simulation import run_simulation  # pyright: ignore[reportMissingImports]

    client, server = flwr.clientapp.ClientApp(), flwr.serverapp.ServerApp()
    ends, trained, models = [], [], []

    @client.train()
    def train(message: Any, context: Any) -> Any:
        torch.set_num_threads(1)
        began, model = time.perf_counter(), network("lenet")
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=task.rate)
        for x, y in batches(task, int(context.node_config["partition-id"])):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        about = {"num-examples": len(tensors(task.arrays)["y"]) // task.clients, "s": time.perf_counter() - began}
        content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(about)}
        return Message(content=RecordDict(content), reply_to=message)

    class Timed(FedAvg):
        """Flower's average, which writes down when a round ends and how long its clients trained."""

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            trained.append(sum(reply.content["metrics"]["s"] for reply in replies))
            result = super().aggregate_train(server_round, replies)
            ends.append(time.perf_counter())
            return result

    @server.main()
    def main(grid: Any, context: Any) -> None:
        torch.manual_seed(task.seed)
        strategy = Timed(
            fraction_train=task.sampled / task.clients,
            min_train_nodes=task.sampled,
            min_available_nodes=task.clients,
            fraction_evaluate=0.0,
        )
        arrays = ArrayRecord(network("lenet").state_dict())
        models.append(strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds + 1).arrays)

    def run() -> Found:
        for kept in (ends, trained, models):
            kept.clear()
        backend = {"init_args": {"num_cpus": workers}, "client_resources": {"num_cpus": 1}}
        run_simulation(server, client, num_supernodes=task.clients, backend_config=backend)
        model, seconds = network("lenet"), (ends[-1] - ends[0]) / rounds
        model.load_state_dict(models[0].to_torch_state_dict())
        share = sum(trained[1:]) / rounds / workers / seconds
        return {"seconds": seconds, "accuracy": accuracy(task, model), "training": share}

    return run


def blazefl(task: Task, rounds: int, workers: int, threads: int) -> Callable[[], Found]:
    """Contender: the same by BlazeFL: one client after the other (workers 0), or so many at a time in threads.

    Its pool of processes is left out: it is made anew for every round and sends every client's data through files.
    """
    from blazefl.contrib import fedavg  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads)

    class Names:
        def select_model(self, model_name: Any) -> Any:
            return network("lenet")

    class Data:
        def get_dataloader(self, type_: Any, cid: int, batch_size: Any, generator: Any) -> Any:
            return batches(task, cid, generator)

    quiet: dict[str, Any] = {"progress_fn": lambda self, futures: futures}
    settings = {"model_selector": Names(), "model_name": "lenet", "dataset": Data(), "device": "cpu"}
    settings |= {"num_clients": task.clients, "batch_size": task.batch_size, "seed": task.seed}

    def run() -> Found:
        torch.manual_seed(task.seed)
        share = {"global_round": rounds + 1, "sample_ratio": task.sampled / task.clients}
        server = fedavg.FedAvgBaseServerHandler(**settings, **share)
        local = {"epochs": 1, "lr": task.rate}
        if workers:
            pool = type("Quiet", (fedavg.FedAvgThreadPoolClientTrainer,), quiet)
            trainer = pool(**settings, **local, num_parallels=workers)
        else:
            trainer = fedavg.FedAvgBaseClientTrainer(**settings, **local)
        began = spent = 0.0
        while not server.if_stop():
            if server.round == 1:
                began, spent = time.perf_counter(), 0.0
            sampled, sent = server.sample_clients(), server.downlink_package()
            before = time.perf_counter()
            trainer.local_process(sent, sampled)
            spent += time.perf_counter() - before
            for package in trainer.uplink_package():
                server.load(package)
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds / rounds,
            "accuracy": accuracy(task, server.model),
            "training": spent / seconds,
        }

    return run
