"""A federation that is simulated, and what its merges are judged by: local models, their ensembles, pooled training."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._metrics import as_numbers, ensemble, evaluate
from .._trees import arrays, outline, pick
from ..curvature._cotangents import counting
from ._cohort import Cohort, cohort
from ._local import LocalTraining
from ._simulate import train_clients

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Simulation:
    """Who trains what, from where; and the examples that models are judged by.

    Attributes:
        training: the model, its likelihood and how clients train it.
        start: the parameters that all clients start from.
        cohort: the clients and their examples.
        test_x: [n, ...].
        test_y: [n, ...].
    """

    training: LocalTraining
    start: PyTree
    cohort: Cohort
    test_x: Any
    test_y: Any


class Result(NamedTuple):
    """One thing found out: of kind "training", "client" (its name is its number), "reference" or "rule"."""

    kind: str
    name: str
    value: dict[str, Any]


def train_pooled(simulation: Simulation, key: jax.Array) -> dict[str, float]:
    """Scores of one model trained, with the clients' settings, on all of their examples."""
    everyone = simulation.cohort
    pooled = cohort(everyone.x, everyone.y, [np.asarray(everyone.rows)])
    trained, _ = train_clients(simulation.training, simulation.start, pooled, key, strategy="sequential")
    return score(simulation, pick(trained.params, 0))


def score(simulation: Simulation, params: PyTree, apply: Callable | None = None) -> dict[str, float]:
    """Test accuracy (0 to 1), where there is such, and loss (nats) of a model, `apply` the simulation's by default."""
    settings = apply or simulation.training.apply, simulation.training.likelihood
    return as_numbers(evaluate(*settings, params, simulation.test_x, simulation.test_y))


def judge_locals(simulation: Simulation, stacked: PyTree, done: Callable[..., None] | None) -> Iterator[Result]:
    """Judge every local model, the best of them and their ensembles: of equal weights, by examples, by class shares."""
    sizes, scores = np.asarray(simulation.cohort.sizes), []
    for number in range(len(sizes)):
        scores.append(score(simulation, pick(stacked, number)))
        yield Result("client", str(number), scores[-1])
        if done:
            done()
    best = int(np.argmax([one.get("accuracy", -one["loss"]) for one in scores]))
    yield Result("reference", "best_local", scores[best] | {"client": best})
    weights = {"ensemble": None, "ensemble_by_size": jnp.asarray(sizes / sizes.sum(), jnp.float32)}
    if simulation.training.likelihood.name == "categorical":
        weights["ensemble_by_class"] = jnp.asarray(_class_counts(simulation, stacked), jnp.float32)
    settings = simulation.training.apply, simulation.training.likelihood
    for name, shares in weights.items():
        found = ensemble(*settings, stacked, simulation.test_x, simulation.test_y, weights=shares)
        yield Result("reference", name, as_numbers(found))


def _class_counts(simulation: Simulation, stacked: PyTree) -> np.ndarray:
    """Count each client's targets of each class, [clients, classes]."""
    everyone, training, one = simulation.cohort, simulation.training, outline(arrays("x", simulation.test_x), 1)
    outputs = jax.eval_shape(training.apply, pick(stacked, 0), one)
    y, rows = np.asarray(everyone.y), np.asarray(everyone.rows)
    counted = np.asarray(counting(training.likelihood, y))
    starts, sizes = np.asarray(everyone.members.start), np.asarray(everyone.sizes)
    parts = [rows[begin : begin + size] for begin, size in zip(starts, sizes, strict=True)]
    return np.stack([np.bincount(y[part][counted[part]], minlength=outputs.shape[-1]) for part in parts])
