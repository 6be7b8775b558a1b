"""The HTML page of one or several runs: one file that needs nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import _svg as svg
from ._measure import digits, measure_of_record, megabits
from ._summary import REFERENCES, best_of, said_of, summarise
from ._words import words_on_diagnostics

MOST_CLASSES = 20  # of a table
UNTOLD = ("out", "overwrite", "seed", "data_seed", "data_dir", "strategy", "save", "distributed", "track")


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
    differ = [
        key for key in dict.fromkeys(key for one in told for key in one) if len({str(one.get(key)) for one in told}) > 1
    ]
    groups: dict[str, str] = {}  # what differs → a column's name: that in few words, or else the first run's
    cells = []
    for one, (name, record) in zip(told, runs, strict=True):
        words = ", ".join(f"{key} {one.get(key)}" for key in differ) or "all"
        cells.append({**record, "varied": groups.setdefault(words, words if len(differ) < 3 else name)})
    found = summarise(cells, None)
    text = lambda value: "–" if value is None else value.text(found.measure.form)  # noqa: E731
    best = best_of(found)
    rules = {
        name: [(text(v), name in names) for v, names in zip(row, best, strict=True)]
        for name, row in found.rules.items()
    }
    others = {said_of(name): list(map(text, row)) for name, row in found.references.items()}
    return {
        "measure": found.measure.said,
        "columns": found.columns,
        "rules": list(rules.items()),
        "others": list(others.items()),
    }


def _run(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    words = [word for one, rule in record["rules"].items() for word in words_on_diagnostics(one, rule)]
    versions = [(f"version of {key}", value) for key, value in record["versions"].items()]
    return {
        "name": name,
        "sentence": _sentence(record),
        "complete": record.get("complete", True),
        "measure": measure_of_record(record).said,
        "rows": _rows(record),
        "figures": _figures(record),
        "tables": [table for table in (_at_clients(record), _by_class(record), _personalised(record)) if table],
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
    measure, rows = measure_of_record(record), []
    best = measure.best(rule.get(measure.key) for rule in record["rules"].values())
    for name, rule in record["rules"].items():
        bits = megabits(rule["bits_up"]), f"{rule['bits_up'] / record['fedavg_bits']:.2f}"
        cells = [name, measure.text(rule.get(measure.key)), digits(rule["loss"]), *bits]
        rows.append({"style": "best" if best is not None and rule.get(measure.key) == best else "", "cells": cells})
    for name in REFERENCES:
        if one := record["references"].get(name):
            cells = [said_of(name), measure.text(one.get(measure.key)), digits(one["loss"]), "", ""]
            rows.append({"style": "reference", "cells": cells})
    return rows


def _figures(record: Mapping[str, Any]) -> list[dict[str, str]]:
    rules, said = record["rules"], measure_of_record(record).said
    kind = (record.get("strata") or {"what": "class"})["what"]
    found = [(f"Who has how many examples of which {kind}.", svg.heat_map(record))]
    if rules:
        found.append((f"Local models, rules and references: {said}.", svg.accuracies(record)))
    if rules and all(rule.get("rounds") for rule in rules.values()):
        found.append((f"Over rounds: {said}.", svg.over_rounds(record)))
        found.append((f"Over what all clients have sent: {said}.", svg.over_rounds(record, megabytes=True)))
    if any(rule.get("clients") for rule in rules.values()):
        found.append(("How well models predict each client's own training examples.", svg.at_clients(record)))
    if any(rule.get("confusion") for rule in rules.values()):
        found.append(("What rules say of the test examples of each class.", svg.confusions(record)))
    return [{"caption": caption, "svg": drawn} for caption, drawn in found]


def _at_clients(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """How well clients are served before and after the merge."""
    rules = {name: rule["clients"] for name, rule in record["rules"].items() if rule.get("clients")}
    if not rules or not all(one.get("accuracy") for one in rules.values()):
        return None
    own = record["clients"].get("own")
    rows = []
    if own:
        values = np.asarray(own["after"]["accuracy"], float)
        rows.append(["own model", _percent(values.mean()), _percent(values.min()), ""])
    for name, one in rules.items():
        values = np.asarray(one["accuracy"], float)
        gains = [f"{(values > np.asarray(own['after']['accuracy'], float)).sum()} of {len(values)}"] if own else []
        rows.append([name, _percent(values.mean()), _percent(values.min()), *gains])
    return {
        "title": "Accuracy on each client's own training examples" + ", before and after the merge" * bool(own),
        "columns": ["model", "mean of clients", "worst client", *(["clients that gain"] if own else [])],
        "rows": rows,
    }


def _by_class(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Accuracy on each class's test examples, where there are few enough classes to show."""
    rows = {name: rule["accuracy_by_class"] for name, rule in record["rules"].items() if "accuracy_by_class" in rule}
    count = max((len(row) for row in rows.values()), default=0)
    if not 0 < count <= MOST_CLASSES:
        return None
    shown = [[name, *("–" if share is None else f"{100 * share:.0f}" for share in row)] for name, row in rows.items()]
    classes = map(str, record.get("classes") or range(count))
    title = "Accuracy on the test examples of each class, in %"
    return {"title": title, "columns": ["rule", *classes], "rows": shown}


def _personalised(record: Mapping[str, Any]) -> dict[str, Any] | None:
    rows, few = [], f", {record['settings'].get('shots')} examples"
    for name, rule in record["rules"].items():
        for kind, said in (("personalised", ""), ("personalised_few", few)):
            if one := rule.get(kind):
                classes = any(share is not None for share in one["accuracy"])
                key, form = ("accuracy", _percent) if classes else ("loss", _nats)
                before, after = (np.asarray(one[name], float) for name in (f"{key}_before", key))  # None is NaN
                better, worst = (after > before, after.min()) if key == "accuracy" else (after < before, after.max())
                gains = f"{int(better.sum())} of {len(after)}"
                rows.append([f"{name}, {key}{said}", form(before.mean()), form(after.mean()), form(worst), gains])
    if not rows:
        return None
    return {
        "title": "Each client before and after fine-tuning, on its own held-out examples",
        "columns": ["rule", "mean before", "mean after", "worst after", "clients that gain"],
        "rows": rows,
    }


def _percent(share: Any) -> str:
    return f"{100 * float(share):.1f} %" if np.isfinite(share) else "–"


def _nats(loss: Any) -> str:
    return f"{loss:.4g}" if np.isfinite(loss) else "–"
