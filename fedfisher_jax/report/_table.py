"""The tables at the end of a run and of a sweep, in which nothing is cut, however narrow a terminal is."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from ._measure import measure_of_record, megabits
from ._summary import Summary, best_of


def result_table(record: Mapping[str, Any]) -> Table:
    """The table at the end of a run: rules, with what a client sends in a round, then what they are judged by."""
    table, measure = Table(title=None, header_style="bold"), measure_of_record(record)
    table.add_column("test", overflow="fold")  # a long name goes on in the next line
    for name in (measure.key.replace("rmse", "RMSE"), "loss", "Mbit up", "× FedAvg", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    rules, references = record["rules"], record["references"]
    base = record["fedavg_bits"]
    best = measure.best([rule[measure.key] for rule in rules.values()]) if rules else None
    for name, rule in rules.items():
        bits, mark = rule["bits_up"], "bold" if rule[measure.key] == best else ""
        row = [f"{rule[measure.key]:.4f}", f"{rule['loss']:.4f}", megabits(bits), f"{bits / base:.2f}"]
        table.add_row(Text(name), *row, f"{rule['seconds']:.1f}" if "seconds" in rule else "", style=mark)
    table.add_section()
    labels = {
        "best_local": "best local",
        "ensemble": "ensemble",
        "ensemble_weighted": "ensemble by size",
        "ensemble_by_class": "ensemble by class",
        "pooled": "pooled",
    }
    for key, label in labels.items():
        if one := references.get(key):
            table.add_row(label, f"{one[measure.key]:.4f}", f"{one['loss']:.4f}", "", "", "", style="dim")
    return table


def summary_table(summary: Summary, caption: str) -> Table:
    """The table at the end of a sweep: rules, with the best in bold, references, and differences."""
    table = Table(title=caption, title_justify="left", header_style="bold")
    table.add_column("", overflow="fold")
    for column in summary.columns:
        table.add_column(Text(column), justify="right", overflow="fold")
    best, form = best_of(summary), summary.measure.form
    text = lambda value: "–" if value is None else value.text(form)  # noqa: E731
    for name, row in summary.rules.items():
        cells = (Text(text(v), style="bold" if name in names else "") for v, names in zip(row, best, strict=True))
        table.add_row(Text(name), *cells)
    for rows in (summary.references, summary.differences):
        table.add_section()
        for name, row in rows.items():
            table.add_row(Text(name.replace("_", " ") if rows is summary.references else name), *map(text, row))
    return table
