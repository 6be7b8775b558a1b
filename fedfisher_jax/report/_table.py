"""The tables at the end of a run and of a sweep, in which nothing is cut, however narrow a terminal is."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ._measure import digits, measure_of_record, megabits
from ._summary import REFERENCES, Summary, best_of, said_of

BORDER, PADDING = 1, 3  # characters of a table beside its columns, and of each column beside its text


def result_table(record: Mapping[str, Any]) -> Table:
    """The table at the end of a run: rules, with what a client sends in a round, then what they are judged by."""
    table, measure = Table(title=None, header_style="bold"), measure_of_record(record)
    table.add_column("test", overflow="fold")  # a long name goes on in the next line
    for name in (measure.key.replace("rmse", "RMSE"), "loss", "Mbit up", "× FedAvg", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    rules, references = record["rules"], record["references"]
    base = record["fedavg_bits"]
    best = measure.best(rule.get(measure.key) for rule in rules.values())
    for name, rule in rules.items():
        bits, mark = rule["bits_up"], "bold" if best is not None and rule.get(measure.key) == best else ""
        row = [digits(rule.get(measure.key)), digits(rule["loss"]), megabits(bits), f"{bits / base:.2f}"]
        table.add_row(Text(name), *row, f"{rule['seconds']:.1f}" if "seconds" in rule else "", style=mark)
    table.add_section()
    for key in REFERENCES:
        if one := references.get(key):
            table.add_row(said_of(key), digits(one.get(measure.key)), digits(one["loss"]), "", "", "", style="dim")
    return table


def summary_table(summary: Summary, caption: str, width: int) -> Group:
    """The table at the end of a sweep: rules, with the best in bold, references, and differences.

    It is as many tables one below the other as columns need, so that no name and no number is broken.

    Args:
        summary: the rows.
        caption: what stands above.
        width: characters in a line.
    """
    best, form = best_of(summary), summary.measure.form
    text = lambda value, style="": Text("–" if value is None else value.text(form), style)  # noqa: E731
    rules = {
        name: [text(value, "bold" if name in names else "") for value, names in zip(row, best, strict=True)]
        for name, row in summary.rules.items()
    }
    references = {said_of(name): [*map(text, row)] for name, row in summary.references.items()}
    sections = [rules, references, {name: [*map(text, row)] for name, row in summary.differences.items()}]
    cells = [row for rows in sections for row in rows.values()]
    wide = [
        min(max(_longest_word(column), *(row[place].cell_len for row in cells)), width // 2)
        for place, column in enumerate(summary.columns)
    ]
    names = [name for rows in sections for name in rows]
    first = max(map(cell_len, names))
    if 2 * first > width:  # "rule − other rule" goes on in the next line, and a name only where nothing else helps
        first = min(max(map(_longest_word, names)), width - BORDER - 2 * PADDING - max(wide))
    tables = []
    for places in _fitting(wide, width - BORDER - PADDING - first):
        table = Table(header_style="bold")
        table.add_column("", width=first, overflow="fold")
        for place in places:
            table.add_column(Text(summary.columns[place]), justify="right", width=wide[place], overflow="fold")
        for rows in sections:
            for name, row in rows.items():
                table.add_row(Text(name), *(row[place] for place in places))
            table.add_section()
        tables.append(table)
    return Group(Text(caption, style="italic"), *tables)


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _fitting(wide: Sequence[int], room: int) -> list[list[int]]:
    """Deal places of columns out to tables, in order, as many to each as its room takes, and at least one."""
    found: list[list[int]] = []
    left = 0
    for place, width in enumerate(wide):
        if not found or left < width + PADDING:
            found.append([])
            left = room
        found[-1].append(place)
        left -= width + PADDING
    return found
