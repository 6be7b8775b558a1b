"""What server and nodes share: the model, its rule, and which digits a node has. Replace it by your own."""

from typing import Any, NamedTuple

import optax
from flwr.app import UserConfig  # pyright: ignore[reportMissingImports]

import fedfisher_jax as ff
from fedfisher_jax.federate import run_keys
from fedfisher_jax.merge import catalogue
from fedfisher_jax.silos import Kind


class Task(NamedTuple):
    """Everything but the node."""

    kind: Kind
    start: Any
    training: ff.LocalTraining
    rule: ff.Rule
    layers: tuple[Any, ...]
    dataset: Any
    parts: list[Any]


def task_of(config: UserConfig) -> Task:
    """The task from a run's configuration."""
    dataset, seed = ff.data.load("digits"), int(config["seed"])
    kind = Kind("mlp", dataset.train_x.shape[1:], dataset.num_classes)
    network, likelihood = ff.models.build(kind.model, kind.input_shape, kind.outputs), ff.categorical()
    start = network.init(run_keys(seed).init)
    captured = ff.capture(network.apply, start, dataset.train_x)
    rule = catalogue.named_rule(str(config["rule"]), network.apply, likelihood, offers={"captured": captured})
    training = ff.LocalTraining(network.apply, likelihood, optax.sgd(0.01, 0.9), int(config["epochs"]), 64)
    how = {"seed": seed, "alpha": float(config["alpha"])}
    parts = ff.data.split("dirichlet-client", dataset.train_y, int(config["nodes"]), **how)
    return Task(kind, start, training, rule, captured.layers, dataset, parts)
