"""Fine-tuned transformers merged by what people use: averages, task arithmetic, TIES, DARE, and by our rules.

A small transformer learns the next byte of one half of the modules of Python's standard library. Four clients each
fine-tune it on one module of the other half: those with most text. Scored is every merged model on every client's test
windows. Methods with a knob are run twice: as published, and as the mean accuracy on validation windows, which nobody
trains on, chooses among a few values. Test windows choose nothing.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
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
    data,
    evaluate,
    examples,
    merge_payloads,
    models,
    train,
)
from fedfisher_jax.merge import catalogue

LENGTH, CLIENTS, BATCH = 32, 4, 32
SCALES = (0.25, 0.4, 0.6, 0.8, 1.0)  # of the sum of the clients' updates; 1 / CLIENTS is their average
LABELS = {
    "pretrained": "pre-trained",
    "own": "each client's own model, on its own module",
    "pooled": "trained on everybody's windows",
    "average": "average",
    "task arithmetic": "task arithmetic",
    "ties": "TIES",
    "dare": "DARE, then task arithmetic",
    "fisher-merge": "Fisher merge",
    "fedfisher-diag": "FedFisher, diagonal",
    "regmean": "RegMean",
    "fedfisher-kfac": "FedFisher, K-FAC",
    "recalibrated": "FedFisher, K-FAC; head recalibrated",
}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        windows: A client's training windows, at most; an eighth more validate.
        tested: A client's test windows, at most.
        measured: Training windows on which a client measures.
        first_windows: Of each module for the pre-training, at most.
        first_epochs: Of the pre-training.
        epochs: Of the clients.
        width: Of the transformer's stream.
        seeds: Each draws halves, start and training.
    """

    windows: int = 1024
    tested: int = 256
    measured: int = 256
    first_windows: int = 512
    first_epochs: int = 2
    epochs: int = 4
    width: int = 64
    seeds: int = 3


QUICK = {"windows": 64, "tested": 16, "measured": 8, "first_windows": 8, "epochs": 1, "width": 16, "seeds": 1}


class Part(NamedTuple):
    """A client's windows [n, T + 1]."""

    name: str
    train: np.ndarray
    validate: np.ndarray
    test: np.ndarray


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


def candidates(updates: np.ndarray, seed: int) -> dict[str, dict[str, Callable[[], np.ndarray]]]:
    """Make updates by method and setting; the first setting is the published one, or what stands for it."""
    return {
        "average": {"": lambda: updates.mean(0)},
        "task arithmetic": {f"scale {s}": lambda s=s: task_arithmetic(updates, s) for s in first(0.4, SCALES)},
        "ties": {f"scale {s}": lambda s=s: ties(updates, s) for s in first(1.0, (*SCALES, 1.5, 2.0))},
        "dare": {
            f"drop {p}, scale {s}": lambda p=p, s=s: dare(updates, s, p, seed)
            for p in first(0.9, (0.5,))
            for s in first(0.4, SCALES)
        },
    }


def first(value: float, others: tuple[float, ...]) -> tuple[float, ...]:
    """Put a value before others."""
    return (value, *(other for other in others if other != value))


# ---- the clients ------------------------------


@cache
def text(seed: int) -> data.TextData:
    """Windows of bytes; a seed draws the halves."""
    return data.text_clients(data.standard_library(), length=LENGTH, seed=seed)


@cache
def network_of(width: int) -> models.Network:
    """One object per setting, so that it is traced once."""
    return models.build_transformer(256, LENGTH, width=width)


@cache
def trainer(network: models.Network, epochs: int, rate: float) -> Callable:
    """A jitted training."""
    settings = LocalTraining(network.apply, categorical(), optax.adam(rate), epochs, BATCH)
    return jax.jit(lambda params, windows, key: train(settings, params, as_examples(windows), key).params)


def as_examples(windows: Any) -> Any:
    """Windows as inputs and next bytes."""
    return examples(windows[:, :-1], windows[:, 1:])


def parts_of(found: data.TextData, windows: int, tested: int) -> list[Part]:
    """The clients: of the half that does not pre-train those modules with most training windows."""
    largest = sorted(found.personal, key=lambda n: (-len(found.train[n]), n))[:CLIENTS]
    held = windows // 8
    return [
        Part(
            found.clients[n],
            found.windows[found.train[n][:windows]],
            found.windows[found.train[n][windows : windows + held]],
            found.windows[found.test[n][:tested]],
        )
        for n in largest
    ]


def run(
    seed: int, windows: int, tested: int, measured: int, first_windows: int, first_epochs: int, epochs: int, width: int
) -> dict[str, Any]:
    """Pre-training, four clients, and all merges of theirs."""
    found, network = text(seed), network_of(width)
    init, key, *keys = jax.random.split(jax.random.key(seed), 2 + CLIENTS + 1)
    common_text = np.concatenate([found.train[n][:first_windows] for n in found.pretrain])
    begin = trainer(network, first_epochs, 2e-3)
    start = begin(jax.jit(network.init)(init), jnp.asarray(found.windows[common_text]), key)
    parts, tune = parts_of(found, windows, tested), trainer(network, epochs, 1e-3)
    tuned = [tune(start, jnp.asarray(part.train), one) for part, one in zip(parts, keys, strict=False)]
    pooled = tune(start, jnp.asarray(np.concatenate([part.train for part in parts])), keys[-1])

    def accuracy(params: Any, which: str) -> list[float]:
        each = [getattr(part, which) for part in parts]
        return [
            float(evaluate(network.apply, categorical(), params, w[:, :-1], w[:, 1:], batch_size=64).accuracy)
            for w in each
        ]

    cross = [accuracy(params, "test") for params in tuned]
    result: dict[str, Any] = {
        "modules": [part.name for part in parts],
        "cross": cross,
        "published": {
            "pretrained": accuracy(start, "test"),
            "own": [cross[n][n] for n in range(CLIENTS)],
            "pooled": accuracy(pooled, "test"),
        },
        "chosen": {},
        "settings": {},
    }
    flat, unravel = ravel_pytree(start)
    updates = np.stack([np.asarray(ravel_pytree(params)[0] - flat, np.float64) for params in tuned])

    def tried() -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
        for method, by_setting in candidates(updates, seed).items():
            yield (
                method,
                {
                    name: lambda make=make: unravel(flat + jnp.asarray(make(), flat.dtype))
                    for name, make in by_setting.items()
                },
            )
        yield from ours(network, start, tuned, [part.train[:measured] for part in parts], keys[0])

    for method, by_setting in tried():
        made = {name: make() for name, make in by_setting.items()}
        published = next(iter(made))
        result["published"][method] = accuracy(made[published], "test")
        if len(made) > 1:
            scores = {name: float(np.mean(accuracy(params, "validate"))) for name, params in made.items()}
            best = max(scores, key=scores.__getitem__)
            result["settings"][method] = {"published": published, "chosen": best, "validation": scores}
            result["chosen"][method] = accuracy(made[best], "test")
    return result


def ours(
    network: models.Network, start: Any, tuned: list[Any], windows: list[np.ndarray], key: jax.Array
) -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
    """The library's rules by setting, measured by one Monte-Carlo draw for each byte; the first is the default."""
    captured = capture(network.apply, start, windows[0][:1, :-1])
    offers = {"captured": captured, "kind": "monte_carlo"}

    def rule(name: str, **options: Any) -> Any:
        return catalogue.named_rule(name, network.apply, categorical(), offers=offers, **options)

    def measured(name: str, models_of: list[Any] = tuned) -> list[Any]:
        measure = jax.jit(rule(name).measure)
        return [
            measure(Update(params, start), as_examples(jnp.asarray(w)), jax.random.fold_in(key, n))
            for n, (params, w) in enumerate(zip(models_of, windows, strict=True))
        ]

    def merged(sent: list[Any], name: str, **options: Any) -> Callable[[], Any]:
        return lambda: merge_payloads(rule(name, **options), sent, start).params

    def damped(sent: list[Any], name: str, values: tuple[float, ...]) -> dict[str, Callable[[], Any]]:
        return {f"damping {v}": merged(sent, name, solver=conjugate_gradients(damping=v)) for v in values}

    diagonals, moments, factors = measured("fisher-merge"), measured("regmean"), measured("fedfisher-kfac")
    yield "fisher-merge", {"": merged(diagonals, "fisher-merge")}
    yield "fedfisher-diag", damped(diagonals, "fedfisher-diag", (0.01, 0.1, 1.0))
    yield (
        "regmean",
        {f"off-diagonal {v}": merged(moments, "regmean", off_diagonal=v) for v in first(0.9, (0.5, 1.0))},
    )
    yield "fedfisher-kfac", damped(factors, "fedfisher-kfac", (0.3, 0.03, 3.0))
    middle = merged(factors, "fedfisher-kfac")()
    head = jax.jit(rule("recalibrate").measure)
    sums = [head(Update(None, middle), as_examples(jnp.asarray(w)), key) for w in windows]
    yield "recalibrated", {"": lambda: merge_payloads(rule("recalibrate"), sums, middle).params}


# ---- the report ------------------------------


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    fixed = {f.name: getattr(settings, f.name) for f in dataclasses.fields(Settings)}
    fixed = {name: value for name, value in fixed.items() if name not in ("quick", "seed", "out", "seeds")}
    grid = [{"seed": s, **fixed} for s in range(settings.seed, settings.seed + settings.seeds)]
    results = [record["result"] for record in common.run_all(settings.out, grid, run)]

    def accuracies(kind: str, method: str) -> np.ndarray:
        return 100 * np.array([result[kind][method] for result in results])  # [seeds, clients]

    rows, summary = [], {}
    for method, label in LABELS.items():
        for kind in ("published", "chosen"):
            if method in results[0][kind]:
                found = accuracies(kind, method)
                gain = found.mean(1) - accuracies("published", "average").mean(1)
                name = label + (", setting chosen by validation" if kind == "chosen" else "")
                cells = [common.mean_std(values, 1) for values in (found.mean(1), found.min(1), gain)]
                rows.append([name, *cells, *[f"{value:.1f}" for value in found.mean(0)]])
                summary[f"{method}, {kind}"] = {"mean": found.mean(), "gain": gain.mean(), "gain by seed": gain}
    note = (
        f"Accuracy of the next byte in %, {CLIENTS} clients, windows of {LENGTH}; mean ± std over {len(results)} seeds."
        " Gain: the mean accuracy minus the average's, seed by seed. Clients 1 to 4 have other modules for every seed: "
        + "; ".join(", ".join(result["modules"]) for result in results)
        + f". Off its own module a client's own model has {off_own(results):.1f}.\n\n"
    )
    columns = ["", "mean of clients", "worst client", "gain", *[f"client {n + 1}" for n in range(CLIENTS)]]
    common.report(settings.out, note + common.markdown_table(columns, rows), summary | {"settings": chosen_of(results)})


def off_own(results: list[Mapping[str, Any]]) -> float:
    """Mean accuracy of clients' own models on the others' modules, in %."""
    other = ~np.eye(CLIENTS, dtype=bool)
    return 100 * float(np.mean([np.array(result["cross"])[other] for result in results]))


def chosen_of(results: list[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What validation chose, by method and seed."""
    return {method: [r["settings"][method]["chosen"] for r in results] for method in results[0]["settings"]}


if __name__ == "__main__":
    main()
