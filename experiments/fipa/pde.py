"""Physics-informed networks whose domain is split over clients, over rounds (FIPA, arXiv 2601.13608).

A client holds collocation points of its own pieces of the domain and fits the residual of the equation there, of those
in `experiments.fipa.equations`. One contiguous piece per client is the most heterogeneous split. "pooled" is one client
that has all points and trains as long. Error: relative l2 distance to the solution, by finite differences or, in two
dimensions, by its formula.
"""

import dataclasses
from functools import cache
from typing import Any

import numpy as np

from experiments.fipa import fields
from experiments.fipa.equations import EQUATIONS, LINE, dealt, problem
from experiments.lib import common

RANKS = (1, 5, 10, 50)
SHOWN, FORM, POOLED = "fipa-10", "clipped", "pooled"


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: Repetitions of Poisson: start and collocation points.
        seeds_allen_cahn: Number of seeds for Allen–Cahn.
        clients: How many.
        rounds: Number of rounds of every method.
        warm_up: Rounds of FedAvg that FIPA begins with.
        epochs: Local epochs of Adam in a round, all points of a client at once.
        learning_rate: Adam's rate.
        width: Units of each of the two hidden layers.
        tau: Damping of FIPA's damped form, relative to the largest eigenvalue.
    """

    seeds: int = 5
    seeds_allen_cahn: int = 1
    clients: int = 4
    rounds: int = 40
    warm_up: int = 5
    epochs: int = 20
    learning_rate: float = 3e-3
    width: int = 20
    tau: float = 1e-4


@cache
def compared(tau: float) -> dict[str, fields.Method]:
    """Every method."""
    plain = fields.methods(RANKS, tau)
    return plain | {POOLED: plain["fedavg"]._replace(label="all points at one client")}


def run(equation: str, method: str, pieces: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One method on one equation and split; see `fields.follow`."""
    one = Settings(**settings)
    places = dealt(equation, one.clients, pieces)
    if method == POOLED:
        places = np.unique(places)[None]
    schedule = fields.Schedule(one.rounds, one.warm_up, one.epochs, places.shape[1], one.learning_rate)
    here = problem(equation, one.clients, one.width)
    seeds = one.seeds_allen_cahn if equation == "allen-cahn" else one.seeds
    return fields.follow(here, fields.method_of(compared(one.tau), method), schedule, places, one.seed, seeds)


# ---- reports ---------------------------------------------------------------------------------------------------------


def draw_solutions(axis: Any, records: list[dict[str, Any]], methods: dict[str, fields.Method], equation: str) -> None:
    """The first seed's solutions along the last line of points, one piece per client."""
    truth, count = EQUATIONS[equation].truth(), len(LINE)
    axis.plot(LINE, truth[-count:], color="#000000", linestyle=":", label="finite differences")
    for name, method in methods.items():
        if name in ("fedavg", "fedfish", SHOWN, f"{SHOWN}-{FORM}"):
            field = common.column(records, "field", equation=equation, method=name, pieces=1)[0]
            axis.plot(LINE, field[-count:], **fields.style_of(name, methods), label=method.label)
    low, high = truth.min(), truth.max()
    time = ", t = 1" if equation == "allen-cahn" else ""
    axis.set(title=f"{equation}, 1 piece{time}", xlabel="x", ylim=(1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low))


def draw_images(axes: Any, records: list[dict[str, Any]], methods: dict[str, fields.Method], equation: str) -> None:
    """A solution of two variables, and how far the first seed's are off, one piece per client."""
    points, truth = EQUATIONS[equation].points, EQUATIONS[equation].truth()
    rows = len(np.unique(points[:, 1]))
    shown = {f"{equation}: solution": truth}
    for name in ("fedavg", f"{SHOWN}-{FORM}"):
        field = common.column(records, "field", equation=equation, method=name, pieces=1)[0]
        shown[f"|{methods[name].label} − solution|"] = np.abs(field - truth)
    extent = (*points[[0, -1], 0], *points[[0, -1], 1])
    for axis, (title, image) in zip(axes, shown.items(), strict=True):
        drawn = axis.imshow(image.reshape(rows, -1), origin="lower", aspect="auto", extent=extent, cmap="viridis")
        axis.set(title=title, xlabel="x", ylabel="t" if equation == "allen-cahn" else "y")
        axis.grid(False)
        axis.figure.colorbar(drawn, ax=axis)


def figure(records: list[dict[str, Any]], methods: dict[str, fields.Method]) -> Any:
    """Errors of every equation, one or two numbers of pieces; then solutions."""
    line, plane, moving = EQUATIONS
    fig, axes = common.figure(6, 3, width=4.2)
    rows = [(line, 1), (line, EQUATIONS[line].pieces[-1]), (plane, 1), (moving, 1)]
    for row, (equation, pieces) in zip(axes, rows, strict=False):
        fields.draw_errors(row[1:], records, methods, equation=equation, pieces=pieces)
        row[1].set_title(f"{equation}, {pieces} piece{'s' * (pieces > 1)} per client")
    draw_solutions(axes[0, 0], records, methods, line)
    draw_solutions(axes[3, 0], records, methods, moving)
    axes[0, 0].legend(fontsize=6)
    axes[1, 0].legend(*axes[0, 1].get_legend_handles_labels(), loc="center")
    for axis in (axes[1, 0], axes[2, 0]):
        axis.axis("off")
    draw_images(axes[4], records, methods, plane)
    draw_images(axes[5], records, methods, moving)
    return fig


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 2, "rounds": 6, "warm_up": 2, "epochs": 5})
    shared = {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("out", "quick")}
    methods = compared(settings.tau)
    grid = [
        {"equation": name, "method": method, "pieces": pieces, "settings": shared}
        for name, equation in EQUATIONS.items()
        for method in methods
        for pieces in equation.pieces
    ]
    records = common.run_all(settings.out, grid, run)
    text = (
        f"Relative l2 error after {settings.rounds} rounds, mean ± std over seeds; in brackets the seeds on which a\n"
    )
    text += f"method beats FedAvg. {settings.clients} clients, dealt pieces of the domain.\n"
    summary: dict[str, Any] = {}
    for name, equation in EQUATIONS.items():
        chosen = [r for r in records if r["settings"]["equation"] == name]
        text += f"\n{name}:\n\n" + fields.error_table(chosen, methods, "pieces", equation.pieces)
        found = fields.summary_of(chosen, methods, "pieces", equation.pieces, SHOWN)
        found |= fields.worst_of(chosen, methods, equation.pieces)
        summary |= found if name == "poisson" else {name: found}
    common.report(settings.out, text, summary, figure(records, methods))


if __name__ == "__main__":
    main()
