"""What every task does with fine-tuned models: it trains them, and merges them by others' methods and ours.

A method with a knob has several settings, the published one first; `scoring` chooses among them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from fedfisher_jax import (
    LocalTraining,
    Update,
    capture,
    categorical,
    conjugate_gradients,
    examples,
    merge_payloads,
    train,
)
from fedfisher_jax._trees import pick
from fedfisher_jax.curvature import Capture
from fedfisher_jax.merge import catalogue

BATCH = 32
SCALES = (0.25, 0.4, 0.6, 0.8, 1.0)  # of the sum of four clients' updates; 0.25 is their average
Data = tuple[Any, Any]  # inputs [n, ...] and targets [n, ...]
Ways = dict[str, Callable[[], Any]]  # by setting; the first is the published one, or what stands for it


class Part(NamedTuple):
    """A client's examples."""

    name: str
    train: Data
    validate: Data
    test: Data


class Trained(NamedTuple):
    """What is to be merged, and what it is compared with.

    Attributes:
        apply: (params, x) → outputs, of a classifier.
        start: the pre-trained parameters.
        tuned: the clients' parameters.
        pooled: those of a model trained on all clients' examples.
        parts: the clients' examples.
    """

    apply: Callable
    start: Any
    tuned: list[Any]
    pooled: Any
    parts: list[Part]


# ---- training ------------------------------


@cache
def trainer(apply: Callable, epochs: int, rate: float) -> Callable[[Any, Data, jax.Array], Any]:
    """A jitted training by Adam: (params, data, key) → params."""
    settings = LocalTraining(apply, categorical(), optax.adam(rate), epochs, BATCH)
    return jax.jit(lambda params, data, key: train(settings, params, examples(*data), key).params)


def fine_tuned(apply: Callable, start: Any, parts: list[Part], epochs: int, keys: Sequence[jax.Array]) -> Trained:
    """Train the clients' models, a key for each, and with the last key one on all their examples."""
    tune = trainer(apply, epochs, 1e-3)
    tuned = [tune(start, part.train, key) for part, key in zip(parts, keys[:-1], strict=True)]
    everybody = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[part.train for part in parts])
    return Trained(apply, start, tuned, tune(start, everybody, keys[-1]), parts)


# ---- what others do with the clients' updates [M, d] ------------------------------


def task_arithmetic(updates: np.ndarray, scale: float) -> np.ndarray:
    """Add the updates up, scaled (arXiv 2212.04089)."""
    return scale * updates.sum(0)


def ties(updates: np.ndarray, scale: float, density: float = 0.2) -> np.ndarray:
    """Keep the largest numbers of each update, elect signs, average those that agree (arXiv 2306.01708)."""
    least = np.quantile(np.abs(updates), 1 - density, axis=1, keepdims=True)
    kept = np.where(np.abs(updates) >= least, updates, 0)
    agree = np.where(np.sign(kept) == np.sign(kept.sum(0)), kept, 0)
    return scale * agree.sum(0) / np.maximum((agree != 0).sum(0), 1)


def dare(updates: np.ndarray, scale: float, drop: float, seed: int) -> np.ndarray:
    """Drop numbers of the updates at random, scale up what is left (arXiv 2311.03099), and add as task arithmetic."""
    kept = np.random.default_rng(seed).random(updates.shape) >= drop
    return task_arithmetic(np.where(kept, updates / (1 - drop), 0), scale)


def candidates(
    updates: np.ndarray, seed: int, scales: tuple[float, ...] = SCALES
) -> dict[str, dict[str, Callable[[], np.ndarray]]]:
    """Make updates by method and setting; the first setting is the published one, or what stands for it."""
    return {
        "average": {"": lambda: updates.mean(0)},
        "task arithmetic": {f"scale {s}": lambda s=s: task_arithmetic(updates, s) for s in first(0.4, scales)},
        "ties": {f"scale {s}": lambda s=s: ties(updates, s) for s in first(1.0, (*scales, 1.5, 2.0))},
        "dare": {
            f"drop {p}, scale {s}": lambda p=p, s=s: dare(updates, s, p, seed)
            for p in first(0.9, (0.5,))
            for s in first(0.4, scales)
        },
    }


def first(value: float, others: tuple[float, ...]) -> tuple[float, ...]:
    """Put a value before others."""
    return (value, *(other for other in others if other != value))


def others(trained: Trained, seed: int, scales: tuple[float, ...] = SCALES) -> Iterator[tuple[str, Ways]]:
    """Merged parameters by method and setting, of methods that know the updates alone."""
    flat, unravel = ravel_pytree(trained.start)
    updates = np.stack([np.asarray(ravel_pytree(params)[0] - flat, np.float64) for params in trained.tuned])
    for method, by_setting in candidates(updates, seed, scales).items():
        made = lambda make: lambda: unravel(flat + jnp.asarray(make(), flat.dtype))  # noqa: E731
        yield method, {name: made(make) for name, make in by_setting.items()}


# ---- what this library does ------------------------------


@dataclasses.dataclass(frozen=True)
class Measuring:
    """What clients measure, and what rules make of it.

    Attributes:
        trained: the models.
        data: the training examples on which each client measures.
        captured: the layers that have curvature of their own.
        kind: the kind of Fisher information.
        key: the key of Monte-Carlo draws.
    """

    trained: Trained
    data: list[Any]
    captured: Capture
    kind: str
    key: jax.Array

    def rule(self, name: str, **options: Any) -> Any:
        """Make a rule of this library."""
        offers = {"captured": self.captured, "kind": self.kind}
        return catalogue.named_rule(name, self.trained.apply, categorical(), offers=offers, **options)

    def sent(self, name: str) -> list[Any]:
        """What each client sends for a rule."""
        measure, start = jax.jit(self.rule(name).measure), self.trained.start
        pairs = enumerate(zip(self.trained.tuned, self.data, strict=True))
        return [measure(Update(params, start), mine, jax.random.fold_in(self.key, n)) for n, (params, mine) in pairs]

    def merged(self, payloads: list[Any], name: str, **options: Any) -> Callable[[], Any]:
        """A call that merges by a rule."""
        return lambda: merge_payloads(self.rule(name, **options), payloads, self.trained.start).params

    def damped(self, payloads: list[Any], name: str, values: tuple[float, ...]) -> Ways:
        """Merge by a rule with several dampings."""
        each = {f"damping {v}": conjugate_gradients(damping=v) for v in values}
        return {setting: self.merged(payloads, name, solver=solver) for setting, solver in each.items()}

    def kfac(self) -> Ways:
        """Measure for K-FAC, and merge by it with several dampings."""
        return self.damped(self.sent("fedfisher-kfac"), "fedfisher-kfac", (0.3, 0.03, 3.0))


def measuring(trained: Trained, measured: int, kind: str, key: jax.Array) -> Measuring:
    """Let each client measure on so many of its training examples."""
    data = [examples(*pick(part.train, slice(measured))) for part in trained.parts]
    return Measuring(trained, data, capture(trained.apply, trained.start, pick(data[0].x, slice(1))), kind, key)


def averaged(trained: Trained) -> Any:
    """Average the clients' parameters."""
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trained.tuned)


def ours(trained: Trained, measured: int, kind: str, key: jax.Array) -> Iterator[tuple[str, Ways]]:
    """The library's rules by setting; the first is the default. Arguments are as in `measuring`."""
    clients = measuring(trained, measured, kind, key)
    merged, diagonals, moments = clients.merged, clients.sent("fisher-merge"), clients.sent("regmean")
    yield "fisher-merge", {"": merged(diagonals, "fisher-merge")}
    yield "fedfisher-diag", clients.damped(diagonals, "fedfisher-diag", (0.01, 0.1, 1.0))
    yield "regmean", {f"off-diagonal {v}": merged(moments, "regmean", off_diagonal=v) for v in first(0.9, (0.5, 1.0))}
    kfac = clients.kfac()
    yield "fedfisher-kfac", kfac
    head = jax.jit(clients.rule("recalibrate").measure)

    def recalibrated(middle: Any) -> Any:
        sums = [head(Update(None, middle), mine, key) for mine in clients.data]
        return merge_payloads(clients.rule("recalibrate"), sums, middle).params

    yield "pretrained recalibrated", {"": lambda: recalibrated(trained.start)}
    yield "average recalibrated", {"": lambda: recalibrated(averaged(trained))}
    yield "recalibrated", {"": lambda: recalibrated(next(iter(kfac.values()))())}
