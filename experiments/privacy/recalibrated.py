"""FedAvg of privately trained clients, then a head in closed form: is a trained model worth its part of the privacy?

Clients of a Dirichlet split train by DP-SGD and send parameters, which tell no example apart, so nobody is trusted with
them; then a secure sum has their features' moments at FedAvg's model, with the noise divided among them. Both keep one
promise about one example that is replaced, δ = 1e-5: training has three quarters of the privacy and the head the rest,
of which "whitened" spends a quarter on its first exchange (`privacy.heads`). Accountants compose for an example that is
added or removed; a replaced one is both, so that promise is for ε/2 and δ/(1 + e^(ε/2)). Head, clip of features, ridge
and constants are those of `privacy.heads`, on as many features; DP-SGD's settings are those that `privacy.rounds` chose
for one shot on Fashion-MNIST. A client's noise is that of one with at most a tenth fewer examples: two digits of its
size count.
"""

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedfisher_jax as ff
from experiments.lib import common
from experiments.privacy import rounds
from experiments.privacy.heads import CLIP, EPSILONS, RIDGE, moments_of, private_sums, reader, solved, summed
from fedfisher_jax.curvature import capture
from fedfisher_jax.federate import run_keys
from fedfisher_jax.merge import recalibrate
from fedfisher_jax.privacy import dp_training, example_noise

FEATURES = {"digits": (), "fashion_mnist": ("fc1", "fc2:100")}
HOW = {"recalibrated, one exchange": False, "recalibrated, whitened first": True}
CLIP_GRADIENTS = 0.1


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        dataset: digits (MLP) or fashion_mnist (LeNet).
        seeds: How many, each of a split, a start, training and noise.
        clients: Their numbers.
        alpha: Concentration of the Dirichlet splits.
        epochs: Local epochs.
        rate: Learning rate.
    """

    dataset: str = "fashion_mnist"
    seeds: int = 5
    clients: tuple[int, ...] = (5, 100)
    alpha: float = 0.1
    epochs: int = 4
    rate: float = 0.03


@cache
def features_of(dataset: str) -> Any:
    """The function (parameters, examples) → features."""
    found, network = rounds.world_of(dataset)
    start = jax.eval_shape(network.init, jax.random.key(0))
    captured = capture(network.apply, start, found.test_x)
    rule = recalibrate(network.apply, ff.categorical(), features=FEATURES[dataset], ridge=RIDGE, captured=captured)
    return reader(rule, start, found.test_x)


@cache
def promised_for(epsilon: float, size: int, epochs: int) -> dp_training.Promise:
    """What a client of at least this size promises about its parameters and its part of the sum together."""
    asked = {"batch_size": rounds.BATCH, "epochs": epochs, "clip_gradients": CLIP_GRADIENTS}
    return rounds.promised(epsilon, size, **asked, beside=dp_training.Beside(clip_features=CLIP))


def of_sum(promised: dp_training.Promise) -> example_noise.Promise:
    """What is promised about the sum, in which all clients' shares of noise add up to that of one client alone."""
    return example_noise.after_training(promised, trust="local")


def run(
    dataset: str, seed: int, clients: int, alpha: float, epochs: int, rate: float, epsilon: float | None
) -> dict[str, float]:
    """Accuracies of FedAvg's model and of it with a head."""
    (found, network), key = rounds.world_of(dataset), run_keys(seed)
    cohort, sizes = rounds.split(dataset, np.arange(len(found.train_y)), clients, seed, alpha)
    promises = [] if epsilon is None else [promised_for(epsilon, int(float(f"{n:.1e}")), epochs) for n in sizes]
    noise = jnp.asarray([one.noise_multiplier for one in promises]) if promises else None
    how = (1, epochs), noise, CLIP_GRADIENTS, rate, key.train
    model = rounds.federated(network, rounds.BATCH, network.init(key.init), cohort, *how)
    score = ff.evaluate(network.apply, ff.categorical(), model, found.test_x, found.test_y).accuracy
    result = {"fedavg": 100 * float(score)}
    rows, test = (np.asarray(features_of(dataset)(model, jnp.asarray(x))) for x in (found.train_x, found.test_x))
    labels, draw = found.train_y, np.random.default_rng([seed, clients, int(10 * (epsilon or 0))])
    plain = moments_of(rows, labels, found.num_classes)
    for name, whitened in HOW.items():
        sums, basis = summed(plain), None
        if promises:
            sums, basis = private_sums(rows, labels, plain, of_sum(promises[0]), 1, whitened, draw)
        guesses = np.argmax(test @ solved(sums, basis), axis=1)
        result[name] = 100 * float(np.mean(guesses == found.test_y))
    return result


def main() -> None:
    """Runs what is missing and reports."""
    quick = {"dataset": "digits", "seeds": 1, "clients": (5,), "epochs": 1}
    settings = common.command_line(Settings, __doc__, quick=quick)
    fixed = {"dataset": settings.dataset, "alpha": settings.alpha, "epochs": settings.epochs, "rate": settings.rate}
    cells: list[float | None] = [*EPSILONS, None]
    grid = [
        {**fixed, "seed": seed, "clients": clients, "epsilon": epsilon}
        for seed in range(settings.seed, settings.seed + settings.seeds)
        for clients in settings.clients
        for epsilon in cells
    ]
    records = common.run_all(settings.out, grid, run)
    rows, summary = [], {}
    for clients in settings.clients:
        for name in ("fedavg", *HOW):
            found = [common.column(records, name, clients=clients, epsilon=epsilon) for epsilon in cells]
            rows.append([clients, name, *(common.mean_std(one) for one in found)])
            for epsilon, one in zip(cells, found, strict=True):
                told = "no noise" if epsilon is None else f"epsilon {epsilon:g}"
                summary[f"{clients} clients, {name}, {told}"] = float(one.mean())
    text = (
        f"Accuracy in %, {settings.dataset}, α = {settings.alpha:g}, {settings.epochs} local epochs, δ = "
        f"{rounds.DELTA:g}, replace one example; mean ± std over {settings.seeds} seeds.\n\n"
    )
    header = ["clients", "merge", *(f"ε = {epsilon:g}" for epsilon in EPSILONS), "no noise"]
    common.report(settings.out, text + common.markdown_table(header, rows), summary)


if __name__ == "__main__":
    main()
