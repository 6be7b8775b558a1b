"""Regression of a function whose domain is split over clients, over rounds (FIPA, arXiv 2601.13608).

Inputs lie in [−1, 1]; the interval is cut into equal pieces that are dealt round-robin to the clients: one contiguous
piece each, so that no client sees what the others see, or several. Every method has the same rounds and local training;
FIPA's first rounds are FedAvg. Error: relative l2 distance to the noiseless function.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.fipa import fields
from experiments.lib import common
from fedfisher_jax import gaussian
from fedfisher_jax.curvature import capture
from fedfisher_jax.merge import fedfisher

EXAMPLES, NOISE, BATCH, POINTS = 40, 0.01, 40, 401  # of a client; standard deviation; of local training; compared
RANKS = (1, 5, 10, 50)
SHOWN = "fipa-10"
PIECES = (1, 2, 8)


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: Repetitions: data, start and order of training.
        clients: How many.
        rounds: Number of rounds of every method.
        warm_up: Rounds of FedAvg that FIPA begins with.
        epochs: Local epochs of Adam in a round.
        learning_rate: Adam's rate.
        width: Units of each of the two hidden layers.
        tau: Damping of FIPA's damped form, relative to the largest eigenvalue.
    """

    seeds: int = 5
    clients: int = 5
    rounds: int = 40
    warm_up: int = 5
    epochs: int = 20
    learning_rate: float = 3e-3
    width: int = 20
    tau: float = 1e-3


def function(x: Any) -> Any:
    """What the clients learn together."""
    return jnp.sin(3 * x) + 0.3 * jnp.cos(9 * x)


def draw(size: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One input from each of `size` equal cells of [−1, 1], in their order, and noisy values, [size, 1]."""
    key_x, key_y = jax.random.split(key)
    x = (2 * (jnp.arange(size) + jax.random.uniform(key_x, (size,))) / size - 1)[:, None]
    return x, function(x) + NOISE * jax.random.normal(key_y, x.shape, x.dtype)


@cache
def problem(clients: int, width: int) -> fields.Problem:
    """The problem for so many clients."""
    grid = jnp.linspace(-1, 1, POINTS)[:, None]
    return fields.Problem(
        fields.network,
        gaussian(),
        partial(draw, clients * EXAMPLES),
        partial(fields.init, (1, width, width, 1)),
        lambda params: fields.network(params, grid)[:, 0],
        lambda: np.asarray(function(grid[:, 0])),
    )


@cache
def compared(clients: int, width: int, ranks: tuple[int, ...], tau: float) -> dict[str, fields.Method]:
    """Methods on every problem, and FedFisher with Kronecker factors, which a plain network has."""
    found = fields.methods(ranks, tau)
    here = problem(clients, width)
    layers = capture(here.apply, jax.eval_shape(here.init, jax.random.key(0)), np.zeros((1, 1), np.float32))
    factors = sum(a * (a + 1) // 2 + g * (g + 1) // 2 for a, g in ((2, width), (width + 1, width), (width + 1, 1)))
    kronecker = fields.Method(
        "FedFisher, K-FAC",
        lambda a, lik: fedfisher(a, lik, structure="kronecker", captured=layers),
        lambda d: d + factors,
    )
    return {"fedavg": found.pop("fedavg"), "fedfisher-kfac": kronecker, **found}


def run(method: str, pieces: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One method on one split; see `fields.follow`."""
    one = Settings(**settings)
    schedule = fields.Schedule(one.rounds, one.warm_up, one.epochs, BATCH, one.learning_rate)
    rule = fields.method_of(compared(one.clients, one.width, RANKS, one.tau), method)
    places = fields.deal(one.clients * EXAMPLES, one.clients, pieces)
    return fields.follow(problem(one.clients, one.width), rule, schedule, places, one.seed, one.seeds)


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 2, "rounds": 6, "warm_up": 2, "epochs": 5})
    shared = {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("out", "quick")}
    methods = compared(settings.clients, settings.width, RANKS, settings.tau)
    grid = [{"method": m, "pieces": p, "settings": shared} for m in methods for p in PIECES]
    records = common.run_all(settings.out, grid, run)
    text = (
        f"Relative l2 error after {settings.rounds} rounds, mean ± std over {settings.seeds} seeds; in brackets the\n"
    )
    text += f"seeds on which a method beats FedAvg. {settings.clients} clients, dealt pieces of the interval.\n\n"
    text += fields.error_table(records, methods, "pieces", PIECES)
    fig, axes = common.figure(2, 2, width=4.6)
    for row, pieces in zip(axes, (PIECES[0], PIECES[-1]), strict=True):
        fields.draw_errors(row, records, methods, pieces=pieces)
        row[0].set_title(f"{pieces} piece{'s' * (pieces > 1)} per client")
    fig.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside right center")
    summary = fields.summary_of(records, methods, "pieces", PIECES, SHOWN) | fields.worst_of(records, methods, PIECES)
    common.report(settings.out, text, summary, fig)


if __name__ == "__main__":
    main()
