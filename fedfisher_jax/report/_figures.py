"""Figures of a run."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .._files import write_figure
from ._colours import LOCAL, REFERENCE, colours_of
from ._measure import ACCURACY, measure_of_record
from ._summary import REFERENCES, Spread, Summary, said_of


def plot_accuracy(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Bars of test accuracy: local models, rules, references; a path without suffix gets .png and .pdf."""
    from matplotlib.figure import Figure

    figure = Figure(dpi=130, layout="constrained")
    axes = figure.subplots()
    figure.set_size_inches(6.4, 0.6 + 0.32 * accuracy_bars(axes, record))
    axes.spines[["top", "right"]].set_visible(False)
    settings = record["settings"]
    uneven = settings["partition"] in ("dirichlet-client", "dirichlet-class", "quantity")
    skew = f", α = {settings['alpha']}" if uneven else ""
    axes.set_title(
        f"{settings['dataset']}, {settings['model']}, {settings['clients']} clients, {settings['partition']}{skew}",
        fontsize=9,
    )
    write_figure(figure, path)


def accuracy_bars(axes: Any, record: Mapping[str, Any]) -> int:
    """Draw a bar for each local model, of which more than ten are the best alone, rule and reference; how many."""
    measure = measure_of_record(record)
    locals_ = record["clients"].get(measure.plural, [])
    names, values = [f"client {number}" for number in range(len(locals_))], list(locals_)
    if len(locals_) > 10:
        names, values = ["best local"], [measure.best(locals_)]
    colours = [LOCAL] * len(names)
    own = colours_of(record["rules"])
    for name, rule in record["rules"].items():
        names, values, colours = [*names, name], [*values, rule.get(measure.key)], [*colours, own[name]]
    for name in REFERENCES[1:]:  # the best local model is among the clients
        if record["references"].get(name):
            names, values = [*names, said_of(name)], [*values, record["references"][name].get(measure.key)]
            colours = [*colours, REFERENCE]
    lengths = measure.factor * np.asarray(values, float)  # NaN, where there is no bar, of None
    bars = axes.barh(range(len(names)), lengths, color=colours)
    name_rows(axes, names)
    axes.bar_label(bars, labels=[measure.text(value) for value in values], padding=3, fontsize=8)
    axes.invert_yaxis()
    if measure is ACCURACY:
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
    else:
        axes.set_xlim(0, 1.2 * max(lengths[np.isfinite(lengths)], default=1.0))
    axes.set_xlabel(measure.said)
    return len(names)


def broken(name: str, most: int = 36) -> str:
    """A rule's name in lines of at most so many characters, where it has a + or commas to break it at."""
    lines = [""]
    for part in re.split(r"(?=\+)", name):
        for piece in [part] if len(part) <= most else re.split(r"(?<=,)", part):
            if lines[-1] and len(lines[-1]) + len(piece) > most:
                lines.append("")
            lines[-1] += piece
    return "\n".join(lines)


def name_rows(axes: Any, names: Sequence[str]) -> None:
    """Name the rows of bars, in smaller letters where a name needs several lines."""
    axes.set_yticks(range(len(names)), [broken(name) for name in names])
    for label in axes.get_yticklabels():
        if lines := label.get_text().count("\n"):
            label.set(fontsize=label.get_fontsize() * (0.85 if lines == 1 else 0.65), linespacing=1.1)


def legend_below(figure: Any, names: Iterable[str], most: int = 4) -> None:
    """Put a legend below all axes, in as many columns, up to `most`, as names have room for."""
    longest = 0.5 + 0.065 * max(map(len, names), default=0)  # inches
    columns = int(np.clip(figure.get_figwidth() / longest, 1, most))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def plot_summary(summary: Summary, cells: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """The scores of a sweep: over rounds where there are some and one column, else a group of bars a column.

    A warm-up, which all rules share, is shown by its last round alone, and the axis then has room for the scores of the
    second half of the rounds after it: one first step that fails would squeeze all curves into a line. A path without
    suffix gets .png and .pdf.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.4, 2.2 + 1.3 * len(summary.columns)), 4.0), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    measure, own = summary.measure, colours_of(summary.rules)
    axes.set_ylabel(measure.said)
    if len(summary.columns) == 1 and all("rounds" in rule for cell in cells for rule in cell["rules"].values()):
        shared = max(min(cell["settings"].get("warm_up_rounds", 0) for cell in cells) - 1, 0)
        later = []
        for name in summary.rules:
            told = [[line.get(measure.key) for line in cell["rules"][name]["rounds"][shared:]] for cell in cells]
            values = measure.factor * np.asarray(told, float)
            curve(axes, name, own[name], values, shared + 1 + np.arange(values.shape[1]))
            later.append(values[:, values.shape[1] // 2 :])
        found = np.concatenate(later, axis=None)
        found = found[np.isfinite(found)]
        if shared and found.size and (room := 0.1 * np.ptp(found)):
            axes.set_ylim(found.min() - room, found.max() + room)
        integer_rounds(axes)
    else:
        width, places = 0.8 / len(summary.rules), np.arange(len(summary.columns))
        for number, (name, row) in enumerate(summary.rules.items()):
            where = places - 0.4 + width * (number + 0.5)
            means, errors = ([np.nan if v is None else part(v) for v in row] for part in (_mean, _std))
            axes.bar(where, means, 0.92 * width, yerr=errors, capsize=2, color=own[name], label=name)
        labels = [column.replace(", ", "\n") for column in summary.columns]
        axes.set_xticks(places, labels if len(labels) > 1 else [""])
        axes.set_ylim(bottom=0)
    legend_below(figure, summary.rules)
    write_figure(figure, path)


def curve(axes: Any, name: str, colour: str, values: np.ndarray, x: np.ndarray | None = None) -> None:
    """A rule's scores [runs, rounds] as their mean and a band of a standard deviation, over rounds or over x."""
    x = np.arange(1, values.shape[1] + 1) if x is None else x
    mean = values.mean(0)
    axes.plot(x, mean, color=colour, label=name, marker="o", markersize=3)
    if len(values) > 1:
        std = values.std(0, ddof=1)
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)


def integer_rounds(axes: Any) -> None:
    """Rounds on the axis below, in whole numbers."""
    axes.set_xlabel("rounds")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _mean(value: Spread) -> float:
    return value.mean


def _std(value: Spread) -> float:
    return 0.0 if value.std is None else value.std
