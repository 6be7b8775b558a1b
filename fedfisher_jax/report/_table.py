"""The table at the end of a run."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text


def result_table(record: Mapping[str, Any]) -> Table:
    """The table at the end of a run: rules, with what a client sends in a round, then what they are judged by."""
    table = Table(title=None, header_style="bold")
    table.add_column("test", overflow="fold")  # a long name goes on in the next line
    for name in ("accuracy", "loss", "Mbit up", "× FedAvg", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    rules, references = record["rules"], record["references"]
    base = record["fedavg_bits"]
    best = max((rule["accuracy"] for rule in rules.values()), default=None)
    for name, rule in rules.items():
        bits, mark = rule["bits_up"], "bold" if rule["accuracy"] == best else ""
        row = [f"{rule['accuracy']:.4f}", f"{rule['loss']:.4f}", f"{bits / 1e6:.2f}", f"{bits / base:.2f}"]
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
        if references.get(key):
            reference = references[key]
            table.add_row(label, f"{reference['accuracy']:.4f}", f"{reference['loss']:.4f}", "", "", "", style="dim")
    return table
