"""Scores of merged models over clients and seeds, and the report of a task.

A method with several settings is scored as published, and with the setting of the best mean accuracy on validation
examples. Test examples choose nothing.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.checkpoints.methods import Trained, Ways
from experiments.lib import common
from fedfisher_jax import categorical, evaluate

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
    "diagonal table": "FedFisher, K-FAC, its table diagonal",
    "pretrained recalibrated": "pre-trained; head recalibrated",
    "average recalibrated": "average; head recalibrated",
    "recalibrated": "FedFisher, K-FAC; head recalibrated",
}


def scores(trained: Trained, params: Any, which: str) -> dict[str, list[float]]:
    """Accuracy, and loss in nats for each thing that is told, on each client's "test" or "validate" examples."""
    each = [getattr(part, which) for part in trained.parts]
    found = [evaluate(trained.apply, categorical(), params, x, y, batch_size=64) for x, y in each]
    told = [y[0].size for _, y in each]
    losses = [float(one.loss) / size for one, size in zip(found, told, strict=True)]
    return {"accuracy": [float(one.accuracy) for one in found], "loss": losses}


def scored(trained: Trained, ways: Iterable[tuple[str, Ways]]) -> dict[str, Any]:
    """Merge in every way, and score."""
    cross = [scores(trained, params, "test") for params in trained.tuned]
    result: dict[str, Any] = {
        "modules": [part.name for part in trained.parts],
        "cross": [one["accuracy"] for one in cross],
        "published": {},
        "chosen": {},
        "settings": {},
        "losses": {"published": {}, "chosen": {}},
    }

    def keep(kind: str, method: str, found: dict[str, list[float]]) -> None:
        result[kind][method] = found["accuracy"]
        result["losses"][kind][method] = found["loss"]

    keep("published", "pretrained", scores(trained, trained.start, "test"))
    keep("published", "own", {name: [one[name][n] for n, one in enumerate(cross)] for name in cross[0]})
    keep("published", "pooled", scores(trained, trained.pooled, "test"))
    for method, by_setting in ways:
        made = {name: make() for name, make in by_setting.items()}
        published = next(iter(made))
        keep("published", method, scores(trained, made[published], "test"))
        if len(made) > 1:
            right = {name: float(np.mean(scores(trained, p, "validate")["accuracy"])) for name, p in made.items()}
            best = max(right, key=right.__getitem__)
            result["settings"][method] = {"published": published, "chosen": best, "validation": right}
            keep("chosen", method, scores(trained, made[best], "test"))
    return result


def over_seeds(settings: Any, run: Callable[..., Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Run what is missing of `settings.seeds` seeds; `run` takes a seed and every flag of the task by name."""
    flags = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    flags = {name: value for name, value in flags.items() if name not in ("quick", "seed", "out", "seeds")}
    grid = [{"seed": seed, **flags} for seed in range(settings.seed, settings.seed + settings.seeds)]
    return [record["result"] for record in common.run_all(settings.out, grid, run)]


def found(results: Sequence[Mapping[str, Any]], kind: str, method: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Accuracies in % and losses of a method, [seeds, clients]; of results from before losses were kept no losses."""
    right = 100 * np.array([result[kind][method] for result in results])
    kept = all("losses" in result for result in results)
    return right, np.array([result["losses"][kind][method] for result in results]) if kept else None


def report(out: Any, results: Sequence[Mapping[str, Any]], what: str, more: str = "") -> None:
    """Write table and summary of several seeds' `scored`.

    Args:
        out: the folder.
        results: what `scored` returned, by seed.
        what: what the accuracy is of.
        more: what stands below the table.
    """
    (average, loss), rows, summary = found(results, "published", "average"), [], {}
    for method, label in LABELS.items():
        for kind in ("published", "chosen"):
            if method in results[0][kind]:
                each, losses = found(results, kind, method)
                gain = each.mean(1) - average.mean(1)
                name = label + (", setting chosen by validation" if kind == "chosen" else "")
                cells = [common.mean_std(values, 1) for values in (each.mean(1), each.min(1), gain)]
                summary[f"{method}, {kind}"] = {"mean": each.mean(), "gain": gain.mean(), "gain by seed": gain}
                if losses is not None:
                    less = (loss - losses).mean(1)
                    cells += [common.mean_std(losses.mean(1), 3), common.mean_std(less, 4)]
                    summary[f"{method}, {kind}"] |= {"loss": losses.mean(), "loss less": less.mean()}
                rows.append([name, *cells, *[f"{value:.1f}" for value in each.mean(0)]])
    clients = len(results[0]["modules"])
    note = (
        f"{what}; mean ± std over {len(results)} seeds. Gain: the mean accuracy minus the average's, seed by seed. "
        + ("Loss: nats for each thing that is told; less: the average's minus it. " if loss is not None else "")
        + f"Clients 1 to {clients} differ from seed to seed: "
        + "; ".join(" | ".join(result["modules"]) for result in results)
        + f". On the others' examples a client's own model has {off_own(results):.1f}.\n\n"
    )
    losses = ["loss", "less"] if loss is not None else []
    columns = ["", "mean of clients", "worst client", "gain", *losses, *[f"client {n + 1}" for n in range(clients)]]
    table = common.markdown_table(columns, rows) + more
    common.report(out, note + table, summary | {"settings": chosen_of(results)})


def off_own(results: Sequence[Mapping[str, Any]]) -> float:
    """Mean accuracy of clients' own models on the others' examples, in %."""
    other = ~np.eye(len(results[0]["modules"]), dtype=bool)
    return 100 * float(np.mean([np.array(result["cross"])[other] for result in results]))


def chosen_of(results: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What validation chose, by method and seed."""
    return {method: [r["settings"][method]["chosen"] for r in results] for method in results[0]["settings"]}
