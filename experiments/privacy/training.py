"""Training with privacy of every example, then one average: accuracy against ε, and what private training costs.

Digits, an MLP, clients of a Dirichlet split; each seed with a split, a start and training of its own. Accuracies are of
FedAvg's model of clients that train by DP-SGD, all with the noise that keeps the promise for the smallest of them.
Seconds are of one client with all examples, compiled before, the least of five; on a machine that others use, their
ratio says more than they do. Clip and epochs were not tuned.
"""

import dataclasses
import time
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedfisher_jax as ff
from experiments.lib import cells, common
from fedfisher_jax.federate import merge_clients, run_keys, train_clients
from fedfisher_jax.merge import Payload
from fedfisher_jax.privacy import dp_training

DELTA, CLIP = 1e-5, 1.0
HOW = ("plain", *(f"epsilon {epsilon}" for epsilon in (8, 2, 1)))


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: How many; each draws a split, a start and training.
        clients: Their numbers.
        alpha: Concentration of the Dirichlet splits.
        epochs: Local epochs.
    """

    seeds: int = 3
    clients: tuple[int, ...] = (1, 5)
    alpha: float = 10.0
    epochs: int = 30


@cache
def network_of() -> Any:
    """The network."""
    return ff.models.build("mlp", (8, 8, 1), 10, hidden=(32,))


def training_of(how: str, sizes: Any, epochs: int) -> ff.LocalTraining:
    """How clients of these sizes train."""
    plain = cells.training(network_of(), False, epochs)
    if how == "plain":
        return plain
    asked = {"batch_size": plain.batch_size, "epochs": epochs, "clip_gradients": CLIP}
    promised = dp_training.promise(float(how.split()[1]), DELTA, sizes, **asked)
    return dataclasses.replace(plain, private=promised.private)


def run(seed: int, clients: int, alpha: float, epochs: int, how: str) -> dict[str, Any]:
    """Accuracy of one merge, and with one client the seconds of its training."""
    found, network, key = ff.data.load("digits"), network_of(), run_keys(seed)
    parts = ff.data.split("dirichlet-client", found.train_y, clients, seed=seed, alpha=alpha)
    who = ff.cohort(jnp.asarray(found.train_x), jnp.asarray(found.train_y), parts, length=len(found.train_y))
    start, training = jax.jit(network.init)(key.init), training_of(how, np.asarray(who.sizes).tolist(), epochs)
    seconds = []
    for _ in range(6 if clients == 1 else 1):
        begun = time.perf_counter()
        trained, _ = train_clients(training, start, who, key.train)
        jax.block_until_ready(trained.params)
        seconds.append(time.perf_counter() - begun)
    sent = Payload(jnp.asarray(who.sizes, jnp.float32), trained.params)
    merged = merge_clients(ff.fedavg(network.apply, ff.categorical()), sent, start).params
    scores = ff.evaluate(network.apply, ff.categorical(), merged, found.test_x, found.test_y)
    noise = None if training.private is None else training.private.noise
    return {"accuracy": float(scores.accuracy), "seconds": min(seconds[1:], default=None), "noise": noise}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 1, "epochs": 2})
    grid = [
        {"seed": seed, "clients": clients, "alpha": settings.alpha, "epochs": settings.epochs, "how": how}
        for clients in settings.clients
        for how in HOW
        for seed in range(settings.seed, settings.seed + settings.seeds)
    ]
    records, rows, summary = common.run_all(settings.out, grid, run), [], {}
    for clients in settings.clients:
        for how in HOW:
            one = {"clients": clients, "how": how}
            accuracy = common.column(records, "accuracy", **one)
            noise = common.column(records, "noise", **one)[0] if how != "plain" else 0.0
            rows.append([clients, how, f"{noise:.2f}", common.mean_std(accuracy, scale=100)])
            summary[f"accuracy, {clients} clients, {how}"] = float(accuracy.mean())
    times = {how: common.column(records, "seconds", clients=1, how=how).min() for how in (HOW[0], HOW[1])}
    summary["seconds_plain"], summary["seconds_private"] = (float(times[how]) for how in (HOW[0], HOW[1]))
    summary["private_over_plain"] = summary["seconds_private"] / summary["seconds_plain"]
    text = (
        f"Accuracy in %, digits, δ = {DELTA:g}, add or remove one example; mean ± std over {settings.seeds} seeds.\n\n"
    )
    text += common.markdown_table(["clients", "training", "noise multiplier", "accuracy"], rows)
    text += f"\nPrivate training takes {summary['private_over_plain']:.1f} times as long as plain training.\n"
    common.report(settings.out, text, summary)


if __name__ == "__main__":
    main()
