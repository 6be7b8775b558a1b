"""The figures of the report as SVG that stands in a page: vector, in the colours of the page's text, dark or light."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..data._plot import short
from ._colours import LOCAL, colours_of
from ._figures import accuracy_bars, curve, integer_rounds, legend_below
from ._measure import measure_of_record

INK = "#010203"  # stands for the colour of the page's text, and is no other's
WIDTH = 4.6  # inches: letters keep their size on a phone
MOST_VECTOR = 1500  # cells of a heat map beyond which it is pixels


def accuracies(record: Mapping[str, Any]) -> str:
    """Bars of local models, rules and references."""
    return _drawn(lambda figure: accuracy_bars(figure.subplots(), record), 0.8 + 0.25 * _bars(record))


def heat_map(record: Mapping[str, Any]) -> str:
    """Who has how many examples of which class, or of which kind where targets are no classes."""
    counts = np.asarray(record["clients"]["label_counts"])  # [clients, classes]
    strata = record.get("strata") or {"what": "class", "names": record.get("classes")}
    names = [str(n) for n in strata["names"] or range(counts.shape[1])]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        from matplotlib.colors import PowerNorm

        norm = PowerNorm(0.5, vmin=0, vmax=max(1, int(counts.max())))
        shown = np.ma.masked_equal(counts.T, 0)
        mesh = axes.pcolormesh(shown, cmap="viridis", norm=norm, rasterized=counts.size > MOST_VECTOR)
        axes.set(xlabel="client", ylabel=strata["what"])
        _named_cells(axes.xaxis, [str(n) for n in range(counts.shape[0])])
        _named_cells(axes.yaxis, names)
        axes.invert_yaxis()
        figure.colorbar(mesh, ax=axes, label="examples").outline.set_visible(False)

    return _drawn(draw, float(np.clip(0.9 + 0.2 * counts.shape[1], 2.2, 5)))


def _named_cells(axis: Any, names: Sequence[str]) -> None:
    """Name the cells of a grid, or every so many where there are more than twelve; long names are cut."""
    step = -(-len(names) // 12)
    axis.set_ticks(np.arange(0, len(names), step) + 0.5, labels=[short(name) for name in names[::step]])
    axis.set_tick_params(length=0)


def over_rounds(record: Mapping[str, Any], *, megabytes: bool = False) -> str:
    """The score of every rule over rounds, or over what all clients have sent by then."""
    measure = measure_of_record(record)

    def draw(figure: Any) -> None:
        axes, own = figure.subplots(), colours_of(record["rules"])
        for name, rule in record["rules"].items():
            lines = [line for line in rule["rounds"] if line.get(measure.key) is not None]
            x = np.asarray([line["round"] for line in lines])
            if megabytes:
                warm, first = record["settings"].get("warm_up_rounds", 0), rule.get("bits_up_warm_up", 0)
                sent = np.where(x <= warm, x * first, warm * first + (x - warm) * rule["bits_up"])
                x = sent * record["sampled"] / 8e6
            curve(axes, name, own[name], measure.factor * np.asarray([[line[measure.key] for line in lines]], float), x)
        axes.set(ylabel=measure.said, xlabel="megabytes sent by all clients")
        if not megabytes:
            integer_rounds(axes)
        legend_below(figure, record["rules"], 2)

    return _drawn(draw, 3.0 + 0.1 * len(record["rules"]))


def at_clients(record: Mapping[str, Any]) -> str:
    """How well each client's own model, and every rule's, predict the client's own examples: lines of marks."""
    clients, rules = record["clients"], _judged_at_clients(record)
    key = "accuracy" if all(one["clients"].get("accuracy") for one in rules.values()) else "loss"

    def draw(figure: Any) -> None:
        axes, own = figure.subplots(), colours_of(record["rules"])
        factor, x = (100 if key == "accuracy" else 1), np.arange(len(clients["sizes"]))
        size = float(np.clip(300 / max(len(x), 1), 6, 30))
        if alone := clients.get("own"):
            axes.scatter(
                x,
                factor * np.asarray(alone["after"][key], float),
                s=size,
                c=LOCAL,
                marker="_",
                label="own model",
                linewidths=2,
            )
        for number, (name, rule) in enumerate(rules.items(), start=1):  # side by side
            aside = 0.6 * (number / (len(rules) + 1) - 0.5)
            axes.scatter(x + aside, factor * np.asarray(rule["clients"][key], float), s=size, c=own[name], label=name)
        axes.set(xlabel="client", ylabel="accuracy (%)" if key == "accuracy" else "loss (nats)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        legend_below(figure, ["own model", *rules], 2)

    return _drawn(draw, 3.0 + 0.1 * len(rules))


def confusions(record: Mapping[str, Any]) -> str:
    """What each rule's model says of the test examples of each class, in shares of them."""
    shown = {name: np.asarray(rule["confusion"]) for name, rule in record["rules"].items() if rule.get("confusion")}
    count = len(next(iter(shown.values())))
    names = [str(name) for name in record.get("classes") or range(count)]

    def draw(figure: Any) -> None:
        places = figure.subplots(-(-len(shown) // 2), 2, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (name, table) in zip(places, shown.items(), strict=False):
            shares = np.ma.masked_equal(table / np.maximum(table.sum(1, keepdims=True), 1), 0)
            mesh = axes.pcolormesh(shares, cmap="viridis", vmin=0, vmax=1, rasterized=table.size > MOST_VECTOR)
            axes.set_title(name if len(name) < 28 else name[:27] + "…", fontsize=8)
            axes.set_aspect("equal")
            _named_cells(axes.xaxis, names)
            _named_cells(axes.yaxis, names)
            if max(map(len, names)) > 2:
                axes.tick_params(axis="x", rotation=90)
        places[0].invert_yaxis()  # of all, which share it
        for axes in places[len(shown) :]:
            axes.set_visible(False)
        figure.supxlabel("said", fontsize=8)
        figure.supylabel("true", fontsize=8)
        figure.colorbar(mesh, ax=list(places), label="share of the class").outline.set_visible(False)

    return _drawn(draw, 0.6 + 2.1 * -(-len(shown) // 2))


def _judged_at_clients(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: rule for name, rule in record["rules"].items() if rule.get("clients")}


def _bars(record: Mapping[str, Any]) -> int:
    shown = len(record["clients"].get(measure_of_record(record).plural, []))
    return (shown if shown <= 10 else 1) + len(record["rules"]) + sum(map(bool, record["references"].values()))


def _drawn(draw: Any, height: float) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    inked = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    style: Any = {**inked, "text.parse_math": False, "svg.hashsalt": "fedfisher", "font.size": 8, "legend.fontsize": 8}
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
