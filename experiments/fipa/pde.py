"""Physics-informed networks whose domain is split over clients, over rounds (FIPA, arXiv 2601.13608).

A client holds collocation points of its own pieces of the line and fits the residual of the equation there: a Gaussian
likelihood with target 0 on the operator `(params, point) → residual`. Poisson: u'' = f on [−1, 1] with u = 0 at both
ends, which every client knows (rows of another kind, weighted). Allen–Cahn: u_t = D u_xx + k (u − u³), u = x² cos(πx)
at t = 0 and −1 at both ends, built into the network. One contiguous piece per client is the most heterogeneous split.
Error: relative l2 distance to a solution by finite differences.
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.linalg

from experiments.fipa import fields
from experiments.lib import common
from fedfisher_jax import gaussian

WAVES = ((1, 1.0), (4, 0.2))  # Poisson's solution: Σ size · sin(wave π x)
BOUNDARY = 10.0  # weight of a boundary row's residual, against the interior one over π²
DIFFUSION, REACTION = 1e-3, 5.0  # D and k of Allen–Cahn
INTERIOR = {"poisson": 40, "allen-cahn": 160}  # collocation points of a client
POINTS, TIMES = 201, 21  # where solutions are compared
RANKS = (1, 5, 10, 50)
SHOWN = "fipa-10"
PIECES = {"poisson": (1, 2, 4), "allen-cahn": (1, 4)}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: Repetitions of Poisson: start and order of training.
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


# ---- residuals -------------------------------------------------------------------------------------------------------


def along(function: Callable, direction: Any) -> Callable:
    """The derivative of a function of points [n, k] in one direction [k]."""
    return lambda x: jax.jvp(function, (x,), (jnp.broadcast_to(jnp.asarray(direction, x.dtype), x.shape),))[1]


def poisson_source(x: Any) -> Any:
    """F = u''."""
    return sum(-size * (wave * np.pi) ** 2 * jnp.sin(wave * np.pi * x) for wave, size in WAVES)


def poisson_residual(params: Any, rows: Any) -> Any:
    """Rows [n, 2] of (x, kind) → residuals [n, 1]: (u'' − f) / π² inside (kind 0), the weighted u at the ends (1)."""
    u, x, ends = partial(fields.network, params), rows[:, :1], rows[:, 1:]
    inside = (along(along(u, [1.0]), [1.0])(x) - poisson_source(x)) / np.pi**2
    return jnp.where(ends > 0, BOUNDARY * u(x), inside)


def allen_cahn_start(x: Any) -> Any:
    """U at t = 0."""
    return x**2 * jnp.cos(np.pi * x)


def allen_cahn_solution(params: Any, points: Any) -> Any:
    """U at points [n, 2] of (x, t), [n, 1]; right at t = 0 and x = ±1 whatever the parameters."""
    x, t = points[:, :1], points[:, 1:]
    return allen_cahn_start(x) + t * (1 - x**2) * fields.network(params, points)


def allen_cahn_residual(params: Any, points: Any) -> Any:
    """U_t − D u_xx − k (u − u³) at points [n, 2] of (x, t): [n, 1]."""
    u = partial(allen_cahn_solution, params)
    value, diffused = u(points), along(along(u, [1.0, 0.0]), [1.0, 0.0])(points)
    return along(u, [0.0, 1.0])(points) - DIFFUSION * diffused - REACTION * (value - value**3)


# ---- reference solutions ---------------------------------------------------------------------------------------------


def poisson_reference(intervals: int) -> np.ndarray:
    """U at intervals + 1 equidistant points by central differences, of second order."""
    x = np.linspace(-1, 1, intervals + 1)
    bands = np.ones((3, intervals - 1))
    bands[1] = -2
    inner = scipy.linalg.solve_banded((1, 1), bands, np.asarray(poisson_source(x[1:-1])) * (2 / intervals) ** 2)
    return np.pad(inner, 1)


def allen_cahn_reference(intervals: int, times: np.ndarray) -> np.ndarray:
    """U [times, intervals + 1] by the method of lines: central differences in x, LSODA with tight tolerances in t."""
    x, h = np.linspace(-1, 1, intervals + 1), 2 / intervals

    def rate(_: float, inner: np.ndarray) -> np.ndarray:
        u = np.pad(inner, 1, constant_values=-1.0)
        return DIFFUSION * (u[2:] - 2 * inner + u[:-2]) / h**2 + REACTION * (inner - inner**3)

    start = x[1:-1] ** 2 * np.cos(np.pi * x[1:-1])
    tight = {"method": "LSODA", "lband": 1, "uband": 1, "rtol": 1e-8, "atol": 1e-10}
    solved = scipy.integrate.solve_ivp(rate, (0, times[-1]), start, t_eval=times, **tight)
    if not solved.success:
        raise RuntimeError(f"reference of Allen–Cahn: {solved.message}")
    return np.pad(solved.y.T, ((0, 0), (1, 1)), constant_values=-1.0)


def extrapolated(solve: Callable[[int], np.ndarray], intervals: int) -> np.ndarray:
    """From a solution of second order and one on half the intervals one of fourth order, on the coarser points."""
    return (4 * solve(intervals)[..., ::2] - solve(intervals // 2)) / 3


@cache
def poisson_truth() -> np.ndarray:
    """[points]."""
    step = 8
    return extrapolated(poisson_reference, 2 * step * (POINTS - 1))[::step]


@cache
def allen_cahn_truth() -> np.ndarray:
    """[times · points]."""
    step, times = 4, np.linspace(0, 1, TIMES)
    return extrapolated(lambda n: allen_cahn_reference(n, times), 2 * step * (POINTS - 1))[:, ::step].ravel()


# ---- problems --------------------------------------------------------------------------------------------------------


def zeros_at(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows and their targets."""
    return rows, jnp.zeros((len(rows), 1), rows.dtype)


def draw_poisson(size: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A point in each of `size` equal cells, in their order, then both ends."""
    inside = 2 * (jnp.arange(size) + jax.random.uniform(key, (size,))) / size - 1
    x = jnp.concatenate([inside, jnp.array([-1.0, 1.0], inside.dtype)])
    return zeros_at(jnp.stack([x, (jnp.arange(size + 2) >= size).astype(x.dtype)], axis=1))


def draw_allen_cahn(size: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A point x in each of `size` equal cells, in their order, at times from U(0, 1)."""
    key_x, key_t = jax.random.split(key)
    x = 2 * (jnp.arange(size) + jax.random.uniform(key_x, (size,))) / size - 1
    return zeros_at(jnp.stack([x, jax.random.uniform(key_t, (size,))], axis=1))


def compared_points(equation: str) -> np.ndarray:
    """[n, 1] of x, or [n, 2] of (x, t) with x running fastest."""
    x = np.linspace(-1, 1, POINTS)
    if equation == "poisson":
        return x[:, None]
    t, x = np.meshgrid(np.linspace(0, 1, TIMES), x, indexing="ij")
    return np.stack([x.ravel(), t.ravel()], axis=1)


@cache
def problem(equation: str, clients: int, width: int) -> fields.Problem:
    """An equation for so many clients."""
    size, points = clients * INTERIOR[equation], jnp.asarray(compared_points(equation))
    if equation == "poisson":
        residual, solution, draw, truth = poisson_residual, fields.network, draw_poisson, poisson_truth
    else:
        residual, solution, draw, truth = allen_cahn_residual, allen_cahn_solution, draw_allen_cahn, allen_cahn_truth
    init = partial(fields.init, (points.shape[1], width, width, 1))
    field = lambda params: solution(params, points)[:, 0]  # noqa: E731
    return fields.Problem(residual, gaussian(), partial(draw, size), init, field, truth)


@cache
def compared(tau: float) -> dict[str, fields.Method]:
    """Every method."""
    return fields.methods(RANKS, tau)


def run(equation: str, method: str, pieces: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One method on one equation and split; see `fields.follow`."""
    one = Settings(**settings)
    size = INTERIOR[equation]
    places = fields.deal(one.clients * size, one.clients, pieces)
    if equation == "poisson":
        places = fields.with_shared(places, one.clients * size + np.arange(2))
    schedule = fields.Schedule(one.rounds, one.warm_up, one.epochs, places.shape[1], one.learning_rate)
    here = problem(equation, one.clients, one.width)
    seeds = one.seeds if equation == "poisson" else one.seeds_allen_cahn
    return fields.follow(here, compared(one.tau)[method], schedule, places, one.seed, seeds)


# ---- reports ---------------------------------------------------------------------------------------------------------


def draw_solutions(axis: Any, records: list[dict[str, Any]], methods: dict[str, fields.Method], equation: str) -> None:
    """The first seed's solutions at the last time, one piece per client."""
    truth = poisson_truth() if equation == "poisson" else allen_cahn_truth()
    grid = np.linspace(-1, 1, POINTS)
    axis.plot(grid, truth[-POINTS:], color="#000000", linestyle=":", label="finite differences")
    for name, method in methods.items():
        if name in ("fedavg", "fedfish", SHOWN, f"{SHOWN}-damped", "fipa-50-damped"):
            field = common.column(records, "field", equation=equation, method=name, pieces=1)[0]
            axis.plot(grid, field[-POINTS:], **fields.style_of(name, methods), label=method.label)
    low, high = truth.min(), truth.max()
    time = "" if equation == "poisson" else ", t = 1"
    axis.set(title=f"{equation}, 1 piece{time}", xlabel="x", ylim=(1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low))


def figure(records: list[dict[str, Any]], methods: dict[str, fields.Method]) -> Any:
    """A row for each equation and number of pieces; at last Allen–Cahn's fields over x and t."""
    fig, axes = common.figure(4, 3, width=4.2)
    rows = [("poisson", 1), ("poisson", PIECES["poisson"][-1]), ("allen-cahn", 1)]
    for row, (equation, pieces) in zip(axes, rows, strict=False):
        fields.draw_errors(row[1:], records, methods, equation=equation, pieces=pieces)
        row[1].set_title(f"{equation}, {pieces} piece{'s' * (pieces > 1)} per client")
    draw_solutions(axes[0, 0], records, methods, "poisson")
    draw_solutions(axes[2, 0], records, methods, "allen-cahn")
    axes[1, 0].axis("off")
    axes[1, 0].legend(*axes[0, 1].get_legend_handles_labels(), loc="center")
    axes[0, 0].legend(fontsize=6)
    truth = allen_cahn_truth().reshape(TIMES, POINTS)
    shown = {"finite differences": truth}
    for name in ("fedavg", SHOWN):
        field = common.column(records, "field", equation="allen-cahn", method=name, pieces=1)[0]
        shown[f"|{methods[name].label} − reference|"] = np.abs(field.reshape(TIMES, POINTS) - truth)
    for axis, (title, image) in zip(axes[3], shown.items(), strict=True):
        drawn = axis.imshow(image, origin="lower", aspect="auto", extent=(-1, 1, 0, 1), cmap="viridis")
        axis.set(title=title, xlabel="x", ylabel="t")
        axis.grid(False)
        fig.colorbar(drawn, ax=axis)
    return fig


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 2, "rounds": 6, "warm_up": 2, "epochs": 5})
    shared = {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("out", "quick")}
    methods = compared(settings.tau)
    grid = [
        {"equation": e, "method": m, "pieces": p, "settings": shared}
        for e, pieces in PIECES.items()
        for m in methods
        for p in pieces
    ]
    records = common.run_all(settings.out, grid, run)
    text = (
        f"Relative l2 error after {settings.rounds} rounds, mean ± std over seeds; in brackets the seeds on which a\n"
    )
    text += f"method beats FedAvg. {settings.clients} clients, dealt pieces of the line.\n"
    summary: dict[str, Any] = {}
    for equation, pieces in PIECES.items():
        chosen = [r for r in records if r["settings"]["equation"] == equation]
        text += f"\n{equation}:\n\n" + fields.error_table(chosen, methods, "pieces", pieces)
        found = fields.summary_of(chosen, methods, "pieces", pieces, SHOWN)
        found |= fields.worst_of(chosen, methods, pieces)
        summary |= found if equation == "poisson" else {"allen_cahn": found}
    common.report(settings.out, text, summary, figure(records, methods))


if __name__ == "__main__":
    main()
