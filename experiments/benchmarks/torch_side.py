"""The same work in PyTorch: training, Fisher information by nngeometry, the authors' server loop. Imports no JAX."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]


def network(name: str) -> Any:
    """The networks of `fedfisher_jax.models`, without biases, under the same layer names."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            wide = name == "cnn"
            channels, features = ((3, 32, 64), (1600, 512, 128)) if wide else ((1, 6, 16), (256, 120, 84))
            self.conv1 = nn.Conv2d(channels[0], channels[1], 5, bias=False)
            self.conv2 = nn.Conv2d(channels[1], channels[2], 5, bias=False)
            self.fc1 = nn.Linear(features[0], features[1], bias=False)
            self.fc2 = nn.Linear(features[1], features[2], bias=False)
            self.fc3 = nn.Linear(features[2], 10, bias=False)

        def forward(self, x: Any) -> Any:
            x = torch.max_pool2d(torch.relu(self.conv1(x)), 2)
            x = torch.max_pool2d(torch.relu(self.conv2(x)), 2).flatten(1)
            return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))

    return Net()


def train(
    name: str, shape: Sequence[int], pool: int, rows: np.ndarray, batch_size: int, threads: int, seed: int
) -> Callable[[], float]:
    """Contender: one epoch of SGD with momentum for each client, one client after the other.

    Args:
        name: the network's name.
        shape: [h, w, c] of an example.
        pool: number of random examples.
        rows: [M, n] indices of the clients' examples in the pool.
        batch_size: a divisor of n.
        threads: how many PyTorch uses.
        seed: what the examples are drawn from.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    height, width, channels = shape
    x, y = torch.randn(pool, channels, height, width), torch.randint(10, (pool,))
    model, clients = network(name), torch.as_tensor(rows, dtype=torch.long)
    start = {key: value.clone() for key, value in model.state_dict().items()}

    def run() -> float:
        loss = torch.zeros(())
        for mine in clients:
            model.load_state_dict(start)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            for batch in mine[torch.randperm(len(mine))].split(batch_size):
                optimizer.zero_grad(set_to_none=True)
                loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
                loss.backward()
                optimizer.step()
        return float(loss.detach())

    return run


def device_name() -> str:
    """The accelerator that PyTorch sees, or the processor."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def train_on_device(
    name: str, shape: Sequence[int], pool: int, rows: np.ndarray, batch_size: int, together: bool, seed: int
) -> tuple[Callable[[], None], Callable[[], int | None]]:
    """Train every client for one epoch on the accelerator, if there is one; and tell how much of its memory was held.

    Args:
        name: the network's name.
        shape: [h, w, c] of an example.
        pool: number of random examples.
        rows: [M, n] indices of the clients' examples in the pool.
        batch_size: a divisor of n.
        together: all clients at once by `torch.func` and vmap, or one after the other.
        seed: what the examples are drawn from.
    """
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    x, y = torch.randn(pool, shape[2], *shape[:2], device=place), torch.randint(10, (pool,), device=place)
    model = network(name).to(place)
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    clients = torch.as_tensor(rows, dtype=torch.long, device=place)

    def loss(params: Mapping[str, Any], images: Any, labels: Any) -> Any:
        return nn.functional.cross_entropy(torch.func.functional_call(model, params, images), labels)

    gradients = torch.func.grad(loss)
    if together:
        gradients = torch.func.vmap(gradients)

    def epoch(mine: Any) -> None:
        params = {k: v.expand(len(mine), *v.shape).clone() if together else v.clone() for k, v in start.items()}
        momentum = {key: torch.zeros_like(value) for key, value in params.items()}
        for batch in mine.split(batch_size, dim=-1):
            slope = gradients(params, x[batch], y[batch])
            for key, value in params.items():
                momentum[key].mul_(0.9).add_(slope[key])
                value.sub_(momentum[key], alpha=0.01)

    def run() -> None:
        for mine in [clients] if together else clients:
            epoch(mine)
        if place.type == "cuda":
            torch.cuda.synchronize()

    return run, lambda: torch.cuda.max_memory_allocated() if place.type == "cuda" else None


def fisher(
    structure: str,
    params: Mapping[str, np.ndarray],
    clients: Sequence[np.ndarray],
    batches: Sequence[int],
    threads: int,
) -> Callable[[], dict[str, Any]]:
    """Contender: the exact Fisher of LeNet by nngeometry for each client, at the fastest of some batch sizes.

    Args:
        structure: "diagonal" or "kronecker".
        params: PyTorch's state dict.
        clients: one array of examples [n, 1, h, w] per client.
        batches: sizes to try first.
        threads: how many PyTorch uses.
    """
    from nngeometry.metrics import FIM  # pyright: ignore[reportMissingImports]
    from nngeometry.object import PMatDiag, PMatKFAC  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads)
    model = network("lenet")
    model.load_state_dict({key: torch.as_tensor(np.array(value)) for key, value in params.items()})
    sets = [torch.utils.data.TensorDataset(torch.as_tensor(x), torch.zeros(len(x))) for x in clients]
    form = {"diagonal": PMatDiag, "kronecker": PMatKFAC}[structure]

    def measure(examples: Any, batch_size: int) -> Any:
        loader = torch.utils.data.DataLoader(examples, batch_size=batch_size)
        return FIM(model, loader, form, 10)

    def timed(batch_size: int) -> float:
        began = time.perf_counter()
        measure(sets[0], batch_size)
        return time.perf_counter() - began

    timed(batches[0])
    best = min(batches, key=timed)

    def run() -> dict[str, Any]:
        found = [measure(examples, best) for examples in sets]
        if structure == "diagonal":
            return {"batch_size": best, "first": found[0].get_diag().detach().numpy()}
        blocks = [(a.numpy(), g.numpy()) for a, g in found[0].data.values()]
        return {"batch_size": best, "first": blocks}

    return run


def server_loop(
    layers: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    shares: np.ndarray,
    steps: int,
    batched: bool,
    threads: int,
) -> Callable[[], list[np.ndarray]]:
    """Contender: the authors' server loop for Kronecker factors (arXiv 2403.12329), without its validation.

    mom ← v + 0.9 mom, del ← v² + 0.99 del, W −= 0.01 mom / √(del + 0.01) with v = Σ p_i G_i (W − W_i) A_i.

    Args:
        layers: per layer A [M, in, in], G [M, out, out] and W [M, out, in] of the clients.
        shares: [M] p, of sum one.
        steps: 2000.
        batched: all clients' factors in one product, instead of one client after the other as released.
        threads: how many PyTorch uses.
    """
    torch.set_num_threads(threads)
    tensors = [tuple(torch.as_tensor(np.array(array)) for array in layer) for layer in layers]
    p = torch.as_tensor(np.array(shares, np.float32))

    def slope(w: Any, a: Any, g: Any) -> Any:
        if batched:
            return torch.tensordot(p, torch.matmul(torch.matmul(g, w), a), 1)
        return sum((p[i] * (g[i] @ w @ a[i]) for i in range(len(p))), torch.zeros_like(w))

    def run() -> list[np.ndarray]:
        current = [torch.tensordot(p, w, 1) for _, _, w in tensors]
        targets = [sum(p[i] * (g[i] @ w[i] @ a[i]) for i in range(len(p))) for a, g, w in tensors]
        momentum = [torch.zeros_like(w) for w in current]
        squares = [torch.zeros_like(w) for w in current]
        for _ in range(steps):
            for layer, (a, g, _) in enumerate(tensors):
                v = slope(current[layer], a, g) - targets[layer]
                momentum[layer] = v + 0.9 * momentum[layer]
                squares[layer] = v * v + 0.99 * squares[layer]
                current[layer] = current[layer] - 0.01 * momentum[layer] / torch.sqrt(squares[layer] + 0.01)
        return [w.numpy() for w in current]

    return run
