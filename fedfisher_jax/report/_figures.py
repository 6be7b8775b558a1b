"""Figures of a run."""

import io
import os
from collections.abc import Mapping
from typing import Any

from .._files import write_atomically


def plot_accuracy(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Bars of test accuracy: local models, rules, references."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    locals_ = record["clients"]["accuracies"]
    names = [f"client {number}" for number in range(len(locals_))] if len(locals_) <= 10 else ["best local"]
    values = list(locals_) if len(locals_) <= 10 else [max(locals_)]
    colours = ["#BBBBBB"] * len(names)
    for name, rule in record["rules"].items():
        names, values, colours = [*names, name], [*values, rule["accuracy"]], [*colours, "#0072B2"]
    for name in ("ensemble", "ensemble_by_class", "pooled"):
        if record["references"].get(name):
            names, values = [*names, name.replace("_", " ")], [*values, record["references"][name]["accuracy"]]
            colours = [*colours, "#E69F00"]
    figure = Figure(figsize=(6.4, 0.6 + 0.32 * len(names)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bars = axes.barh(names, [100 * value for value in values], color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 105)
    axes.set_xlabel("test accuracy (%)")
    axes.spines[["top", "right"]].set_visible(False)
    settings = record["settings"]
    skew = (
        f", α = {settings['alpha']}"
        if settings["partition"] in ("dirichlet-client", "dirichlet-class", "quantity")
        else ""
    )
    axes.set_title(
        f"{settings['dataset']}, {settings['model']}, {settings['clients']} clients, {settings['partition']}{skew}",
        fontsize=9,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
