"""The HTML page of one or several runs: one file that needs nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import _svg as svg
from ._summary import REFERENCES, best_of, summarise
from ._words import words_on_diagnostics

MOST_CLASSES = 20  # of a table
UNTOLD = ("out", "overwrite", "seed", "data_seed", "data_dir", "strategy", "save", "distributed")


def page(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Write a page of runs, each a name and the record of its result.json.

    Raises:
        ValueError: no run, or a record without what `fedfisher run` writes.
    """
    import jinja2

    if not runs:
        raise ValueError("runs: expected at least one, got none")
    for name, record in runs:
        if missing := {"settings", "clients", "rules", "references", "fedavg_bits", "versions"} - set(record):
            raise ValueError(f"{name}: got a record without {', '.join(sorted(missing))}, expected fedfisher run's")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((Path(__file__).parent / "page.html.jinja").read_text(encoding="utf-8"))
    title = runs[0][0] if len(runs) == 1 else f"{len(runs)} runs"
    parts = {"overview": _overview(runs) if len(runs) > 1 else None, "runs": [_run(*run) for run in runs]}
    return template.render(title=f"fedfisher: {title}", **parts) + "\n"


def _overview(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Rules by what differs between the runs, whatever their seeds."""
    told = [{k: v for k, v in record["settings"].items() if k not in (*UNTOLD, "rules")} for _, record in runs]
    differ = [key for key in told[0] if len({str(one.get(key)) for one in told}) > 1]
    groups: dict[str, str] = {}  # what differs → a column's name: that in few words, or else the first run's
    cells = []
    for one, (name, record) in zip(told, runs, strict=True):
        words = ", ".join(f"{key} {one.get(key)}" for key in differ) or "accuracy"
        cells.append({**record, "varied": groups.setdefault(words, words if len(differ) < 3 else name)})
    found = summarise(cells, None)
    text = lambda value: "–" if value is None else str(value)  # noqa: E731
    best = best_of(found)
    rules = {
        name: [(text(v), name in names) for v, names in zip(row, best, strict=True)]
        for name, row in found.rules.items()
    }
    others = {name.replace("_", " "): list(map(text, row)) for name, row in found.references.items()}
    return {"columns": found.columns, "rules": list(rules.items()), "others": list(others.items())}


def _run(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    words = [word for one, rule in record["rules"].items() for word in words_on_diagnostics(one, rule)]
    versions = [(f"version of {key}", value) for key, value in record["versions"].items()]
    return {
        "name": name,
        "sentence": _sentence(record),
        "complete": record.get("complete", True),
        "rows": _rows(record),
        "figures": _figures(record),
        "by_class": _by_class(record),
        "personalised": _personalised(record),
        "words": [*record.get("words", []), *words, *([record["preset"]] if record.get("preset") else [])],
        "command": record.get("command"),
        "settings": [*record["settings"].items(), ("parameters", record.get("parameters")), *versions],
    }


def _sentence(record: Mapping[str, Any]) -> str:
    settings, sizes = record["settings"], record["clients"]["sizes"]
    rounds, epochs = settings.get("rounds", 1), settings["epochs"]
    epochs = f"{epochs} local epoch{'s' * (epochs > 1)}"
    how = "merged once" if rounds == 1 else f"in {rounds} rounds of {record['sampled']} clients"
    skew = f" (α = {settings['alpha']})" if settings["partition"] in ("dirichlet-client", "dirichlet-class") else ""
    return (
        f"{len(sizes)} clients with {min(sizes)} to {max(sizes)} examples each of {Path(settings['dataset']).name}, "
        f"split by {settings['partition']}{skew}, train {settings['model']} for {epochs}, "
        f"{how}; seed {settings['seed']}."
    )


def _rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    best, rows = max((rule["accuracy"] for rule in record["rules"].values()), default=None), []
    for name, rule in record["rules"].items():
        bits = f"{rule['bits_up'] / 1e6:.2f}", f"{rule['bits_up'] / record['fedavg_bits']:.2f}"
        style = "best" if rule["accuracy"] == best else ""
        rows.append({"style": style, "cells": [name, _percent(rule["accuracy"]), f"{rule['loss']:.4f}", *bits]})
    for name in REFERENCES:
        if one := record["references"].get(name):
            cells = [name.replace("_", " "), _percent(one["accuracy"]), f"{one['loss']:.4f}", "", ""]
            rows.append({"style": "reference", "cells": cells})
    return rows


def _figures(record: Mapping[str, Any]) -> list[dict[str, str]]:
    found = [("Who has how many examples of which class.", svg.heat_map(record))]
    if record["rules"]:
        found.append(("Test accuracy of local models, rules and references.", svg.accuracies(record)))
    if record["rules"] and all(rule.get("rounds") for rule in record["rules"].values()):
        found.append(("Test accuracy over rounds.", svg.over_rounds(record)))
        found.append(("Test accuracy over what all clients have sent.", svg.over_rounds(record, megabytes=True)))
    return [{"caption": caption, "svg": drawn} for caption, drawn in found]


def _by_class(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Accuracy on each class's test examples, where there are few enough classes to show."""
    rows = {name: rule["accuracy_by_class"] for name, rule in record["rules"].items() if "accuracy_by_class" in rule}
    count = max((len(row) for row in rows.values()), default=0)
    if not 0 < count <= MOST_CLASSES:
        return None
    shown = {name: ["–" if share is None else f"{100 * share:.0f}" for share in row] for name, row in rows.items()}
    return {"classes": list(record.get("classes") or range(count)), "rules": list(shown.items())}


def _personalised(record: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, rule in record["rules"].items():
        if one := rule.get("personalised"):
            before, after = np.asarray(one["accuracy_before"]), np.asarray(one["accuracy"])
            gains = f"{int((after > before).sum())} of {len(after)}"
            rows.append([name, _percent(before.mean()), _percent(after.mean()), _percent(after.min()), gains])
    return rows


def _percent(share: Any) -> str:
    return f"{100 * float(share):.1f} %"
