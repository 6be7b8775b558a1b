"""Federated fine-tuning from pre-trained weights at a lower rate, against training from scratch (2403.12329).

The paper starts ResNet-18 from Tiny-ImageNet weights. Give such a file (a PyTorch state dict or safetensors) with
--weights, or let the script pre-train on any named set; the last layer is new. The `designed` start is one for heads in
closed form that nobody trained (`--rules analytic …`). --quick shows the same on digits: an MLP
pre-trained on the classes 5 to 9 and fine-tuned by clients that hold 0 to 4.
"""

import dataclasses
import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.fedfisher import cell_tables
from experiments.lib import cells, common
from fedfisher_jax import LocalTraining, categorical, cohort, data, evaluate, models
from fedfisher_jax.data import Dataset
from fedfisher_jax.federate import Simulation, crop_and_flip, run_keys, train_clients
from fedfisher_jax.federate import _one_shot as one_shot
from fedfisher_jax.merge import catalogue
from fedfisher_jax.models import weights


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        weights: Pre-trained weights, .safetensors, .pt or .pth; by default the script pre-trains and keeps the file.
        pretrain: Name of the set to pre-train on.
        pretrain_classes: Only these of its classes; all by default.
        pretrain_epochs: Epochs of centralised training.
        dataset: Name of the clients' set.
        classes: Only these of its classes; all by default.
        model: The network.
        alpha: Concentration of the Dirichlet split.
        clients: Number of clients.
        epochs: Local epochs.
        rate: Local learning rate from pre-trained weights; from other starts it is 0.01.
        starts: What the clients start from: pre-trained weights, and what those are compared with.
        rules: Merge rules by name, or your own as module:function.
        seeds: Each draws a split and a training.
    """

    weights: Path | None = None
    pretrain: str = "tiny_imagenet"
    pretrain_classes: tuple[int, ...] = ()
    pretrain_epochs: int = 30
    dataset: str = "cifar10"
    classes: tuple[int, ...] = ()
    model: str = "resnet18_pretrained"
    alpha: float = 0.1
    clients: int = 5
    epochs: int = 30
    rate: float = 0.001
    starts: tuple[Literal["pre-trained", "scratch", "designed"], ...] = ("pre-trained", "scratch")
    rules: tuple[str, ...] = ("fedavg", "fisher-merge", "fedfisher-diag", "fedfisher-kfac")
    seeds: int = 3


QUICK = {
    "pretrain": "digits",
    "pretrain_classes": (5, 6, 7, 8, 9),
    "dataset": "digits",
    "classes": (0, 1, 2, 3, 4),
    "model": "mlp",
    "pretrain_epochs": 20,
    "epochs": 20,
}
BATCH = 64
SCRATCH_RATE = 0.01  # local learning rate from starts that nobody trained


def some_classes(dataset: Dataset, classes: tuple[int, ...]) -> Dataset:
    """The examples of some classes, numbered anew in their order; all if none is named.

    Raises:
        ValueError: a class that the set does not have.
    """
    if not classes:
        return dataset
    if not set(classes) <= set(range(dataset.num_classes)):
        raise ValueError(f"classes: got {classes}, expected numbers from 0 to {dataset.num_classes - 1}")
    place = np.full(dataset.num_classes, -1, np.int32)
    place[list(classes)] = np.arange(len(classes), dtype=np.int32)
    train, test = np.isin(dataset.train_y, classes), np.isin(dataset.test_y, classes)
    parts = dataset.train_x[train], place[dataset.train_y[train]], dataset.test_x[test], place[dataset.test_y[test]]
    return Dataset(dataset.name, *parts, len(classes), augment=dataset.augment)


def head_of(here: cells.World) -> str:
    """Beginning of the PyTorch names of the last layer."""
    return ".".join(cells.last_layer(here)) + "."


def digest(content: bytes) -> str:
    """What tells pre-trained weights apart."""
    return hashlib.sha256(content).hexdigest()[:16]


def pretrain(dataset: Dataset, model: str, epochs: int, seed: int, file: Path) -> float:
    """Trains a network centrally and writes its weights; its test accuracy."""
    here = cells.world_of(dataset, *cells.captured_network(model, dataset.train_x.shape[1:], dataset.num_classes))
    key = run_keys(seed)
    train = cells.training(here.network, dataset.augment, epochs)
    x, y, test_x, test_y = here.arrays
    everybody = cohort(x, y, [np.arange(len(y))])
    trained, _ = train_clients(train, here.network.init(key.init), everybody, key.train, strategy="sequential")
    params = jax.tree.map(lambda leaf: leaf[0], trained.params)
    partial = file.with_name(f".{file.stem}.partial.safetensors")
    weights.write(partial, params)
    partial.replace(file)
    return float(evaluate(here.network.apply, categorical(), params, test_x, test_y).accuracy)


def run(here: cells.World, settings: Settings, file: Path, start: str, seed: int) -> dict[str, dict[str, Any]]:
    """Accuracy of every rule and reference from one start, on one split."""
    dataset, network = here.dataset, here.network
    parts = data.split("dirichlet-client", dataset.train_y, settings.clients, seed=seed, alpha=settings.alpha)
    key = run_keys(seed)
    params = network.init(key.init)
    if start == "pre-trained":
        params = jax.tree.map(jnp.asarray, weights.read(file, params, keep=(head_of(here),)))
    elif start == "designed":
        params = models.designed(params)
    rate = settings.rate if start == "pre-trained" else SCRATCH_RATE
    augment = crop_and_flip() if dataset.augment else None
    train = LocalTraining(network.apply, categorical(), optax.sgd(rate, 0.9), settings.epochs, BATCH, augment)
    offers = one_shot.offers(network.init, train, here.captured, seed)
    make = cache(lambda part: catalogue.named_rule(part, network.apply, categorical(), offers=offers))
    rules = {name: catalogue.composed(name, make) for name in settings.rules}
    x, y, *test = here.arrays
    simulation = Simulation(train, params, cohort(x, y, parts, length=len(y)), *test)
    found = one_shot.compare(simulation, rules, key)
    return {r.name: {"accuracy": r.value["accuracy"]} for r in found if r.kind in ("rule", "reference")}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    dataset = some_classes(data.load(settings.dataset), settings.classes)
    network, captured = cells.captured_network(settings.model, dataset.train_x.shape[1:], dataset.num_classes)
    here = cells.world_of(dataset, network, captured)
    if settings.weights is None:
        first = some_classes(data.load(settings.pretrain), settings.pretrain_classes)
        one = {"pretrain": settings.pretrain, "classes": settings.pretrain_classes, "model": settings.model}
        one |= {"epochs": settings.pretrain_epochs, "seed": settings.seed}
        file = settings.out / f"pretrained-{digest(common.run_key(one).encode())}.safetensors"
        train = lambda **_: {"accuracy": pretrain(first, settings.model, settings.pretrain_epochs, settings.seed, file)}  # noqa: E731
        record = common.run_all(settings.out, [one], train)
        if not file.exists():  # results are kept longer than weights; other weights are other runs
            train()
        reached = 100 * record[0]["result"]["accuracy"]
        note = f"Pre-trained on {settings.pretrain} ({first.num_classes} classes) to {reached:.1f} %"
    else:
        file, note = settings.weights, f"Weights from {settings.weights.name}"
    names = ("dataset", "classes", "model", "alpha", "clients", "epochs", "rate", "rules")
    fixed = {name: getattr(settings, name) for name in names} | {"weights": digest(file.read_bytes())}
    seeds = range(settings.seed, settings.seed + settings.seeds)
    grid = [{"start": start, "seed": seed, **fixed} for seed in seeds for start in settings.starts]
    records = common.run_all(settings.out, grid, lambda start, seed, **_: run(here, settings, file, start, seed))
    found = records[0]["result"]  # without training, local models are the start, and say nothing
    methods = [method for method in found if settings.epochs or method in settings.rules]

    def values(start: str, method: str) -> np.ndarray:
        chosen = [r["result"][method]["accuracy"] for r in records if r["settings"]["start"] == start]
        return 100 * np.asarray(chosen)

    base, *others = settings.starts
    rows = []
    for method in methods:
        scores = [values(start, method) for start in settings.starts]
        gains = [common.mean_std(scores[0] - other) for other in scores[1:]]
        rows.append([cell_tables.label(method), *map(common.mean_std, scores), *gains])
    text = (
        f"{note}; clients hold {settings.dataset} ({dataset.num_classes} classes), α = {settings.alpha:g}, rate "
        f"{settings.rate:g} from pre-trained weights and {SCRATCH_RATE:g} from other starts. Test accuracy in %, "
        f"mean ± std over {settings.seeds} seeds (split and training); differences are paired.\n\n"
    ) + common.markdown_table(["", *settings.starts, *(f"{base} − {other}" for other in others)], rows)
    fig, axes = common.figure(height=0.35 * len(methods) + 0.8, width=5)
    for start, marker in zip(settings.starts, "os^", strict=False):
        means = [values(start, method).mean() for method in methods]
        axes[0, 0].plot(means, range(len(methods)), marker, label=start)
    axes[0, 0].set_yticks(range(len(methods)), [cell_tables.label(method) for method in methods])
    axes[0, 0].set(xlabel="test accuracy (%)")
    axes[0, 0].legend()
    summary = {start: {method: values(start, method).mean() for method in methods} for start in settings.starts}
    common.report(settings.out, text, {"accuracy": summary}, fig)


if __name__ == "__main__":
    main()
