"""What several runs say together: mean and spread by rule and setting, and paired differences against one rule."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

REFERENCES = ("best_local", "ensemble", "ensemble_weighted", "ensemble_by_class", "pooled")


class Spread(NamedTuple):
    """Mean and sample standard deviation (n − 1; None of one value) of n accuracies, or of differences, in percent."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        """The mean, and the spread where there is one."""
        return f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")


class Summary(NamedTuple):
    """Rows of spreads, one for each column.

    Attributes:
        columns: what the settings that vary are, a name for each column.
        rules: by name; None where a column has no such result.
        differences: "rule − against", paired by seed.
        references: by name.
    """

    columns: list[str]
    rules: dict[str, list[Spread | None]]
    differences: dict[str, list[Spread | None]]
    references: dict[str, list[Spread | None]]


def summarise(cells: Sequence[Mapping[str, Any]], against: str | None) -> Summary:
    """Summarise cells {"varied": name of the column, "seed", "rules", "references"}, whose order is that of columns.

    Args:
        cells: the runs.
        against: the rule whose accuracies are taken from those of all others on the same seeds; None takes none.
    """
    columns = list(dict.fromkeys(cell["varied"] for cell in cells))
    names = list(dict.fromkeys(name for cell in cells for name in cell["rules"]))

    def row(kind: str, name: str, minus: str | None = None) -> list[Spread | None]:
        found: list[Spread | None] = []
        for column in columns:
            values = [
                _accuracy(cell, kind, name) - (0 if minus is None else _accuracy(cell, kind, minus))
                for cell in cells
                if cell["varied"] == column
            ]
            found.append(spread(values))
        return found

    references = {name: row("references", name) for name in REFERENCES}
    return Summary(
        columns,
        {name: row("rules", name) for name in names},
        {f"{name} − {against}": row("rules", name, against) for name in names if against and name != against},
        {name: values for name, values in references.items() if any(values)},
    )


def spread(values: Sequence[float]) -> Spread | None:
    """Spread of accuracies from 0 to 1; None where one is missing (NaN)."""
    found = 100 * np.asarray(values, float)
    if not len(found) or not np.isfinite(found).all():
        return None
    return Spread(float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else None, len(found))


def markdown(summary: Summary, caption: str) -> str:
    """A table in Markdown, the best rule of a column in bold, under a caption."""
    rows = [["", *summary.columns], ["---"] + ["---:"] * len(summary.columns)]
    best = best_of(summary)
    for name, values in summary.rules.items():
        rows.append([name, *(f"**{v}**" if v and name in b else _text(v) for v, b in zip(values, best, strict=True))])
    for name, values in (_worded(summary.references) | summary.differences).items():
        rows.append([name, *map(_text, values)])
    return f"{caption}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def latex(summary: Summary, caption: str) -> str:
    """The same for LaTeX with booktabs: a tabular with the caption as a comment."""
    best = best_of(summary)

    def cell(value: Spread | None, bold: bool = False) -> str:
        text = "--" if value is None else str(value).replace("±", r"\pm")
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


def comma_separated(summary: Summary) -> str:
    """The same as numbers: a line for each row and column, with mean, spread and number of seeds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["what", "name", "settings", "mean", "std", "n"])
    parts = ("rule", summary.rules), ("reference", summary.references), ("difference", summary.differences)
    for what, rows in parts:
        for name, values in rows.items():
            for column, value in zip(summary.columns, values, strict=True):
                writer.writerow([what, name, column, *(("", "", 0) if value is None else value)])
    return out.getvalue()


def _accuracy(cell: Mapping[str, Any], kind: str, name: str) -> float:
    found = (cell[kind].get(name) or {}).get("accuracy")
    return float("nan") if found is None else found


def best_of(summary: Summary) -> list[set[str]]:
    """The names of each column's best rules, as they are printed: who is equal to the last digit is as good."""
    found = []
    for place in range(len(summary.columns)):
        means = {name: round(one.mean, 1) for name, row in summary.rules.items() if (one := row[place])}
        found.append({name for name, mean in means.items() if mean == max(means.values())})
    return found


def _worded(references: dict[str, list[Spread | None]]) -> dict[str, list[Spread | None]]:
    return {name.replace("_", " "): values for name, values in references.items()}


def _text(value: Spread | None) -> str:
    return "–" if value is None else str(value)


def _escaped(text: str) -> str:
    for plain, written in (("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#"), ("α", r"$\alpha$"), ("−", "$-$")):
        text = text.replace(plain, written)
    return text
