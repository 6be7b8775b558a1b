"""The figures of the report as SVG that stands in a page: vector, in the colours of the page's text, dark or light."""

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._colours import colours_of
from ._figures import accuracy_bars, curve, integer_rounds

INK = "#010203"  # stands for the colour of the page's text, and is no other's
WIDTH = 4.6  # inches: letters keep their size on a phone
MOST_VECTOR = 1500  # cells of a heat map beyond which it is pixels


def accuracies(record: Mapping[str, Any]) -> str:
    """Bars of local models, rules and references."""
    return _drawn(lambda figure: accuracy_bars(figure.subplots(), record), 0.8 + 0.25 * _bars(record))


def heat_map(record: Mapping[str, Any]) -> str:
    """Who has how many examples of which class."""
    counts = np.asarray(record["clients"]["label_counts"])  # [clients, classes]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        from matplotlib.colors import PowerNorm

        norm = PowerNorm(0.5, vmin=0, vmax=max(1, int(counts.max())))
        shown = np.ma.masked_equal(counts.T, 0)
        mesh = axes.pcolormesh(shown, cmap="viridis", norm=norm, rasterized=counts.size > MOST_VECTOR)
        axes.set(xlabel="client", ylabel="class")
        for axis, count in ((axes.xaxis, counts.shape[0]), (axes.yaxis, counts.shape[1])):
            step = -(-count // 12)
            axis.set_ticks(np.arange(0, count, step) + 0.5, labels=[str(n) for n in range(0, count, step)])
            axis.set_tick_params(length=0)
        axes.invert_yaxis()
        figure.colorbar(mesh, ax=axes, label="examples").outline.set_visible(False)

    return _drawn(draw, float(np.clip(0.9 + 0.2 * counts.shape[1], 2.2, 5)))


def over_rounds(record: Mapping[str, Any], *, megabytes: bool = False) -> str:
    """Accuracy of every rule over rounds, or over what all clients have sent by then."""

    def draw(figure: Any) -> None:
        axes, own = figure.subplots(), colours_of(record["rules"])
        for name, rule in record["rules"].items():
            lines = [line for line in rule["rounds"] if line.get("accuracy") is not None]
            x = np.asarray([line["round"] for line in lines])
            if megabytes:
                warm, first = record["settings"].get("warm_up_rounds", 0), rule.get("bits_up_warm_up", 0)
                sent = np.where(x <= warm, x * first, warm * first + (x - warm) * rule["bits_up"])
                x = sent * record["sampled"] / 8e6
            curve(axes, name, own[name], np.asarray([[line["accuracy"] for line in lines]]), x)
        axes.set(ylabel="test accuracy (%)", xlabel="megabytes sent by all clients")
        if not megabytes:
            integer_rounds(axes)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)

    return _drawn(draw, 3.0 + 0.1 * len(record["rules"]))


def _bars(record: Mapping[str, Any]) -> int:
    shown = len(record["clients"]["accuracies"])
    return (shown if shown <= 10 else 1) + len(record["rules"]) + sum(map(bool, record["references"].values()))


def _drawn(draw: Any, height: float) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    inked = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    style: Any = {**inked, "svg.hashsalt": "fedfisher", "font.size": 8, "legend.fontsize": 8}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_visible(False)
            axes.spines[["top", "right"]].set_visible(False)
        figure.patch.set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL).replace(INK, "currentColor").strip()
