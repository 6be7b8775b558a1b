"""What `fedfisher fold --rank R` costs: accuracy against the Kronecker products that a region keeps of each layer.

Twenty silos of digits. All K-FAC payloads are merged; kept together as a region; cut to R products a layer in one
region, and in four regions of five silos each that are merged; and, in the size of R products, R silos' files alone,
those of the most examples. Beside them are rules that add, whose sum is one payload's size without any loss.
"""

import dataclasses
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib import cells, common, silo_files
from fedfisher_jax import categorical, cohort, data
from fedfisher_jax.cli._fold import FoldSettings, fold
from fedfisher_jax.cli._merge import MergeSettings, merge
from fedfisher_jax.federate import run_keys
from fedfisher_jax.merge import Rule, catalogue
from fedfisher_jax.payload import Limits
from fedfisher_jax.payload import _container as container
from fedfisher_jax.silos import _model_file as model_file

SILOS, REGIONS = 20, 4
STACKED, ADDITIVE = "fedfisher-kfac", ("fedavg", "fedfisher-diag", "regmean-kron")
RECALIBRATE = "recalibrate"


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        ranks: Products that are kept of each layer.
        alpha: Concentration of the Dirichlet split.
        epochs: Local epochs.
        seeds: Each draws split, start and training.
    """

    ranks: tuple[int, ...] = (1, 2, 4, 8)
    alpha: float = 0.1
    epochs: int = 30
    seeds: int = 3


@cache
def rule_of(name: str) -> tuple[Any, Rule]:
    """The network of digits and a rule for it, one object each."""
    network, captured = cells.captured_network("mlp", data.load("digits").train_x.shape[1:], 10)
    return network, catalogue.named_rule(name, network.apply, categorical(), offers={"captured": captured})


def merged(out: Path, start: Path, files: tuple[Path, ...]) -> Any:
    """The merged model's parameters."""
    silo_files.quietly(merge, MergeSettings(files, start, out))
    return model_file.read(out).params


def folded(out: Path, start: Path, files: tuple[Path, ...], rank: int | None) -> Path:
    """A region of these files."""
    silo_files.quietly(fold, FoldSettings(files, start, out, rank=rank))
    return out


def off(region: Path) -> float:
    """By how much of its norm the curvature of a region's worst layer is off at most."""
    header, _ = container.unpack(region.read_bytes(), Limits(), str(region))
    return max(d / k for d, k in zip(header["dropped"], header["kept"], strict=True))


def run(ranks: list[int], alpha: float, epochs: int, seed: int) -> dict[str, Any]:
    """One federation, every way to keep it: accuracy, bytes kept, the distance from the merge of all, the error."""
    digits, keys = data.load("digits"), run_keys(seed)
    test = jnp.asarray(digits.test_x), digits.test_y
    parts = data.split("dirichlet-client", digits.train_y, SILOS, seed=seed, alpha=alpha)
    who = cohort(jnp.asarray(digits.train_x), digits.train_y, parts, length=len(digits.train_y))
    network, stacked = rule_of(STACKED)
    training, found = cells.training(network, False, epochs), {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        kind = model_file.Kind("mlp", tuple(map(int, digits.train_x.shape[1:])), 10)
        start = base / "start.safetensors"
        model_file.write(start, kind, network.init(keys.init), "experiment")
        began = model_file.read(start).params
        files = silo_files.write(base / STACKED, start, stacked, who, keys, training)
        whole = merged(base / "all.safetensors", start, files)
        moved = distance(whole, began)

        def note(name: str, kept: tuple[Path, ...], start: Path = start, **more: float) -> Path:
            out = base / f"model-{len(found)}.safetensors"
            params = merged(out, start, kept)
            accuracy = float(np.mean(np.asarray(network.apply(params, test[0])).argmax(-1) == test[1]))
            size = sum(path.stat().st_size for path in kept) + more.pop("before", 0)
            gap = distance(params, whole) / moved
            found[name] = {"accuracy": 100 * accuracy, "bytes": size, "gap": gap, **more}
            return out

        note("all payloads", files)
        note("stack", (folded(base / "stack.safetensors", start, files, None),))
        by_size = [files[n] for n in np.argsort([-len(part) for part in parts], kind="stable")]
        for rank in ranks:
            one = folded(base / f"one{rank}.safetensors", start, files, rank)
            note(f"one region, rank {rank}", (one,), off=off(one))
        for rank in ranks:
            some = [base / f"region{rank}-{number}.safetensors" for number in range(REGIONS)]
            for number, region in enumerate(some):
                folded(region, start, files[number::REGIONS], rank)
            note(f"{REGIONS} regions, rank {rank}", tuple(some), off=max(map(off, some)))
        for rank in ranks:
            note(f"files of {rank}, the largest silos", tuple(by_size[:rank]))
        for name in ADDITIVE:
            sent = silo_files.write(base / name, start, rule_of(name)[1], who, keys, training)
            model = note(name, (folded(base / f"{name}.safetensors", start, sent, None),))
            if name == "fedavg":
                better = silo_files.write(base / RECALIBRATE, model, rule_of(RECALIBRATE)[1], who, keys, None)
                region = folded(base / "again.safetensors", model, better, None)
                note(f"fedavg, then {RECALIBRATE}", (region,), model, before=found[name]["bytes"])
    return found


def distance(first: Any, second: Any) -> float:
    """Euclidean, over all leaves."""
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, first, second)))


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 1, "epochs": 5, "ranks": (1, 4)})
    fixed = {"ranks": list(settings.ranks), "alpha": settings.alpha, "epochs": settings.epochs}
    seeds = range(settings.seed, settings.seed + settings.seeds)
    records = common.run_all(settings.out, [{**fixed, "seed": seed} for seed in seeds], run, "federations")
    results = [record["result"] for record in records]
    rows, summary = [], {}
    for name in results[0]:
        each = {key: [one[name][key] for one in results] for key in results[0][name]}
        summary |= {f"{name}: {key}": float(np.mean(value)) for key, value in each.items()}
        share = common.mean_std(each["off"], 1, 100) if "off" in each else ""
        size = f"{np.mean(each['bytes']) / 1000:.0f}"
        rows.append([name, size, common.mean_std(each["accuracy"]), common.mean_std(each["gap"], 3), share])
    header = ["what is kept", "kB", "accuracy (%)", "distance from the merge of all", "curvature off by at most (%)"]
    text = (
        f"Digits, MLP, {SILOS} silos, α = {settings.alpha:g}, {settings.epochs} local epochs; mean ± std over "
        f"{settings.seeds} seeds. Distances are relative to how far the merge of all K-FAC payloads is from the start; "
        "the curvature's error is that of the worst layer, relative to its norm.\n\n"
    )
    fig, axes = common.figure(width=4.8)
    for kind in ("one region, rank", f"{REGIONS} regions, rank", "files of"):
        shown = {rank: summary[name] for rank in settings.ranks if (name := _named(kind, rank)) in summary}
        axes[0, 0].plot(list(shown), list(shown.values()), "o-", label=kind.removesuffix(", rank"))
    axes[0, 0].axhline(summary["all payloads: accuracy"], color="black", linewidth=0.8, label="all payloads")
    axes[0, 0].set(xscale="log", xlabel="products a layer, or files", ylabel="accuracy (%)")
    axes[0, 0].legend()
    common.report(settings.out, text + common.markdown_table(header, rows), summary, fig)


def _named(kind: str, rank: int) -> str:
    return f"{kind} {rank}{', the largest silos' if kind == 'files of' else ''}: accuracy"


if __name__ == "__main__":
    main()
