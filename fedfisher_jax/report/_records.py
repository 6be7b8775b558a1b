"""A run's record as rows of numbers: what trackers are told, and what stands in records.jsonl and records.csv."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TIMES = ("seconds", "seconds_measure", "seconds_merge")  # or the files would not be the same again


def numbers_of(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """List the single numbers of a record, those of records within it as "name/number"; all else is left out."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= numbers_of(value, f"{prefix}{name}/")
        elif not isinstance(value, bool | str) and value is not None and getattr(value, "ndim", 0) == 0:
            if not isinstance(value, list | tuple):
                found[prefix + name] = float(value)
    return found


def rows_of(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the rows of a run's record: local models, references, then each rule's rounds and its last model."""
    clients = record["clients"]
    for key, name in (("accuracies", "accuracy"), ("rmses", "rmse"), ("losses", "loss")):
        for number, value in enumerate(clients.get(key, ())):
            yield {"kind": "client", "name": f"client {number}", name: value}
    for name, value in record["references"].items():
        if value:
            yield {"kind": "reference", "name": name, **numbers_of(value)}
    for name, value in record["rules"].items():
        for line in value.get("rounds", ()):
            yield {"kind": "round", "name": name, **line_of(line)}
        yield {"kind": "rule", "name": name, **rule_of(value)}


def line_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Give the numbers of a round's line, its round as a whole one."""
    return {"round": int(line["round"]), **{k: v for k, v in numbers_of(line).items() if k != "round"}}


def rule_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """Give the numbers of a rule's result; times are left out."""
    return {name: number for name, number in numbers_of(value).items() if name not in TIMES}


def as_json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as JSON, one a line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as .csv, a column for every name that occurs."""
    out, names = io.StringIO(), list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
