"""The table at the end of a run."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from ._measure import measure_of_record


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
        row = [f"{rule[measure.key]:.4f}", f"{rule['loss']:.4f}", f"{bits / 1e6:.2f}", f"{bits / base:.2f}"]
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
