"""What the error of the merged model does along other axes than width, and where the theorem stops holding.

Two-layer ReLU networks as in `width_scaling.py`; one axis moves at a time: local steps K, number of clients at a fixed
number of examples, heterogeneity of the clients' inputs, examples per parameter, label noise, output scaling and which
layers are trained, and steps of the server's gradient descent. docs/theory.md explains the failures.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from experiments.theory.rules import COLOURS, LABELS
from fedfisher_jax.theory import decomposition, inputs, merges, sample_space, scaling, two_layer

VARIANTS = {
    "ntk": ("ntk", False),
    "ntk, both layers": ("ntk", True),
    "mean field": ("mean_field", False),
    "mean field, both layers": ("mean_field", True),
}
AXES = {
    "steps": "local steps K",
    "clients": "clients M (40 examples in all)",
    "heterogeneity": "shift of the clients' inputs",
    "examples": "examples per parameter (m = 16)",
    "noise": "label noise (m = 16, n = 160)",
    "server_steps": "server steps",
}


DESCENT = (
    "server_steps",
    "threshold",
)  # steps of the server where the theorem holds, and with as many examples as parameters
LIMITS = {"steps": (1e-5, 2), "clients": (1e-3, 2), "heterogeneity": (1e-3, 3), "examples": (1e-2, 3e3)}
NAMES = ("full_loss", "full_laplace", "local_loss", "kfac_loss", "diagonal_loss", "average_loss", "pooled_loss")


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: Repetitions.
    """

    seeds: int = 16


@dataclasses.dataclass(frozen=True)
class Case:
    """One point: everything a run depends on besides its seeds. `noise` below zero means random targets."""

    width: int = 1024
    steps: int = 3000
    num_clients: int = 2
    examples: int = 10
    dims: int = 5
    shift: float = 0.0
    noise: float = -1.0
    output: str = "ntk"
    train_output: bool = False


def cases(quick: bool) -> list[tuple[str, float | str, Case]]:
    """(axis, value on it, case) of every point."""
    base, scan, small = Case(), Case(width=2048), Case(width=16)
    if quick:
        base, scan = Case(width=256, steps=300), Case(width=256)
        small = Case(width=16, steps=300)
    make = dataclasses.replace
    found: list[tuple[str, float | str, Case]] = []
    found += [
        ("steps", k, make(scan, steps=k)) for k in ((10, 100, 1000) if quick else (10, 30, 100, 300, 1000, 3000, 10000))
    ]
    found += [("clients", m, make(base, num_clients=m, examples=40 // m)) for m in ((2, 8) if quick else (2, 4, 8, 20))]
    found += [
        ("heterogeneity", s, make(base, shift=s)) for s in ((0.0, 2.0) if quick else (0.0, 0.5, 1.0, 2.0, 4.0, 8.0))
    ]
    rows = (10, 40, 160) if quick else (5, 10, 20, 30, 40, 60, 80, 160, 320)
    found += [("examples", 2 * n / (16 * 5), make(small, examples=n)) for n in rows]
    found += [
        ("noise", s, make(small, examples=160, noise=s)) for s in ((0.0, 1.0) if quick else (0.0, 0.25, 0.5, 1.0, 2.0))
    ]
    widths = (64, 256) if quick else tuple(2**e for e in range(6, 13))
    for name, (output, both) in VARIANTS.items():
        found += [(name, m, make(base, width=m, output=output, train_output=both)) for m in widths]
    descent = (1, 100, 3000) if quick else (1, 3, 10, 30, 100, 300, 1000, 3000)
    found += [("server_steps", t, base) for t in descent]
    found += [("threshold", t, make(small, examples=40)) for t in descent]
    return found


STATIC = ("width", "num_clients", "examples", "dims", "output", "train_output", "random", "descent")


@partial(jax.jit, static_argnames=STATIC)
def runs(
    keys, server_steps, steps, shift, noise, width, num_clients, examples, dims, output, train_output, random, descent
):
    """All seeds of one case, one after the other, in one program."""

    def seed(key: jax.Array) -> tuple[decomposition.Run, dict[str, jax.Array]]:
        key_data, key_init = jax.random.split(key)
        test = None
        if random:
            data = inputs.gaussian(key_data, num_clients, examples, dims, shift, jnp.float64)
        else:
            everything = inputs.teacher(key_data, num_clients + 1, examples, dims, noise, jnp.float64)
            data = two_layer.clients(everything.x[:-1], everything.y[:-1])
            test = two_layer.clients(everything.x[-1:], everything.y[-1:])
        start = two_layer.init(key_init, dims, width, jnp.float64)
        run = decomposition.diagnose(start, data, steps, 0.5, output, train_output, test)
        if not descent:
            return run, {}
        local = two_layer.train(start, data, steps, 0.5, output, train_output)
        problem = merges.full_objective(local, data, output, train_output)
        rate = sample_space.largest_step(problem.spectrum)
        gap = decomposition.descent_gap(problem, rate, server_steps)
        reached = merges.place(problem, sample_space.iterate(problem.spectrum, rate, server_steps))
        gap["loss"] = two_layer.loss(reached, data, output)
        return run, gap

    return jax.lax.map(seed, keys)


def run(axis: str, value: float | str, first_seed: int, seeds: int, **case: Any) -> dict[str, Any]:
    """One point of one axis; arrays over seeds."""
    keys = jax.vmap(jax.random.key)(jnp.arange(first_seed, first_seed + seeds))
    descent = axis in DESCENT
    found, gap = runs(keys, int(value) if descent else 0, random=case["noise"] < 0, descent=descent, **case)
    result = {k: v for k, v in found._asdict().items() if k not in ("errors", "eigenvalues", "target")}
    for rule, error in found.errors.items():
        result |= {f"{rule}_{name}": v for name, v in error._asdict().items()}
    if descent:
        result |= {f"server_{name}": v for name, v in gap.items() if name != "remaining"}
        result["server_slowest"] = gap["remaining"][:, 0]
    return result


def series(records: list[dict[str, Any]], name: str) -> np.ndarray:
    """Median and 10 % and 90 % quantiles over seeds, [3, points]."""
    return np.stack([np.quantile(common.column([r], name)[0], [0.5, 0.1, 0.9]) for r in records], axis=1)


def line(axis: Any, x: np.ndarray, records: list[dict[str, Any]], name: str, **style: Any) -> None:
    """A median with its band."""
    middle, low, high = series(records, name)
    (drawn,) = axis.plot(x, middle, **style)
    axis.fill_between(x, low, high, alpha=0.13, linewidth=0, color=drawn.get_color())


def rules_panel(panel: Any, name: str, records: list[dict[str, Any]]) -> None:
    """Global loss of every rule along one axis."""
    x = np.array([r["settings"]["value"] for r in records], float)
    for rule, marker in zip(merges.RULES, "osD^", strict=True):
        line(panel, x, records, f"{rule}_loss", marker=marker, color=COLOURS[rule], label=LABELS[rule])
    line(panel, x, records, "local_loss", color=common.LOCAL, linestyle=":", label="local models, own data")
    panel.set(yscale="log", ylabel="global loss", xlabel=AXES[name], ylim=LIMITS[name])


def noise_panel(panel: Any, records: list[dict[str, Any]]) -> None:
    """Test loss relative to the average's."""
    x = np.array([r["settings"]["value"] for r in records], float)
    for rule, marker in zip(merges.RULES, "osD^", strict=True):
        ratio = [
            common.column([r], f"{rule}_test_loss")[0] / common.column([r], "average_test_loss")[0] for r in records
        ]
        middle, low, high = np.quantile(ratio, [0.5, 0.1, 0.9], axis=1)
        panel.plot(x, middle, marker=marker, color=COLOURS[rule], label=LABELS[rule])
        panel.fill_between(x, low, high, color=COLOURS[rule], alpha=0.13, linewidth=0)
    panel.set(ylabel="test loss relative to the average", xlabel=AXES["noise"], ylim=(0.5, 1.5))


def descent_panel(panel: Any, records: list[dict[str, Any]], threshold: list[dict[str, Any]]) -> None:
    """Gradient descent on the objective against its closed-form limit, and where that limit is bad."""
    x = np.array([r["settings"]["value"] for r in records], float)
    line(panel, x, records, "server_loss", marker="o", label="global loss after T steps")
    line(panel, x, records, "server_distance", marker="s", label="distance to the closed form")
    line(
        panel,
        x,
        records,
        "server_slowest",
        color=common.COLOURS[2],
        linestyle="--",
        label="left of the slowest direction",
    )
    line(panel, x, records, "full_loss", color="black", linestyle=":", label="loss of the closed form")
    line(panel, x, threshold, "server_loss", color=common.COLOURS[4], marker="^", label="loss, examples = parameters")
    panel.set(yscale="log", ylim=(1e-4, 20), xlabel=AXES["server_steps"])
    panel.set_xscale("log")


def figure(by_axis: dict[str, list[dict[str, Any]]]) -> Any:
    """Eight panels: the six axes, and the error and neuron movement of the four variants against width."""
    fig, axes = common.figure(2, 4, width=3.7, height=3.2)
    for panel, name in zip(axes.flat, LIMITS, strict=False):
        rules_panel(panel, name, by_axis[name])
    steps, clients, heterogeneity, examples = axes[0]
    x = np.array([r["settings"]["value"] for r in by_axis["steps"]], float)
    line(steps, x, by_axis["steps"], "full_laplace", color="black", linestyle="--", label="Laplace error of full")
    steps.set_xscale("log")
    for panel, name in ((clients, "clients"), (examples, "examples")):
        panel.set_xscale("log", base=2)
        ticks = [r["settings"]["value"] for r in by_axis[name]]
        panel.set_xticks(ticks, [f"{t:g}" for t in ticks], minor=False, rotation=45 if name == "examples" else 0)
    examples.axvline(1, color="black", linewidth=0.8, linestyle="--")
    noise_panel(axes[1, 0], by_axis["noise"])
    descent_panel(axes[1, 1], *(by_axis[a] for a in DESCENT))
    for panel, name, title in (
        (axes[1, 2], "full_laplace", "Laplace error of full"),
        (axes[1, 3], "local_movement", "largest neuron movement"),
    ):
        for variant in VARIANTS:
            x = np.array([r["settings"]["width"] for r in by_axis[variant]], float)
            line(panel, x, by_axis[variant], name, marker="o", label=variant)
        panel.set(yscale="log", xlabel="width m", ylabel=title)
        panel.set_xscale("log", base=2)
    for panel in (axes[1, 1], axes[1, 2]):
        panel.legend(loc="lower left", fontsize=7)
    fig.legend(*steps.get_legend_handles_labels(), loc="outside upper center", ncols=6)
    return fig


def table(records: list[dict[str, Any]]) -> str:
    """Every point of every axis, then the server's descent."""

    def cell(record: dict[str, Any], name: str) -> str:
        middle, low, high = series([record], name)[:, 0]
        return f"{middle:.3g} [{low:.2g}, {high:.2g}]"

    head = [[r["settings"]["axis"], f"{r['settings']['value']:.6g}"] for r in records]
    errors, descent = [], []
    for label, r in zip(head, records, strict=True):
        if label[0] in DESCENT:
            names = ["server_loss", "full_loss", "server_distance", "server_slowest"]
            descent.append([*label, *(cell(r, n) for n in names)])
        else:
            errors.append([*label, *(cell(r, n) for n in [*NAMES, "local_movement"])])
    header = ["axis", "value", "full", "Laplace error", "local", "K-FAC", "diagonal", "average", "pooled", "movement"]
    text = "Median [10 %, 90 %] over seeds.\n\n" + common.markdown_table(header, errors)
    header = [
        "axis",
        "server steps",
        "loss",
        "loss of the closed form",
        "distance to it",
        "left of the slowest direction",
    ]
    return text + "\n" + common.markdown_table(header, descent)


def main() -> None:
    """Runs what is missing and reports."""
    jax.config.update("jax_enable_x64", True)
    settings = common.command_line(Settings, __doc__)
    seeds = {"first_seed": settings.seed, "seeds": 3 if settings.quick else settings.seeds}
    grid = [{"axis": a, "value": v, **dataclasses.asdict(c), **seeds} for a, v, c in cases(settings.quick)]
    records = common.run_all(settings.out, grid, run, "points")
    by_axis: dict[str, list[dict[str, Any]]] = {}
    for r in records:
        by_axis.setdefault(r["settings"]["axis"], []).append(r)

    text = table(records)
    slopes = {}
    for variant in VARIANTS:
        x = np.array([r["settings"]["width"] for r in by_axis[variant]], float)[-4:]
        for name in ("full_laplace", "local_movement", "average_loss"):
            y = np.stack([common.column([r], name)[0] for r in by_axis[variant]])[-4:]
            slopes[f"{variant}: {name}"] = scaling.loglog_slope(x, y)
    cells = [[n, f"{s.mean:.2f} [{s.low:.2f}, {s.high:.2f}]"] for n, s in slopes.items()]
    text += "\nSlopes against m over the widest three octaves\n\n" + common.markdown_table(
        ["quantity", "slope [95 %]"], cells
    )
    middle = {
        a: {n: series(rs, n)[0] for n in [*NAMES, "full_test_loss", "average_test_loss"]} for a, rs in by_axis.items()
    }
    summary = {
        "values": {a: [r["settings"]["value"] for r in rs] for a, rs in by_axis.items()},
        "medians": middle,
        "worst_full_over_average": float(np.max(middle["examples"]["full_loss"] / middle["examples"]["average_loss"])),
        "slopes": {n: [s.mean, s.low, s.high] for n, s in slopes.items()},
        "seconds": sum(r["seconds"] for r in records),
    }
    common.report(settings.out, text, summary, figure(by_axis))


if __name__ == "__main__":
    main()
