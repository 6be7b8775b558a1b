"""Two clients regress one function on overlapping ranges of its input (FedFish, 2311.10291, its first experiment).

Client A sees inputs in [−1, s], client B in [−s, 1]: s = 0 is no overlap, s = 1 the same range, and s is the share of
[−1, 1] that both see. Both train from one start; the server averages them, or merges them by FedFish. A good merge
keeps both parts of the function. Error: mean squared distance to the noiseless function, over both clients' ranges.
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib import common
from fedfisher_jax import Examples, Federation, LocalTraining, cohort, gaussian, rounds, train
from fedfisher_jax.merge import fedavg, fedfish

NETWORKS: dict[str, tuple[tuple[int, ...], Callable]] = {
    "relu, two layers": ((1, 128, 128, 1), jax.nn.relu),
    "relu, one layer": ((1, 256, 1), jax.nn.relu),
    "tanh, two layers": ((1, 128, 128, 1), jnp.tanh),
}
METHODS = {
    "average": "average",
    "fedfish": "FedFish",
    "fedfish-squares": "FedFish, squared minibatch gradients",
    "fedfish-kfac": "FedFish, Kronecker",
}
OWN = common.rule_colours(
    METHODS, {"average": "fedavg", **{name: name.replace("-", ",") for name in METHODS if "-" in name}}
)
SHOWN = "relu, two layers"  # the network of the upper figures and of the summary's headline
EXAMPLES, NOISE, BATCH = 200, 0.05, 20  # per client
GRID = 201  # points of [−1, 1] that errors are means over


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        networks: Which of the three; the first is that of the headline and always there.
        seeds: Repetitions: data, start and order of training.
        epochs: Local epochs of Adam.
        learning_rate: Adam's rate.
        rounds: Number of rounds; the headline is after the first.
    """

    networks: tuple[str, ...] = tuple(NETWORKS)
    seeds: int = 20
    epochs: int = 100
    learning_rate: float = 1e-3
    rounds: int = 10


def function(x: Any) -> jax.Array:
    """What both clients try to learn."""
    return jnp.sin(3 * x) + 0.3 * jnp.cos(9 * x)


def two_clients(key: jax.Array, overlap: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inputs [2 n, 1] and noisy targets [2 n, 1]; the first n are A's, the others B's."""
    key_x, key_y = jax.random.split(key)
    left = jnp.stack([-1.0, -overlap])[:, None]
    x = (left + (1 + overlap) * jax.random.uniform(key_x, (2, EXAMPLES))).reshape(-1, 1)
    return x, function(x) + NOISE * jax.random.normal(key_y, x.shape)


def init(widths: tuple[int, ...], key: jax.Array) -> list[dict[str, jax.Array]]:
    """Weights and biases from U(−1/√inputs, 1/√inputs)."""
    layers = []
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        key, key_w, key_b = jax.random.split(key, 3)
        draw = partial(jax.random.uniform, minval=-(inputs**-0.5), maxval=inputs**-0.5)
        layers.append({"w": draw(key_w, (inputs, outputs)), "b": draw(key_b, (outputs,))})
    return layers


def model(activation: Callable) -> Callable:
    """A multi-layer perceptron as apply(params, x [n, 1]) → [n, 1]."""

    def apply(params: Any, x: Any) -> Any:
        for layer in params[:-1]:
            x = activation(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    return apply


@cache
def federation(network: str, method: str, num_rounds: int, epochs: int, learning_rate: float) -> Callable:
    """(keys [seeds], overlap) → what `run` returns, for every seed; compiled once for all overlaps."""
    widths, activation = NETWORKS[network]
    apply, likelihood = model(activation), gaussian()
    rule = {
        "average": lambda: fedavg(apply, likelihood),
        "fedfish": lambda: fedfish(apply, likelihood, estimator="exact"),
        "fedfish-squares": lambda: fedfish(apply, likelihood, estimator="squares"),
        "fedfish-kfac": lambda: fedfish(apply, likelihood, estimator="exact", structure="kronecker"),
    }[method]()
    training = LocalTraining(apply, likelihood, optax.adam(learning_rate), epochs, BATCH)
    two, parts = Federation(training, rule, sampled=2), np.split(np.arange(2 * EXAMPLES), 2)
    grid = jnp.linspace(-1, 1, GRID)[:, None]

    def one_seed(key: jax.Array, overlap: jax.Array) -> dict[str, jax.Array]:
        key_data, key_start, key_run = jax.random.split(key, 3)
        x, y = two_clients(key_data, overlap)
        who, start = cohort(x, y, parts), rounds.init(two, init(widths, key_start), 2, key_run)

        def one_round(state: rounds.State, _: Any) -> tuple[rounds.State, jax.Array]:
            state, _ = rounds.step(two, state, who, strategy="sequential")
            return state, apply(state.params, grid)[:, 0]

        def train_alone(number: Any, rows: Any) -> Any:
            data = Examples(x, y, rows, jnp.asarray(EXAMPLES, jnp.int32))
            return train(training, start.params, data, jax.random.fold_in(key_run, number)).params

        alone = jax.vmap(train_alone)(jnp.arange(2), jnp.stack(parts))
        merged = jax.lax.scan(one_round, start, None, num_rounds)[1]
        inside = jnp.stack([grid[:, 0] <= overlap, grid[:, 0] >= -overlap])
        squares = (merged - function(grid)[:, 0]) ** 2
        found = jnp.sum(squares[:, None] * inside, axis=-1) / jnp.sum(inside, axis=-1)
        return {
            "error_a": found[:, 0],
            "error_b": found[:, 1],
            "merged": merged[0],
            "alone": jax.vmap(apply, (0, None))(alone, grid)[..., 0],
        }

    return jax.jit(jax.vmap(one_seed, (0, None)))


def run(
    network: str, overlap: float, method: str, num_rounds: int, epochs: int, learning_rate: float, seed: int, seeds: int
) -> dict[str, Any]:
    """Errors [seeds, rounds] on A's and B's range and, of the first seed, the functions after the first round."""
    keys = jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds))
    found = jax.device_get(federation(network, method, num_rounds, epochs, learning_rate)(keys, overlap))
    return {name: value[0] if name in ("merged", "alone") else value for name, value in found.items()}


def errors(records: list[dict[str, Any]], **where: Any) -> np.ndarray:
    """Mean over both ranges, [seeds, rounds], of the one run with these settings."""
    return (common.column(records, "error_a", **where)[0] + common.column(records, "error_b", **where)[0]) / 2


def table(records: list[dict[str, Any]], networks: tuple[str, ...], overlaps: tuple[float, ...]) -> str:
    """Errors for every overlap, then round by round, and on how many seeds FedFish wins."""
    text = (
        "Mean squared error over both clients' ranges after one round, mean ± std over seeds; in brackets the seeds\n"
    )
    text += "on which the method is better than the average.\n\n"

    def cells(number: int, method: str, network: str, overlap: float) -> str:
        found, plain = (
            errors(records, network=network, overlap=overlap, method=m)[:, number] for m in (method, "average")
        )
        better = "" if method == "average" else f" ({(found < plain).sum()}/{len(found)})"
        return common.mean_std(found, 3) + better

    rows = [[f"{n}: {METHODS[m]}", *(cells(0, m, n, o) for o in overlaps)] for n in networks for m in METHODS]
    text += common.markdown_table(["", *[f"overlap {o:g}" for o in overlaps]], rows)
    last = errors(records, network=SHOWN, overlap=0.0, method="average").shape[1]
    shown = sorted({1, 2, 3, 5, last} & set(range(1, last + 1)))
    rows = [[METHODS[m], *(cells(r - 1, m, SHOWN, 0.0) for r in shown)] for m in METHODS]
    text += f"\nThe same, round by round: {SHOWN}, no overlap.\n\n"
    return text + common.markdown_table(["", *[f"round {r}" for r in shown]], rows)


def draw_functions(axis: Any, records: list[dict[str, Any]], overlap: float) -> None:
    """What the first seed's clients learned, and their merges."""
    grid = np.linspace(-1, 1, GRID)
    axis.plot(grid, function(grid), color="#000000", linestyle=":", label="true function")
    for number, name in enumerate("AB"):
        alone = common.column(records, "alone", network=SHOWN, overlap=overlap, method="average")[0][number]
        axis.plot(grid, alone, color=common.LOCAL, linestyle=("-", "--")[number], linewidth=1, label=f"client {name}")
    for method in ("average", "fedfish"):
        merged = common.column(records, "merged", network=SHOWN, overlap=overlap, method=method)[0]
        axis.plot(grid, merged, color=OWN[method], label=METHODS[method])
    for at in (-overlap, overlap):
        axis.axvline(at, color="#BBBBBB", linewidth=0.8)
    axis.set(title=f"overlap {overlap:g}", xlabel="x", ylim=(-2.2, 2.2))


def draw_overlaps(axis: Any, records: list[dict[str, Any]], network: str, overlaps: tuple[float, ...]) -> None:
    """Error after the first round, with the quartiles over seeds."""
    for method, label in METHODS.items():
        found = np.stack([errors(records, network=network, overlap=o, method=method)[:, 0] for o in overlaps])
        axis.plot(overlaps, np.median(found, axis=1), marker="o", color=OWN[method], label=label)
        axis.fill_between(
            overlaps, *np.quantile(found, [0.25, 0.75], axis=1), color=OWN[method], alpha=0.15, linewidth=0
        )
    axis.set(title=f"{network}, one round", xlabel="overlap", ylabel="squared error, median", yscale="log")


def figure(records: list[dict[str, Any]], networks: tuple[str, ...], overlaps: tuple[float, ...]) -> Any:
    """Functions of one seed above; errors of all below."""
    fig, axes = common.figure(2, 4, width=3.6, height=3.0)
    shown = [overlaps[i] for i in np.linspace(0, len(overlaps) - 1, 4).round().astype(int)]
    for axis, overlap in zip(axes[0], shown, strict=True):
        draw_functions(axis, records, overlap)
    for axis, network in zip(axes[1], networks, strict=False):
        draw_overlaps(axis, records, network, overlaps)
    for axis in axes[1, len(networks) : 3]:
        axis.set_axis_off()
    for method in METHODS:
        found = errors(records, network=SHOWN, overlap=0.0, method=method)
        style = {"marker": "o", "color": OWN[method], "label": METHODS[method]}
        axes[1, 3].plot(np.arange(1, found.shape[1] + 1), np.median(found, axis=0), **style)
    axes[1, 3].set(title=f"{SHOWN}, no overlap", xlabel="rounds", yscale="log")
    found = {}
    for axis in (axes[0, 0], axes[1, 3]):
        found |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    fig.legend(found.values(), found.keys(), loc="outside lower center", ncols=len(found))
    return fig


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__)
    if SHOWN not in settings.networks or not set(settings.networks) <= set(NETWORKS):
        raise SystemExit(f"networks: got {settings.networks}, expected {SHOWN!r} and perhaps more of {list(NETWORKS)}")
    overlaps = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    if settings.quick:
        settings, overlaps = dataclasses.replace(settings, seeds=3, epochs=20, rounds=2), (0.0, 0.25, 0.5, 1.0)
    shared = {"epochs": settings.epochs, "learning_rate": settings.learning_rate}
    shared |= {"seed": settings.seed, "seeds": settings.seeds}
    grid = [
        {"network": n, "method": m, "overlap": o, "num_rounds": settings.rounds if (n, o) == (SHOWN, 0.0) else 1}
        for n in settings.networks
        for m in METHODS
        for o in overlaps
    ]
    records = common.run_all(settings.out, [one | shared for one in grid], run)
    apart = {m: errors(records, network=SHOWN, overlap=0.0, method=m)[:, 0] for m in METHODS}
    ranges = {
        m: [common.column(records, f"error_{c}", network=SHOWN, overlap=0.0, method=m)[0, :, 0] for c in "ab"]
        for m in METHODS
    }
    summary: dict[str, Any] = {
        "error_average": apart["average"].mean(),
        "error_fedfish": apart["fedfish"].mean(),
        "error_average_std": apart["average"].std(ddof=1),
        "error_fedfish_std": apart["fedfish"].std(ddof=1),
        "error_by_range": {m: {"a": a.mean(), "b": b.mean()} for m, (a, b) in ranges.items()},
        "seeds_fedfish_better": int((apart["fedfish"] < apart["average"]).sum()),
        "seeds": settings.seeds,
        "of": f"{SHOWN}, no overlap, one round",
        "errors": {
            network: {
                f"{o:g}": {m: errors(records, network=network, overlap=o, method=m)[:, 0].mean() for m in METHODS}
                for o in overlaps
            }
            for network in settings.networks
        },
    }
    common.report(
        settings.out, table(records, settings.networks, overlaps), summary, figure(records, settings.networks, overlaps)
    )


if __name__ == "__main__":
    main()
