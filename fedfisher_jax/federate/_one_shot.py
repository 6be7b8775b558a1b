"""One one-shot federation, and what its merges are judged by: local models, their ensemble, training on pooled data."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._examples import Examples
from .._metrics import Metrics, ensemble, evaluate
from ..curvature import Capture
from ..merge import FreshModes, Rule
from . import _simulate as simulate

PyTree = Any
Stage = Callable[[str, int], Callable[..., None] | None]  # (name, steps) → called after each step, or with how many


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Who trains what on which examples, from where; and the examples that models are judged by.

    Attributes:
        train: the model, its likelihood and how clients train it.
        start: the parameters that all clients start from.
        x: [N, ...] of all clients.
        y: [N, ...].
        test_x: [n, ...].
        test_y: [n, ...].
        who: the clients.
    """

    train: simulate.Train
    start: PyTree
    x: Any
    y: Any
    test_x: Any
    test_y: Any
    who: simulate.Clients


class Keys(NamedTuple):
    """Of a run's parts."""

    init: jax.Array
    train: jax.Array
    measure: jax.Array
    pick: jax.Array  # of labelled examples at the server


def keys(seed: int) -> Keys:
    """A run's keys from its seed."""
    return Keys(*jax.random.split(jax.random.key(seed), 4))


class Result(NamedTuple):
    """One thing found out: of kind "training", "client" (its name is its number), "reference" or "rule"."""

    kind: str
    name: str
    value: dict[str, Any]


def compare(
    problem: Problem,
    rules: Mapping[str, Rule],
    key: Keys,
    *,
    pooled: bool = False,
    strategy: str | None = None,
    stage: Stage = lambda name, steps: None,
) -> Iterator[Result]:
    """Train all clients, judge their models, and merge them by each rule; results come as they are found.

    The best local model is chosen by the test examples (by loss where there is no accuracy): an oracle. Rules whose
    measures are equal share one pass over the data, whose seconds count for each of them.

    Args:
        problem: the federation.
        rules: by the names that their results get.
        key: of training and of what clients measure.
        pooled: also train one model on all clients' examples.
        strategy: of `cohort.map_clients`.
        stage: told the stages as they begin.

    Raises:
        ValueError: a model or payload is not finite; the client is named.
    """
    how = {"strategy": strategy}
    x, y, who = problem.x, problem.y, problem.who
    count, epochs = len(who.size), problem.train.epochs
    train = dataclasses.replace(problem.train, on_epoch=stage("train", count * epochs))
    began = time.perf_counter()
    trained, ran = simulate.train_clients(train, problem.start, x, y, who, key.train, **how)
    yield Result("training", "clients", {"seconds": time.perf_counter() - began, "cohort": ran._asdict()})
    yield from _judge_locals(problem, trained.params, stage("evaluate clients", count))

    measured: dict[Any, tuple[PyTree, float]] = {}
    for name, rule in rules.items():
        if rule.measure not in measured:
            done = stage(f"measure for {name}", count)
            began = time.perf_counter()
            sent, _ = simulate.measure_clients(rule.measure, trained.params, x, y, who, key.measure, done=done, **how)
            measured[rule.measure] = sent, time.perf_counter() - began
        payloads, measuring = measured[rule.measure]
        done = stage(f"merge by {name}", 1)
        began = time.perf_counter()
        merged = simulate.merge_clients(rule, payloads)
        jax.block_until_ready(merged.params)
        merging = time.perf_counter() - began
        found = {
            "bits_up": simulate.payload_bits(payloads),
            "seconds": measuring + merging,
            "seconds_measure": measuring,
            "seconds_merge": merging,
            "diagnostics": merged.diagnostics,
        }
        yield Result("rule", name, score(problem, merged.params, merged.apply) | found)
        if done:
            done()

    if pooled:
        alone = dataclasses.replace(problem.train, on_epoch=stage("train on pooled data", epochs))
        yield Result("reference", "pooled", train_pooled(dataclasses.replace(problem, train=alone), key.train))


def train_pooled(problem: Problem, key: jax.Array) -> dict[str, float]:
    """Scores of one model trained, with the clients' settings, on all of their examples."""
    indices = [row[:size] for row, size in zip(problem.who.indices, problem.who.size, strict=True)]
    everybody = simulate.clients([np.concatenate(indices)])
    how = {"strategy": "sequential"}
    trained, _ = simulate.train_clients(problem.train, problem.start, problem.x, problem.y, everybody, key, **how)
    return score(problem, jax.tree.map(lambda leaf: leaf[0], trained.params))


def score(problem: Problem, params: PyTree, apply: Callable | None = None) -> dict[str, float]:
    """Test accuracy (0 to 1), where there is such, and loss (nats) of a model, `apply` the problem's own by default."""
    settings = apply or problem.train.apply, problem.train.likelihood
    return _numbers(evaluate(*settings, params, problem.test_x, problem.test_y))


def offers(
    init: Callable[[jax.Array], PyTree], train: simulate.Train, captured: Capture, seed: int, **more: Any
) -> dict[str, Any]:
    """What rules may take (see `merge.catalogue`): the model's layers, and a second local model from a fresh start.

    Args:
        init: key → initial parameters.
        train: the clients' settings.
        captured: the model's layers.
        seed: of the fresh starts.
        more: further offers.
    """
    return {"captured": captured, "others": FreshModes(init, Fit(train), seed)} | more


@dataclasses.dataclass(frozen=True)
class Fit:
    """(params, data, key) → parameters trained by these settings; equal settings are traced once."""

    train: simulate.Train

    def __call__(self, params: PyTree, data: Examples, key: jax.Array) -> PyTree:
        """Trained parameters."""
        return self.train.fit(params, data, key).params


def _judge_locals(problem: Problem, stacked: PyTree, done: Callable[..., None] | None) -> Iterator[Result]:
    """Every local model, the best of them and their ensembles, with equal weights and weighted by examples."""
    scores = []
    for number in range(len(problem.who.size)):
        scores.append(score(problem, jax.tree.map(lambda leaf, n=number: leaf[n], stacked)))
        yield Result("client", str(number), scores[-1])
        if done:
            done()
    best = int(np.argmax([one.get("accuracy", -one["loss"]) for one in scores]))
    yield Result("reference", "best_local", scores[best] | {"client": best})
    sizes = np.asarray(problem.who.size)
    weights = jnp.asarray(sizes / sizes.sum(), jnp.float32)
    for name, shares in (("ensemble", None), ("ensemble_weighted", weights)):
        settings = problem.train.apply, problem.train.likelihood
        found = ensemble(*settings, stacked, problem.test_x, problem.test_y, weights=shares)
        yield Result("reference", name, _numbers(found))


def _numbers(found: Metrics) -> dict[str, float]:
    """Those that the likelihood has."""
    return {name: float(value) for name, value in found._asdict().items() if value is not None}
