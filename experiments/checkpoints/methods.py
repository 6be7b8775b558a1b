"""What every task does with fine-tuned models: it trains them, merges them by others' methods and ours, and reports.

Methods with a knob are run twice: as published, and as the mean accuracy on validation examples, which nobody trains
on, chooses among a few values. Test examples choose nothing.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments.lib import common
from fedfisher_jax import (
    LocalTraining,
    Update,
    capture,
    categorical,
    conjugate_gradients,
    evaluate,
    examples,
    merge_payloads,
    train,
)
from fedfisher_jax._trees import pick
from fedfisher_jax.merge import catalogue

BATCH = 32
SCALES = (0.25, 0.4, 0.6, 0.8, 1.0)  # of the sum of four clients' updates; 0.25 is their average
LABELS = {
    "pretrained": "pre-trained",
    "own": "each client's own model, at home",
    "pooled": "trained on everybody's examples",
    "average": "average",
    "task arithmetic": "task arithmetic",
    "ties": "TIES",
    "dare": "DARE, then task arithmetic",
    "fisher-merge": "Fisher merge",
    "fedfisher-diag": "FedFisher, diagonal",
    "regmean": "RegMean",
    "fedfisher-kfac": "FedFisher, K-FAC",
    "pretrained recalibrated": "pre-trained; head recalibrated",
    "average recalibrated": "average; head recalibrated",
    "recalibrated": "FedFisher, K-FAC; head recalibrated",
}
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


def ours(trained: Trained, measured: int, kind: str, key: jax.Array) -> Iterator[tuple[str, Ways]]:
    """The library's rules by setting; the first is the default.

    Args:
        trained: the models.
        measured: how many of its training examples a client measures on.
        kind: the kind of Fisher information.
        key: of Monte-Carlo draws.
    """
    apply, start = trained.apply, trained.start
    data = [examples(*pick(part.train, slice(measured))) for part in trained.parts]
    offers = {"captured": capture(apply, start, pick(data[0].x, slice(1))), "kind": kind}

    def rule(name: str, **options: Any) -> Any:
        return catalogue.named_rule(name, apply, categorical(), offers=offers, **options)

    def sent(name: str) -> list[Any]:
        measure = jax.jit(rule(name).measure)
        pairs = enumerate(zip(trained.tuned, data, strict=True))
        return [measure(Update(params, start), mine, jax.random.fold_in(key, n)) for n, (params, mine) in pairs]

    def merged(payloads: list[Any], name: str, **options: Any) -> Callable[[], Any]:
        return lambda: merge_payloads(rule(name, **options), payloads, start).params

    def damped(payloads: list[Any], name: str, values: tuple[float, ...]) -> Ways:
        return {f"damping {v}": merged(payloads, name, solver=conjugate_gradients(damping=v)) for v in values}

    diagonals, moments, factors = sent("fisher-merge"), sent("regmean"), sent("fedfisher-kfac")
    yield "fisher-merge", {"": merged(diagonals, "fisher-merge")}
    yield "fedfisher-diag", damped(diagonals, "fedfisher-diag", (0.01, 0.1, 1.0))
    yield "regmean", {f"off-diagonal {v}": merged(moments, "regmean", off_diagonal=v) for v in first(0.9, (0.5, 1.0))}
    yield "fedfisher-kfac", damped(factors, "fedfisher-kfac", (0.3, 0.03, 3.0))
    head = jax.jit(rule("recalibrate").measure)

    def recalibrated(middle: Any) -> Any:
        sums = [head(Update(None, middle), mine, key) for mine in data]
        return merge_payloads(rule("recalibrate"), sums, middle).params

    average = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trained.tuned)
    yield "pretrained recalibrated", {"": lambda: recalibrated(start)}
    yield "average recalibrated", {"": lambda: recalibrated(average)}
    yield "recalibrated", {"": lambda: recalibrated(merged(factors, "fedfisher-kfac")())}


# ---- scores and the report ------------------------------


def accuracies(trained: Trained, params: Any, which: str) -> list[float]:
    """Accuracy on each client's "test" or "validate" examples."""
    each = [getattr(part, which) for part in trained.parts]
    return [float(evaluate(trained.apply, categorical(), params, x, y, batch_size=64).accuracy) for x, y in each]


def scored(
    trained: Trained, seed: int, measured: int, kind: str, key: jax.Array, scales: tuple[float, ...] = SCALES
) -> dict[str, Any]:
    """Merge in every way, and score; arguments as in `ours`, the seed of random drops, and the updates' scales."""
    cross = [accuracies(trained, params, "test") for params in trained.tuned]
    result: dict[str, Any] = {
        "modules": [part.name for part in trained.parts],
        "cross": cross,
        "published": {
            "pretrained": accuracies(trained, trained.start, "test"),
            "own": [cross[n][n] for n in range(len(cross))],
            "pooled": accuracies(trained, trained.pooled, "test"),
        },
        "chosen": {},
        "settings": {},
    }
    for method, by_setting in (*others(trained, seed, scales), *ours(trained, measured, kind, key)):
        made = {name: make() for name, make in by_setting.items()}
        published = next(iter(made))
        result["published"][method] = accuracies(trained, made[published], "test")
        if len(made) > 1:
            scores = {name: float(np.mean(accuracies(trained, params, "validate"))) for name, params in made.items()}
            best = max(scores, key=scores.__getitem__)
            result["settings"][method] = {"published": published, "chosen": best, "validation": scores}
            result["chosen"][method] = accuracies(trained, made[best], "test")
    return result


def over_seeds(settings: Any, run: Callable[..., Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Run what is missing of `settings.seeds` seeds; `run` takes a seed and every flag of the task by name."""
    flags = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    flags = {name: value for name, value in flags.items() if name not in ("quick", "seed", "out", "seeds")}
    grid = [{"seed": seed, **flags} for seed in range(settings.seed, settings.seed + settings.seeds)]
    return [record["result"] for record in common.run_all(settings.out, grid, run)]


def report(out: Any, results: Sequence[Mapping[str, Any]], what: str) -> None:
    """Write table and summary of several seeds' `scored`; `what` says what the accuracy is of."""

    def found(kind: str, method: str) -> np.ndarray:
        return 100 * np.array([result[kind][method] for result in results])  # [seeds, clients]

    rows, summary = [], {}
    for method, label in LABELS.items():
        for kind in ("published", "chosen"):
            if method in results[0][kind]:
                each = found(kind, method)
                gain = each.mean(1) - found("published", "average").mean(1)
                name = label + (", setting chosen by validation" if kind == "chosen" else "")
                cells = [common.mean_std(values, 1) for values in (each.mean(1), each.min(1), gain)]
                rows.append([name, *cells, *[f"{value:.1f}" for value in each.mean(0)]])
                summary[f"{method}, {kind}"] = {"mean": each.mean(), "gain": gain.mean(), "gain by seed": gain}
    clients = len(results[0]["modules"])
    note = (
        f"{what}; mean ± std over {len(results)} seeds. Gain: the mean accuracy minus the average's, seed by seed. "
        f"Clients 1 to {clients} differ from seed to seed: "
        + "; ".join(" | ".join(result["modules"]) for result in results)
        + f". On the others' examples a client's own model has {off_own(results):.1f}.\n\n"
    )
    columns = ["", "mean of clients", "worst client", "gain", *[f"client {n + 1}" for n in range(clients)]]
    common.report(out, note + common.markdown_table(columns, rows), summary | {"settings": chosen_of(results)})


def off_own(results: Sequence[Mapping[str, Any]]) -> float:
    """Mean accuracy of clients' own models on the others' examples, in %."""
    other = ~np.eye(len(results[0]["modules"]), dtype=bool)
    return 100 * float(np.mean([np.array(result["cross"])[other] for result in results]))


def chosen_of(results: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What validation chose, by method and seed."""
    return {method: [r["settings"][method]["chosen"] for r in results] for method in results[0]["settings"]}
