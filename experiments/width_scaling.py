"""The error of the merged model as the width grows (2403.12329, Figure 1 and its theorem).

Two-layer ReLU networks in NTK scaling, M = 2 clients with n = 10 unit inputs each, full-batch gradient descent to
nearly zero local loss; the full Fisher is exact, in sample space. Then the same on real inputs, two classes: digits and
Fashion-MNIST.
"""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np

from fedfisher_jax import data
from fedfisher_jax.theory import decomposition, inputs, merges, scaling, two_layer

CLIENTS, EXAMPLES, INPUTS, STEP_SIZE = 2, 10, 5, 0.5
PREDICTED = {"laplace": -1.0, "movement": -0.5}
LABELS = {
    "full": "FedFisher, full",
    "kfac": "FedFisher, K-FAC",
    "diagonal": "FedFisher, diagonal",
    "average": "average",
}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: Repetitions; at a given seed the data are the same at every width.
        widest: log₂ of the largest width of the Gaussian inputs.
        real_widest: log₂ of the largest width of the real inputs; below 6 leaves them out.
        steps: Gradient steps K.
        octaves: Slopes are fitted over this many widest octaves.
    """

    seeds: int = 16
    widest: int = 16
    real_widest: int = 12
    steps: int = 3000
    octaves: int = 5


def real_images(source: str) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Images, labels and the two classes: digits 3 and 8; Fashion-MNIST pullover and coat, averaged to 7 × 7."""
    loaded = data.load(source)
    x, y = np.asarray(loaded.train_x, np.float64), np.asarray(loaded.train_y)
    if source == "digits":
        return x, y, (3, 8)
    return x.reshape(len(x), 7, 4, 7, 4).mean(axis=(2, 4)), y, (2, 4)


@partial(jax.jit, static_argnames=("width", "steps"))
def runs(keys: jax.Array, clients: two_layer.Clients, width: int, steps: int) -> decomposition.Run:
    """All seeds of one width, one after the other, in one program."""

    def seed(args: tuple[jax.Array, two_layer.Clients]) -> decomposition.Run:
        start = two_layer.init(args[0], args[1].x.shape[-1], width, args[1].x.dtype)
        return decomposition.diagnose(start, args[1], steps, STEP_SIZE)

    return jax.lax.map(seed, (keys, clients))


def run(source: str, width: int, steps: int, first_seed: int, seeds: int) -> dict[str, Any]:
    """Trains, merges and measures `seeds` repetitions of one width; arrays over seeds."""
    keys = jax.vmap(jax.random.key)(jnp.arange(first_seed, first_seed + seeds))
    if source == "gaussian":
        clients = jax.vmap(lambda k: inputs.gaussian(k, CLIENTS, EXAMPLES, INPUTS, dtype=jnp.float64))(keys)
    else:
        x, y, classes = real_images(source)
        each = [inputs.images(k, x, y, classes, CLIENTS, EXAMPLES) for k in keys]
        clients = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    init_keys = jax.vmap(lambda k: jax.random.fold_in(k, width))(keys)
    program = runs.lower(init_keys, clients, width, steps).compile()
    memory = program.memory_analysis()
    start = time.perf_counter()
    found = jax.block_until_ready(program(init_keys, clients))
    result = {name: value for name, value in found._asdict().items() if name not in ("errors", "eigenvalues", "target")}
    for rule, error in found.errors.items():
        result |= {f"{rule}_{name}": value for name, value in error._asdict().items() if name != "test_loss"}
    result["run_seconds"] = time.perf_counter() - start
    result["memory_mib"] = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20 if memory else float("nan")
    return result


def fits(records: list[dict[str, Any]], widths: np.ndarray, octaves: int) -> dict[str, scaling.Slope]:
    """Slopes over the widest octaves; errors follow their mean over seeds, movement every seed."""
    last, x = slice(-octaves - 1, None), widths[-octaves - 1 :]
    table = {
        name: np.stack([common.column([r], name)[0] for r in records])[last]
        for name in records[0]["result"]
        if np.ndim(records[0]["result"][name]) == 1
    }
    found = {f"{rule}_laplace": scaling.loglog_slope(x, table[f"{rule}_laplace"]) for rule in merges.RULES}
    found |= {f"{rule}_loss": scaling.loglog_slope(x, table[f"{rule}_loss"]) for rule in merges.RULES}
    found["mean_laplace"] = scaling.curve_slope(x, table["full_laplace"])
    return found | {name: scaling.loglog_slope(x, table[name]) for name in ("local_movement", "local_flipped")}


def draw(axis: Any, records: list[dict[str, Any]], widths: np.ndarray, title: str) -> None:
    """Loss against width of every rule with its spread over seeds."""
    for rule, marker in zip(merges.RULES, "osD^", strict=True):
        loss = np.stack([common.column([r], f"{rule}_loss")[0] for r in records])
        axis.plot(widths, loss.mean(axis=1), marker=marker, label=LABELS[rule])
        axis.fill_between(widths, *np.quantile(loss, [0.1, 0.9], axis=1), alpha=0.15, linewidth=0)
    local = np.stack([common.column([r], "local_loss")[0] for r in records]).mean(axis=1)
    axis.plot(widths, local, color=common.COLOURS[6], linestyle=":", label="local models, own data")
    axis.set(xscale="log", yscale="log", xlabel="width m", ylabel="global loss", title=title)
    axis.set_xscale("log", base=2)


def main() -> None:
    """Runs what is missing and reports."""
    jax.config.update("jax_enable_x64", True)
    settings = common.command_line(Settings, __doc__)
    if settings.quick:
        settings = dataclasses.replace(
            settings, seeds=4, widest=11, real_widest=min(settings.real_widest, 11), steps=500
        )
    exponents = {"gaussian": settings.widest, "digits": settings.real_widest, "fashion_mnist": settings.real_widest}
    shared = {"steps": settings.steps, "first_seed": settings.seed, "seeds": settings.seeds}
    grid = [{"source": s, "width": 2**e, **shared} for s, top in exponents.items() for e in range(6, top + 1)]
    records = common.run_all(settings.out, grid, run, "widths")
    by_source = {s: [r for r in records if r["settings"]["source"] == s] for s, top in exponents.items() if top >= 6}
    report(settings.out, by_source, settings.octaves)


def report(out: Path, by_source: dict[str, list[dict[str, Any]]], octaves: int) -> None:
    """Table, figure and summary; see `common.report`."""
    gaussian = by_source["gaussian"]
    widths = {s: np.array([r["settings"]["width"] for r in records]) for s, records in by_source.items()}
    fitted = {s: fits(records, widths[s], octaves) for s, records in by_source.items()}
    main_fit = fitted["gaussian"]

    rows = []
    for source, records in by_source.items():
        for r in records:
            cells = [
                common.mean_std(common.column([r], name)[0], 4)
                for name in (
                    "full_loss",
                    "full_laplace",
                    "local_loss",
                    "kfac_loss",
                    "diagonal_loss",
                    "average_loss",
                    "pooled_loss",
                )
            ]
            moved = common.mean_std(common.column([r], "local_movement")[0], 3)
            cost = [f"{r['result']['run_seconds']:.1f}", f"{r['result']['memory_mib']:.1f}"]
            rows.append([source, r["settings"]["width"], *cells, moved, *cost])
    header = [
        "inputs",
        "m",
        "full",
        "Laplace error",
        "local",
        "K-FAC",
        "diagonal",
        "average",
        "pooled",
        "movement",
        "s",
        "MiB",
    ]
    table = common.markdown_table(header, rows)
    table += f"\nSlopes against m over the widest {octaves} octaves: mean over seeds [95 % interval]\n\n"
    names = [n for n in main_fit]
    cell = lambda f: f"{f.mean:.2f} [{f.low:.2f}, {f.high:.2f}]"  # noqa: E731
    table += common.markdown_table(
        ["quantity", *by_source], [[n, *(cell(fitted[s][n]) for s in by_source)] for n in names]
    )

    fig, axes = common.figure(1, 2 + len(by_source), width=3.9, height=3.6)
    for axis, (source, records) in zip(axes[0], by_source.items(), strict=False):
        draw(axis, records, widths[source], f"{source.replace('_', '-')} inputs")
    axes[0, 0].legend(loc="lower left")
    laplace_axis, cost_axis = axes[0, len(by_source) :]
    m = widths["gaussian"].astype(float)
    for name, label, fit, law in (
        ("full_laplace", "Laplace error", main_fit["full_laplace"], PREDICTED["laplace"]),
        ("local_movement", "largest neuron movement", main_fit["local_movement"], PREDICTED["movement"]),
    ):
        values = np.stack([common.column([r], name)[0] for r in gaussian])
        (line,) = laplace_axis.plot(m, np.exp(np.log(values).mean(axis=1)), "o", label=f"{label}\nslope {cell(fit)}")
        laplace_axis.plot(m, fit.prefactor * m**fit.mean, color=line.get_color())
        anchor = fit.prefactor * m[-1] ** fit.mean
        laplace_axis.plot(
            m, anchor * (m / m[-1]) ** law, color=line.get_color(), linestyle=":", label=f"predicted {law:g}"
        )
    laplace_axis.set(yscale="log", xlabel="width m", title="fitted and predicted laws (Gaussian)")
    laplace_axis.set_xscale("log", base=2)
    laplace_axis.legend(loc="lower left")
    for name, label in (("run_seconds", "seconds, all seeds"), ("memory_mib", "MiB of working memory")):
        cost_axis.plot(m, [r["result"][name] for r in gaussian], marker="o", label=label)
    cost_axis.set(yscale="log", xlabel="width m", title="cost (Gaussian)")
    cost_axis.set_xscale("log", base=2)
    cost_axis.legend()

    summary = {
        "laplace_slope": main_fit["full_laplace"].mean,
        "laplace_slope_ci": [main_fit["full_laplace"].low, main_fit["full_laplace"].high],
        "movement_slope": main_fit["local_movement"].mean,
        "movement_slope_ci": [main_fit["local_movement"].low, main_fit["local_movement"].high],
        "average_error_slope": main_fit["average_loss"].mean,
        "average_error_slope_ci": [main_fit["average_loss"].low, main_fit["average_loss"].high],
        "predicted": PREDICTED,
        "seeds": gaussian[0]["settings"]["seeds"],
        "widths": widths["gaussian"],
        "gaussian_seconds": sum(r["seconds"] for r in gaussian),
        "total_seconds": sum(r["seconds"] for records in by_source.values() for r in records),
        "slopes": {s: {n: [f.mean, f.low, f.high] for n, f in found.items()} for s, found in fitted.items()},
    }
    common.report(out, table, summary, fig)


if __name__ == "__main__":
    main()
