"""Does it hold for other networks? The same diagnostics, matrix-free, for an MLP and a LeNet as they grow.

Two clients with ten images of two classes each, targets ±1, squared loss, full-batch gradient descent with a step in
units of the largest tangent eigenvalue. All layers are trained; the full Fisher is exact, in sample space.
"""

import dataclasses
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from experiments.theory import rules
from fedfisher_jax import as_matrix_products, data, models
from fedfisher_jax.theory import inputs, matrix_free, scaling

CLIENTS, EXAMPLES, STEP_SIZE = 2, 10, 0.1
LABELS = {rule: rules.LABELS[rule] for rule in ("full", "diagonal", "average")} | {"pooled": "pooled data"}
COLOURS = rules.COLOURS | {"pooled": common.REFERENCE}
NETWORKS = {
    "mlp": ("digits", (3, 8), "MLP 64-16w-16w-1 on digits"),
    "lenet": ("fashion_mnist", (0, 9), "LeNet × w on Fashion-MNIST"),
}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: Repetitions of the MLP.
        lenet_seeds: Repetitions of LeNet, whose initialisations differ more.
    """

    seeds: int = 8
    lenet_seeds: int = 12


@lru_cache
def images(source: str) -> tuple[np.ndarray, np.ndarray]:
    """Training images and labels."""
    loaded = data.load(source)
    return np.asarray(loaded.train_x), np.asarray(loaded.train_y)


@lru_cache
def network(name: str, width: int, shape: tuple[int, ...]) -> models.Network:
    """One of `NETWORKS` at a width, with one output and no biases."""
    options: dict[str, Any] = {"hidden": (16 * width, 16 * width)} if name == "mlp" else {"width": width}
    return models.build(name, shape, 1, use_bias=False, **options)


@partial(jax.jit, static_argnames=("name", "width", "shape"))
def diagnose(
    key: jax.Array, clients: matrix_free.ClientData, steps: jax.Array, name: str, width: int, shape: tuple[int, ...]
):
    """One run in float64."""
    net = network(name, width, shape)
    start = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), net.init(key))
    apply = as_matrix_products(net.apply) if name == "lenet" else net.apply
    return matrix_free.diagnose(apply, start, clients, steps, STEP_SIZE)


def run(network: str, width: int, steps: int, seed: int) -> dict[str, Any]:
    """One seed of one width."""
    source, classes, _ = NETWORKS[network]
    x, y = images(source)
    drawn = inputs.images(jax.random.key(seed), x.astype(np.float64), y, classes, CLIENTS, EXAMPLES)
    shape = x.shape[1:]
    pictures = drawn.x.reshape(CLIENTS, EXAMPLES, *shape) * np.prod(shape) ** 0.5  # pixels of mean square one
    clients = matrix_free.ClientData(pictures, drawn.y[..., None], drawn.weights)
    found = diagnose(
        jax.random.fold_in(jax.random.key(seed), width), clients, jnp.asarray(steps), network, width, shape
    )
    result = {k: v for k, v in found._asdict().items() if k not in ("errors", "eigenvalues")}
    for rule, error in found.errors.items():
        result |= {f"{rule}_{name}": value for name, value in error._asdict().items()}
    return result


def values(records: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Widths, and one result over widths and seeds [widths, seeds]."""
    widths = sorted({r["settings"]["width"] for r in records})
    return np.array(widths, float), np.stack([common.column(records, name, width=w) for w in widths])


def main() -> None:
    """Runs what is missing and reports."""
    jax.config.update("jax_enable_x64", True)
    settings = common.command_line(Settings, __doc__)
    sizes = {"mlp": (1, 2, 4, 8, 16, 32), "lenet": (1, 2, 4)}
    seeds, steps = {"mlp": settings.seeds, "lenet": settings.lenet_seeds}, {"mlp": 3000, "lenet": 300}
    if settings.quick:
        sizes, seeds, steps = {"mlp": (1, 4), "lenet": (1, 2)}, {"mlp": 2, "lenet": 2}, {"mlp": 1000, "lenet": 20}
    grid = [
        {"network": n, "width": w, "steps": steps[n], "seed": settings.seed + s}
        for n, widths in sizes.items()
        for w in widths
        for s in range(seeds[n])
    ]
    records = common.run_all(settings.out, grid, run)
    by_network = {n: [r for r in records if r["settings"]["network"] == n] for n in sizes}

    fig, axes = common.figure(1, 3, width=4.2, height=3.4)
    rows, slopes = [], {}
    for axis, (name, rs) in zip(axes[0], by_network.items(), strict=False):
        for rule, marker in zip(LABELS, "oD^s", strict=True):
            widths, loss = values(rs, f"{rule}_loss")
            axis.plot(widths, np.median(loss, axis=1), marker=marker, color=COLOURS[rule], label=LABELS[rule])
            axis.fill_between(widths, loss.min(axis=1), loss.max(axis=1), color=COLOURS[rule], alpha=0.13, linewidth=0)
        widths, local = values(rs, "local_loss")
        axis.plot(widths, np.median(local, axis=1), ":", color=common.LOCAL, label="local models, own data")
        axis.set(title=NETWORKS[name][2], ylabel="global loss, median and range", ylim=(1e-4, 2))
        for quantity in ("full_laplace", "local_movement", "average_laplace", "diagonal_laplace"):
            slopes[f"{name}: {quantity}"] = scaling.loglog_slope(*values(rs, quantity))
        widths, laplace = values(rs, "full_laplace")
        axes[0, 2].plot(widths, np.median(laplace, axis=1), "o-", label=f"{name}: Laplace error of full")
        widths, moved = values(rs, "local_movement")
        axes[0, 2].plot(widths, np.median(moved, axis=1), "s--", label=f"{name}: relative movement")
        names = [*(f"{rule}_loss" for rule in LABELS), "local_loss", "full_laplace", "local_movement"]
        for i, w in enumerate(widths):
            cells = [f"{np.median(values(rs, n)[1][i]):.3g}" for n in names]
            seconds = np.mean([r["seconds"] for r in rs if r["settings"]["width"] == w])
            rows.append([name, int(w), *cells, f"{seconds:.1f}"])
    axes[0, 2].set(title="how close to linear")
    axes[0, 2].legend(fontsize=7)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    for axis in axes[0]:
        axis.set(yscale="log", xlabel="width multiplier w")
        axis.set_xscale("log", base=2)

    header = ["network", "w", *LABELS, "local", "Laplace error", "movement", "s per seed"]
    text = "Medians over seeds.\n\n" + common.markdown_table(header, rows)
    text += "\nSlopes against w, all widths\n\n" + common.markdown_table(
        ["quantity", "slope [95 %]"], [[n, f"{s.mean:.2f} [{s.low:.2f}, {s.high:.2f}]"] for n, s in slopes.items()]
    )
    summary = {
        "slopes": {n: [s.mean, s.low, s.high] for n, s in slopes.items()},
        "settings": {"seeds": seeds, "steps": steps, "widths": sizes},
        "seconds": sum(r["seconds"] for r in records),
    }
    common.report(settings.out, text, summary, fig)


if __name__ == "__main__":
    main()
