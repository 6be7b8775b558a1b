"""The error of the merged model as the width grows (2403.12329, Figure 1 and its theorem).

Two-layer ReLU networks in NTK scaling, M = 2 clients with n = 10 unit inputs each, full-batch gradient descent to
nearly zero local loss; the full Fisher is exact, in sample space. Then the same on real inputs, two classes: digits and
Fashion-MNIST. Flags take other sizes, activations and networks; give these an --out of their own.
"""

import dataclasses
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from experiments.theory.rules import COLOURS, LABELS
from fedfisher_jax import data
from fedfisher_jax._users_code import import_function
from fedfisher_jax.theory import decomposition, inputs, matrix_free, merges, scaling, two_layer, widths

PREDICTED = {"laplace": -1.0, "movement": -0.5}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: Repetitions; at a given seed the data are the same at every width.
        widest: log₂ of the largest width of the Gaussian inputs.
        real_widest: log₂ of the largest width of the real inputs; below 7 leaves them out.
        steps: Gradient steps K.
        octaves: Slopes are fitted over this many widest octaves.
        clients: Number of clients.
        examples: Examples of each client.
        inputs: Number of inputs, where they are Gaussian.
        step_size: Step of gradient descent; where the network is not relu, in units of 1/λ_max of its tangent kernel.
        network: Two layers with this activation of jax.nn, or your own as module:function, function(width, input_shape)
            → (init, apply) with init(key) → params and apply(params, x [n, ...]) → [n, 1].
    """

    seeds: int = 16
    widest: int = 16
    real_widest: int = 12
    steps: int = 3000
    octaves: int = 5
    clients: int = 2
    examples: int = 10
    inputs: int = 5
    step_size: float = 0.5
    network: str = "relu"


VARIED = ("clients", "examples", "inputs", "step_size", "network")


def real_images(source: str) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Images, labels and the two classes: digits 3 and 8; Fashion-MNIST pullover and coat, averaged to 7 × 7."""
    loaded = data.load(source)
    x, y = np.asarray(loaded.train_x, np.float64), np.asarray(loaded.train_y)
    if source == "digits":
        return x, y, (3, 8)
    return x.reshape(len(x), 7, 4, 7, 4).mean(axis=(2, 4)), y, (2, 4)


@partial(jax.jit, static_argnames=("width", "steps"))
def runs(keys: jax.Array, clients: two_layer.ClientData, width: int, steps: int, step_size: float) -> decomposition.Run:
    """All seeds of one width, one after the other, in one program."""

    def seed(args: tuple[jax.Array, two_layer.ClientData]) -> decomposition.Run:
        start = two_layer.init(args[0], args[1].x.shape[-1], width, args[1].x.dtype)
        return decomposition.diagnose(start, args[1], steps, step_size)

    return jax.lax.map(seed, (keys, clients))


def draw(key: jax.Array, source: str, how: Settings) -> two_layer.ClientData:
    """The clients of a seed."""
    if source == "gaussian":
        return inputs.gaussian(key, how.clients, how.examples, how.inputs, dtype=jnp.float64)
    return inputs.images(key, *real_images(source), how.clients, how.examples)


def network_of(name: str) -> widths.Network:
    """A user's network, or two layers with an activation of jax.nn.

    Raises:
        ValueError: there is none of that name.
    """
    if ":" in name:
        return import_function("network", name)
    if not callable(getattr(jax.nn, name, None)):
        raise ValueError(f"network: got {name!r}, expected an activation of jax.nn, such as tanh, or module:function")
    return widths.two_layers(getattr(jax.nn, name))


def run(source: str, width: int, steps: int, first_seed: int, seeds: int, **varied: Any) -> dict[str, Any]:
    """Trains, merges and measures `seeds` repetitions of one width; arrays over seeds."""
    how, memory, numbers = Settings(**varied), None, range(first_seed, first_seed + seeds)
    start = time.perf_counter()
    if how.network == "relu":
        keys = jax.vmap(jax.random.key)(jnp.arange(numbers.start, numbers.stop))
        clients = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[draw(key, source, how) for key in keys])
        init_keys = jax.vmap(lambda k: jax.random.fold_in(k, width))(keys)
        program = runs.lower(init_keys, clients, width, steps, how.step_size).compile()
        memory, start = program.memory_analysis(), time.perf_counter()
        found = jax.block_until_ready(program(init_keys, clients, how.step_size))
    else:
        found = widths.over_widths(
            network_of(how.network),
            partial(draw, source=source, how=how),
            [width],
            seeds=numbers,
            steps=steps,
            step_size=how.step_size,
            further={"kfac": matrix_free.kfac},
        )[width]
    result = {name: value for name, value in found._asdict().items() if name not in ("errors", "eigenvalues", "target")}
    for rule, error in found.errors.items():
        result |= {f"{rule}_{name}": value for name, value in error._asdict().items() if name != "test_loss"}
    result["run_seconds"] = time.perf_counter() - start
    if memory:
        result["memory_mib"] = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20
    return result


def values(records: list[dict[str, Any]], name: str) -> np.ndarray:
    """One result over widths and seeds, [widths, seeds]."""
    return np.stack([common.column([r], name)[0] for r in records])


def widths_of(records: list[dict[str, Any]]) -> np.ndarray:
    """Widths of the records as floats."""
    return np.array([r["settings"]["width"] for r in records], float)


def fits(records: list[dict[str, Any]], octaves: int) -> dict[str, scaling.Slope]:
    """Slopes against m over the widest octaves, seed by seed; `mean_laplace` fits the mean over seeds."""
    last, x = records[-octaves - 1 :], widths_of(records)[-octaves - 1 :]
    names = [f"{rule}_{what}" for what in ("laplace", "loss") for rule in merges.RULES]
    names += [name for name in ("local_movement", "local_flipped") if name in last[0]["result"]]
    found = {n: scaling.loglog_slope(x, values(last, n)) for n in names}
    return found | {"mean_laplace": scaling.curve_slope(x, values(last, "full_laplace"))}


def interval(fit: scaling.Slope) -> str:
    """A slope for people."""
    return f"{fit.mean:.2f} [{fit.low:.2f}, {fit.high:.2f}]"


def table(by_source: dict[str, list[dict[str, Any]]], fitted: dict[str, dict[str, scaling.Slope]], octaves: int) -> str:
    """Errors of every width, then the slopes."""
    names = [f"{n}_loss" for n in ("full", "kfac", "diagonal", "average", "pooled")]
    rows = []
    for source, records in by_source.items():
        for r in records:
            cells = [common.mean_std(common.column([r], n)[0], 4) for n in [*names, "full_laplace"]]
            small = [f"{common.column([r], n)[0].mean():.1e}" for n in ("local_loss", "ntk_min")]
            moved = common.mean_std(common.column([r], "local_movement")[0], 3)
            cost = [f"{r['result']['run_seconds']:.1f}", f"{r['result'].get('memory_mib', np.nan):.1f}"]
            rows.append([source, r["settings"]["width"], *cells, *small, moved, *cost])
    header = "inputs|m|full|K-FAC|diagonal|average|pooled|Laplace error|local loss|NTK min|movement|s|MiB".split("|")
    text = "Mean ± std over seeds; s and MiB are for all seeds of a width.\n\n" + common.markdown_table(header, rows)
    text += f"\nSlopes against m over the widest {octaves} octaves: mean over seeds [95 % interval]\n\n"
    slopes = [[n, *(interval(found[n]) for found in fitted.values())] for n in fitted["gaussian"]]
    return text + common.markdown_table(["quantity", *by_source], slopes)


def draw_errors(axis: Any, records: list[dict[str, Any]], title: str) -> None:
    """Loss against width of every rule with its spread over seeds."""
    for rule, marker in zip(merges.RULES, "osD^", strict=True):
        loss = values(records, f"{rule}_loss")
        axis.plot(widths_of(records), loss.mean(axis=1), marker=marker, color=COLOURS[rule], label=LABELS[rule])
        axis.fill_between(
            widths_of(records), *np.quantile(loss, [0.1, 0.9], axis=1), color=COLOURS[rule], alpha=0.15, linewidth=0
        )
    local = values(records, "local_loss").mean(axis=1)
    axis.plot(widths_of(records), local, color=common.LOCAL, linestyle=":", label="local models, own data")
    axis.set(ylabel="global loss", title=title, ylim=(1e-5, 2))


def draw_laws(axis: Any, records: list[dict[str, Any]], found: dict[str, scaling.Slope]) -> None:
    """Laplace error and neuron movement: measured, fitted, and the predicted power through the widest point."""
    m = widths_of(records)
    for name, label in (("full_laplace", "Laplace error"), ("local_movement", "largest neuron movement")):
        fit, law = found[name], PREDICTED[name.split("_")[1]]
        middle = np.exp(np.log(values(records, name)).mean(axis=1))
        (line,) = axis.plot(m, middle, "o", label=f"{label}\nslope {interval(fit)}")
        fitted = fit.prefactor * m**fit.mean
        axis.plot(m, fitted, color=line.get_color())
        axis.plot(m, fitted[-1] * (m / m[-1]) ** law, ":", color=line.get_color(), label=f"predicted {law:g}")
    axis.set(title="fitted and predicted laws (Gaussian)", ylabel="geometric mean over seeds")


def figure(by_source: dict[str, list[dict[str, Any]]], fitted: dict[str, dict[str, scaling.Slope]]) -> Any:
    """Errors for each kind of inputs, the laws, the smallest tangent eigenvalue, and the cost."""
    fig, axes = common.figure(2, 3, width=4.2, height=3.4)
    titles = {
        "gaussian": "Gaussian inputs",
        "digits": "digits, 3 and 8",
        "fashion_mnist": "Fashion-MNIST, pullover and coat",
    }
    for axis in axes[0, len(by_source) :]:
        axis.set_visible(False)
    for axis, (source, records) in zip(axes[0], by_source.items(), strict=False):
        draw_errors(axis, records, titles[source])
    laws, ntk, cost = axes[1]
    draw_laws(laws, by_source["gaussian"], fitted["gaussian"])
    for source, records in by_source.items():
        ntk.plot(widths_of(records), values(records, "ntk_min").mean(axis=1), marker="o", label=titles[source])
    ntk.set(title="smallest NTK eigenvalue at the start")
    for name, label in (("run_seconds", "seconds, all seeds"), ("memory_mib", "MiB of working memory")):
        records = by_source["gaussian"]
        cost.plot(widths_of(records), [r["result"].get(name, np.nan) for r in records], marker="o", label=label)
    cost.set(title="cost (Gaussian)")
    for axis in axes.flat:
        axis.set(yscale="log", xlabel="width m")
        axis.set_xscale("log", base=2)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    for axis in (laws, ntk, cost):
        axis.legend(loc="best" if axis in (ntk, cost) else "lower left")
    return fig


def main() -> None:
    """Runs what is missing and reports."""
    jax.config.update("jax_enable_x64", True)
    settings = common.command_line(Settings, __doc__)
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=4, widest=11, real_widest=8, steps=500)
    exponents = {"gaussian": settings.widest, "digits": settings.real_widest, "fashion_mnist": settings.real_widest}
    exponents = {s: top for s, top in exponents.items() if top > 6}
    varied = {name: getattr(settings, name) for name in VARIED if getattr(settings, name) != getattr(Settings, name)}
    shared = {"steps": settings.steps, "first_seed": settings.seed, "seeds": settings.seeds, **varied}
    grid = [{"source": s, "width": 2**e, **shared} for s, top in exponents.items() for e in range(6, top + 1)]
    records = common.run_all(settings.out, grid, run, "widths")
    by_source = {s: [r for r in records if r["settings"]["source"] == s] for s in exponents}
    fitted = {s: fits(rs, settings.octaves) for s, rs in by_source.items()}
    summary: dict[str, Any] = {}
    for key, name in (("laplace", "full_laplace"), ("movement", "local_movement"), ("average_error", "average_loss")):
        fit = fitted["gaussian"][name]
        summary |= {f"{key}_slope": fit.mean, f"{key}_slope_ci": [fit.low, fit.high]}
    summary |= {
        "predicted": PREDICTED,
        "seeds": settings.seeds,
        "widths": {s: [r["settings"]["width"] for r in rs] for s, rs in by_source.items()},
        "seconds": {s: sum(r["seconds"] for r in rs) for s, rs in by_source.items()},
        "slopes": {s: {n: [f.mean, f.low, f.high] for n, f in found.items()} for s, found in fitted.items()},
    }
    text = table(by_source, fitted, settings.octaves)
    common.report(settings.out, text, summary, figure(by_source, fitted))


if __name__ == "__main__":
    main()
