"""The equations that `experiments.fipa.pde` solves: residuals, true solutions, collocation points.

A Gaussian likelihood with target 0 on the operator `(params, rows) → residuals` is least squares on the residual.
Poisson: u'' = f on [−1, 1] with u = 0 at both ends, which every client knows (rows of another kind, weighted). The same
in two dimensions: Δu = f on [−1, 1]² with u = 0 at the edges, which is built into the network. Allen–Cahn: u_t = D u_xx
+ k (u − u³), u = x² cos(πx) at t = 0 and −1 at both ends, built in, too.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.linalg

from experiments.fipa import fields
from fedfisher_jax import gaussian

WAVES = ((1, 1.0), (4, 0.2))  # Poisson's solution: Σ size · sin(wave π x)
WAVES_OF_TWO = ((1, 1, 1.0), (3, 2, 0.3))  # and in two dimensions: Σ size · sin(wave π x) sin(wave π y)
BOUNDARY = 10.0  # weight of a boundary row's residual, against the interior one over π²
DIFFUSION, REACTION = 1e-3, 5.0  # D and k of Allen–Cahn
POINTS, TIMES = 201, 21  # where solutions are compared
SIDE = 41  # where those of two dimensions are, along each


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


def plane_truth(points: Any) -> Any:
    """U of two dimensions at points [n, 2] of (x, y): [n, 1]."""
    x, y = np.pi * points[:, :1], np.pi * points[:, 1:]
    return sum(size * jnp.sin(i * x) * jnp.sin(j * y) for i, j, size in WAVES_OF_TWO)


def plane_solution(params: Any, points: Any) -> Any:
    """U at points [n, 2] of (x, y), [n, 1]; zero at the edges whatever the parameters."""
    x, y = points[:, :1], points[:, 1:]
    return (1 - x**2) * (1 - y**2) * fields.network(params, points)


def plane_residual(params: Any, points: Any) -> Any:
    """(Δu − f) / π² at points [n, 2] of (x, y): [n, 1]."""
    x, y = np.pi * points[:, :1], np.pi * points[:, 1:]
    waves = [(i**2 + j**2, size * jnp.sin(i * x) * jnp.sin(j * y)) for i, j, size in WAVES_OF_TWO]
    u = partial(plane_solution, params)
    curved = sum(along(along(u, axis), axis)(points) for axis in ([1.0, 0.0], [0.0, 1.0]))
    return curved / np.pi**2 + sum(square * wave for square, wave in waves)


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


# ---- solutions -------------------------------------------------------------------------------------------------------


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


# ---- equations -------------------------------------------------------------------------------------------------------


def zeros_at(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows and their targets."""
    return rows, jnp.zeros((len(rows), 1), rows.dtype)


def draw_poisson(size: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A point in each of `size` equal cells, in their order, then both ends."""
    inside = 2 * (jnp.arange(size) + jax.random.uniform(key, (size,))) / size - 1
    x = jnp.concatenate([inside, jnp.array([-1.0, 1.0], inside.dtype)])
    return zeros_at(jnp.stack([x, (jnp.arange(size + 2) >= size).astype(x.dtype)], axis=1))


def draw_plane(size: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A point in each cell of a square of `size` of them, strip by strip along y."""
    side = round(size**0.5)
    corners = jnp.stack(jnp.meshgrid(jnp.arange(side), jnp.arange(side), indexing="ij"), axis=-1).reshape(-1, 2)
    return zeros_at(2 * (corners + jax.random.uniform(key, (size, 2))) / side - 1)


def draw_allen_cahn(size: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A point x in each of `size` equal cells, in their order, at times from U(0, 1)."""
    key_x, key_t = jax.random.split(key)
    x = 2 * (jnp.arange(size) + jax.random.uniform(key_x, (size,))) / size - 1
    return zeros_at(jnp.stack([x, jax.random.uniform(key_t, (size,))], axis=1))


def grid(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Points [n, 2] of (second, first), with the second running fastest."""
    first, second = np.meshgrid(first, second, indexing="ij")
    return np.stack([second.ravel(), first.ravel()], axis=1)


class Equation(NamedTuple):
    """What is solved, and how it is cut."""

    residual: Callable  # (params, rows) → [n, 1]
    solution: Callable  # (params, points) → [n, 1]
    draw: Callable  # (size, key) → rows and targets
    truth: Callable[[], np.ndarray]
    points: np.ndarray  # where solutions are compared
    interior: int  # collocation points of a client
    pieces: tuple[int, ...]  # of a client
    shared: int = 0  # rows after these that every client has


LINE, PLANE = np.linspace(-1, 1, POINTS), np.linspace(-1, 1, SIDE)
EQUATIONS = {
    "poisson": Equation(
        poisson_residual, fields.network, draw_poisson, poisson_truth, LINE[:, None], 40, (1, 2, 4), shared=2
    ),
    "poisson, two dimensions": Equation(
        plane_residual,
        plane_solution,
        draw_plane,
        lambda: np.asarray(plane_truth(grid(PLANE, PLANE)))[:, 0],
        grid(PLANE, PLANE),
        144,
        (1, 3),
    ),
    "allen-cahn": Equation(
        allen_cahn_residual,
        allen_cahn_solution,
        draw_allen_cahn,
        allen_cahn_truth,
        grid(np.linspace(0, 1, TIMES), LINE),
        160,
        (1, 4),
    ),
}


@cache
def problem(equation: str, clients: int, width: int) -> fields.Problem:
    """An equation for so many clients."""
    one = EQUATIONS[equation]
    points = jnp.asarray(one.points)
    init = partial(fields.init, (points.shape[1], width, width, 1))
    field = lambda params: one.solution(params, points)[:, 0]  # noqa: E731
    return fields.Problem(one.residual, gaussian(), partial(one.draw, clients * one.interior), init, field, one.truth)


def dealt(equation: str, clients: int, pieces: int) -> np.ndarray:
    """The clients' places, [clients, n]."""
    one = EQUATIONS[equation]
    places = fields.deal(clients * one.interior, clients, pieces)
    return fields.with_shared(places, clients * one.interior + np.arange(one.shared)) if one.shared else places
