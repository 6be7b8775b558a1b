"""What several runs say together: mean and spread by rule and setting, and paired differences against one rule."""

import csv
import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ._measure import ACCURACY, Measure, measure_of

REFERENCES = ("best_local", "ensemble", "ensemble_by_size", "ensemble_by_class", "pooled")


class Spread(NamedTuple):
    """Mean and sample standard deviation (n − 1; None of one value) of n scores, or differences, as they are shown."""

    mean: float
    std: float | None
    n: int

    def text(self, form: str = ".1f") -> str:
        """The mean, and the spread where there is one."""
        return format(self.mean, form) + ("" if self.std is None else f" ± {format(self.std, form)}")


class Summary(NamedTuple):
    """Rows of spreads, one for each column.

    Attributes:
        columns: what the settings that vary are, a name for each column.
        rules: by name; None where a column has no such result.
        differences: "rule − against", paired by seed.
        references: by name.
        measure: what the numbers are: accuracies in percent where there are such.
    """

    columns: list[str]
    rules: dict[str, list[Spread | None]]
    differences: dict[str, list[Spread | None]]
    references: dict[str, list[Spread | None]]
    measure: Measure = ACCURACY


def summarise(cells: Sequence[Mapping[str, Any]], against: str | None, measure: Measure | None = None) -> Summary:
    """Summarise cells {"varied": name of the column, "seed", "rules", "references"}, whose order is that of columns.

    Args:
        cells: the runs.
        against: the rule whose scores are taken from those of all others on the same seeds; None takes none.
        measure: the score; by default accuracy, or what there is in its place.
    """
    columns = list(dict.fromkeys(cell["varied"] for cell in cells))
    names = list(dict.fromkeys(name for cell in cells for name in cell["rules"]))

    results = (result for cell in cells for kind in ("rules", "references") for result in cell[kind].values())
    measure = measure_of(results) if measure is None else measure

    def row(kind: str, name: str, minus: str | None = None) -> list[Spread | None]:
        found: list[Spread | None] = []
        for column in columns:
            values = [
                _score(measure, cell, kind, name) - (0 if minus is None else _score(measure, cell, kind, minus))
                for cell in cells
                if cell["varied"] == column
            ]
            found.append(spread(values, measure.factor))
        return found

    references = {name: row("references", name) for name in REFERENCES}
    return Summary(
        columns,
        {name: row("rules", name) for name in names},
        {f"{name} − {against}": row("rules", name, against) for name in names if against and name != against},
        {name: values for name, values in references.items() if any(values)},
        measure,
    )


def by_round(cells: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Make cells of runs over rounds, where all have one column, into a column for rounds 1, 2, 4, … and the last.

    Other cells are returned as they are.
    """
    curves = [rule.get("rounds") or [] for cell in cells for rule in cell["rules"].values()]
    (count, *others) = {len(curve) for curve in curves} or {0}
    if others or count < 2 or len({cell["varied"] for cell in cells}) > 1:
        return cells
    shown = [2**power for power in range(count.bit_length()) if 2**power < count]

    def after(cell: Mapping[str, Any], number: int) -> Mapping[str, Any]:
        lines = {name: rule["rounds"][number - 1] for name, rule in cell["rules"].items()}
        rules = {name: {**line, "loss": line.get("test_loss")} for name, line in lines.items()}
        return {**cell, "varied": f"round {next(iter(lines.values()))['round']}", "rules": rules, "references": {}}

    last = [{**after(cell, count), "rules": cell["rules"], "references": cell["references"]} for cell in cells]
    return [after(cell, number) for number in shown for cell in cells] + last


def spread(values: Sequence[float], factor: float = 100.0) -> Spread | None:
    """Spread of scores times a factor; None where one is missing (NaN)."""
    found = factor * np.asarray(values, float)
    if not len(found) or not np.isfinite(found).all():
        return None
    return Spread(float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else None, len(found))


def said_of(reference: str) -> str:
    """A reference's name for people."""
    return reference.replace("_", " ")


def markdown(summary: Summary, caption: str) -> str:
    """A table in Markdown, the best rule of a column in bold, under a caption."""
    rows = [["", *summary.columns], ["---"] + ["---:"] * len(summary.columns)]
    best, text = best_of(summary), partial(_text, form=summary.measure.form)
    for name, values in summary.rules.items():
        cells = zip(values, best, strict=True)
        rows.append([name, *(f"**{text(v)}**" if v and name in b else text(v) for v, b in cells)])
    for name, values in (_worded(summary.references) | summary.differences).items():
        rows.append([name, *map(text, values)])
    return f"{caption}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def latex(summary: Summary, caption: str) -> str:
    """The same for LaTeX with booktabs: a tabular with the caption as a comment."""
    best = best_of(summary)

    def cell(value: Spread | None, bold: bool = False) -> str:
        text = "--" if value is None else value.text(summary.measure.form).replace("±", r"\pm")
        return "--" if value is None else rf"$\mathbf{{{text}}}$" if bold else f"${text}$"

    lines = [f"% {caption}", rf"\begin{{tabular}}{{l{'r' * len(summary.columns)}}}", r"\toprule"]
    lines += [" & ".join(["", *map(_escaped, summary.columns)]) + r" \\", r"\midrule"]
    for name, values in summary.rules.items():
        cells = [cell(value, name in names) for value, names in zip(values, best, strict=True)]
        lines.append(" & ".join([_escaped(name), *cells]) + r" \\")
    for rows in (_worded(summary.references), summary.differences):
        lines += [r"\midrule"] if rows else []
        for name, values in rows.items():
            lines.append(" & ".join([_escaped(name), *map(cell, values)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def comma_separated(summary: Summary, further: Sequence[Summary] = ()) -> str:
    """The same as numbers: a line for each row and column, with mean, spread and number of seeds.

    Lines of further summaries have the name of their measure for what they are.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["what", "name", "settings", "mean", "std", "n"])
    kinds = (("rule", summary.rules), ("reference", summary.references), ("difference", summary.differences))
    parts = [(what, summary.columns, rows) for what, rows in kinds]
    for one in further:
        key = one.measure.key
        parts += [(key, one.columns, one.rules), (f"{key} difference", one.columns, one.differences)]
    for what, columns, rows in parts:
        for name, values in rows.items():
            for column, value in zip(columns, values, strict=True):
                writer.writerow([what, name, column, *(("", "", 0) if value is None else value)])
    return out.getvalue()


def _score(measure: Measure, cell: Mapping[str, Any], kind: str, name: str) -> float:
    found = (cell[kind].get(name) or {}).get(measure.key)
    return float("nan") if found is None else found


def best_of(summary: Summary) -> list[set[str]]:
    """The names of each column's best rules, as they are printed: who is equal to the last digit is as good."""
    found = []
    for place in range(len(summary.columns)):
        shown = {
            name: format(one.mean, summary.measure.form) for name, row in summary.rules.items() if (one := row[place])
        }
        best = summary.measure.best(map(float, shown.values()))
        found.append({name for name, mean in shown.items() if float(mean) == best})
    return found


def _worded(references: dict[str, list[Spread | None]]) -> dict[str, list[Spread | None]]:
    return {said_of(name): values for name, values in references.items()}


def _text(value: Spread | None, form: str) -> str:
    return "–" if value is None else value.text(form)


def _escaped(text: str) -> str:
    for plain, written in (("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#"), ("α", r"$\alpha$"), ("−", "$-$")):
        text = text.replace(plain, written)
    return text
