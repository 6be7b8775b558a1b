"""Exact Fisher information per example: `federate.measure_clients` against nngeometry, the authors' library.

A trained LeNet of the authors' run at examples of its Fashion-MNIST clients; diagonal and Kronecker factors, each
checked to agree. nngeometry's best arrangement counts (one thread, all threads, one process per core), each at the
fastest of three batch sizes. "both" is what the library does where rules want both: one pass; in the same rounds each
is measured alone, and `both_vs_dearest` is how much longer both take than the dearer one. "skip" leaves out the
columns of the outputs' Fisher that together carry less than a 10⁻⁴ of its trace: no longer exact, so its difference is
shown and it is no part of the headline.
"""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import authors_run, side_by_side
from experiments.benchmarks.side_by_side import Contender, Team
from experiments.lib import common
from fedfisher_jax import Update, categorical, cohort, curvature, data, federate

CLIENTS = 4
STRUCTURES = {"diagonal": ("diagonal",), "kronecker": ("kronecker",), "both": ("diagonal", "kronecker")}
SKIP = 1e-4
# Multiplications per example of LeNet's forward pass, of the gradient at its layers' inputs (the first layer's is not
# needed), and of what a structure makes of them: T i² and T o² products per layer, or T i o.
LAYERS = ((576, 25, 6), (64, 150, 16), (1, 256, 120), (1, 120, 84), (1, 84, 10))  # positions, inputs, outputs
TORCH = ("nngeometry, 1 thread", "nngeometry, all threads", "nngeometry, a process per core")


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        rounds: Alternating runs of every contender.
        examples: Per client, of four clients.
    """

    rounds: int = 5
    examples: int = 512


@dataclasses.dataclass(frozen=True)
class MeasureAll:
    """A measure of several Fishers."""

    structures: tuple[str, ...]
    skip: float
    captured: curvature.Capture

    def __call__(self, update: Update, examples: Any, key: Any) -> dict[str, Any]:
        """Exact Fishers of one client."""
        del key
        apply = authors_run.NETWORK.apply
        return curvature.fishers(
            apply,
            categorical(),
            update.params,
            examples,
            structures=self.structures,
            skip=self.skip,
            captured=self.captured,
        )


def images(examples: int) -> list[np.ndarray]:
    """Examples of each client [n, 28, 28, 1]."""
    x = data.load("fashion_mnist").train_x
    return [x[authors_run.rows(client)[:examples]] for client in range(CLIENTS)]


def flop_per_example(structure: str, columns: int = 10) -> int:
    """Operations of the exact Fisher: products only, each layer's patches taken as given."""
    forward = sum(t * i * o for t, i, o in LAYERS)
    backward = columns * sum(t * i * o for t, i, o in LAYERS[1:])
    inputs, outputs = (
        sum(t * width**2 for t, width in pairs) for pairs in zip(*[((t, i), (t, o)) for t, i, o in LAYERS])
    )
    squares = sum(columns * t * i * o if t > 1 else i * o for t, i, o in LAYERS)
    found = {"diagonal": squares, "kronecker": inputs + columns * outputs}
    return 2 * (forward + backward + sum(found[name] for name in STRUCTURES[structure]))


def ours(structure: str, examples: int, skip: float) -> Callable[[], dict[str, Any]]:
    """Contender: all clients' Fishers."""
    x = jnp.asarray(np.concatenate(images(examples)))
    y = jnp.zeros(len(x), jnp.int32)
    who = cohort(x, y, np.split(np.arange(len(x)), CLIENTS))
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[authors_run.params(0)] * CLIENTS)
    captured = curvature.capture(authors_run.NETWORK.apply, authors_run.TEMPLATE, x)
    measure = MeasureAll(STRUCTURES[structure], skip, captured)

    def run() -> dict[str, Any]:
        found, report = federate.measure_clients(measure, Update(params), who, jax.random.key(0))
        first = {
            name: np.concatenate(
                [np.ravel(leaf[0]) for leaf in jax.tree.leaves(jax.vmap(lambda f: f.diagonal())(fisher))]
            )
            for name, fisher in found.items()
        }
        return {"strategy": report.strategy, "first": first}

    return run


def their_diagonal(structure: str, value: Any) -> np.ndarray:
    """What nngeometry found for the first client, as a diagonal in our order."""
    template = authors_run.state(0)
    if structure == "kronecker":
        flat = np.concatenate([np.outer(np.diag(g), np.diag(a)).ravel() for a, g in value])
    else:
        flat = value
    ends = np.cumsum([weight.size for weight in template.values()])[:-1]
    pieces = zip(template.items(), np.split(flat, ends), strict=True)
    state = {name: piece.reshape(weight.shape) for (name, weight), piece in pieces}
    tree = authors_run.torch_layout.from_torch(authors_run.TEMPLATE, state)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def run(structure: str, skip: float, examples: int, rounds: int, batches: list[int]) -> dict[str, Any]:
    """One structure."""
    cores, sets = side_by_side.cores(), [x.transpose(0, 3, 1, 2) for x in images(examples)]

    def theirs(which: list[int], threads: int) -> Contender:
        env = side_by_side.ONE_THREAD if threads == 1 else None
        arguments = (structure, authors_run.state(0), [sets[i] for i in which], batches, threads)
        return Contender("torch_side:fisher", *arguments, env=env)

    everyone = list(range(CLIENTS))
    contenders: dict[str, Contender | Team] = {"ours": Contender("fisher:ours", structure, examples, skip)}
    if structure != "both":
        contenders[TORCH[0]] = theirs(everyone, 1)
        if cores > 1:
            contenders[TORCH[1]] = theirs(everyone, cores)
            parts = np.array_split(everyone, min(cores, CLIENTS))
            contenders[TORCH[2]] = Team([theirs(part.tolist(), 1) for part in parts])
    else:
        contenders |= {alone: Contender("fisher:ours", alone, examples, skip) for alone in STRUCTURES[structure]}
    contenders["peak"] = Contender("side_by_side:matrix_product")
    busy = side_by_side.load()
    with side_by_side.ready(contenders):
        seconds = side_by_side.alternate(contenders, rounds)
        mine = contenders["ours"].value()  # pyright: ignore[reportAttributeAccessIssue]
        other = contenders[TORCH[0]].value() if TORCH[0] in contenders else None  # pyright: ignore[reportAttributeAccessIssue]
    peak = side_by_side.PEAK_FLOP / min(seconds.pop("peak"))
    mine_per_second = CLIENTS * examples / statistics.median(seconds["ours"])
    result: dict[str, Any] = {
        "share_of_peak": None if skip else mine_per_second * flop_per_example(structure) / peak,
        "milliseconds": {n: 1e3 * statistics.median(t) / (CLIENTS * examples) for n, t in seconds.items()},
        "strategy": mine["strategy"],
        "seconds": seconds,
        "load_before": busy,
    }
    if structure == "both":
        alone = zip(*[seconds[name] for name in STRUCTURES[structure]], strict=True)
        shares = [both / max(each) for both, each in zip(seconds["ours"], alone, strict=True)]
        result["vs_dearest"] = statistics.median(shares)
    if other is not None:
        best = side_by_side.fastest(seconds, [name for name in seconds if name != "ours"])
        expected = their_diagonal(structure, other["first"])
        gap = np.linalg.norm(mine["first"][structure] - expected) / np.linalg.norm(expected)
        result |= {"ratio": side_by_side.ratio(seconds, "ours", best), "best": best}
        result |= {"relative_difference": float(gap), "batch_size": other["batch_size"]}
    return result


def label_of(record: Any) -> str:
    """A row's name."""
    return record["settings"]["structure"] + (", skip" if record["settings"]["skip"] else "")


def main() -> None:
    """Runs what is missing and reports."""
    side_by_side.require("torch", "nngeometry")
    settings = common.command_line(Settings, __doc__)
    examples, rounds = (64, 2) if settings.quick else (settings.examples, settings.rounds)
    batches = [32, 64] if settings.quick else [32, 128, 512]
    one = {"examples": examples, "rounds": rounds, "batches": batches}
    grid = [{"structure": s, "skip": skip, **one} for skip in (0.0, SKIP) for s in STRUCTURES]
    records = common.run_all(settings.out, grid, run)

    fig, axes = common.figure(1, 1, width=5.4)
    axis, names, rows = axes[0, 0], ["ours", *TORCH], []
    for number, record in enumerate(records):
        found = record["result"]
        times = [found["milliseconds"].get(name) for name in names]
        cells = ["" if t is None else f"{t:.3f}" for t in times]
        ratio = side_by_side.show(found["ratio"]) if "ratio" in found else ""
        gap = f"{found['relative_difference']:.1e}" if "ratio" in found else ""
        share = f"{100 * found['share_of_peak']:.0f} %" if found["share_of_peak"] else ""
        rows.append([label_of(record), *cells, ratio, gap, share])
        for place, (name, time) in enumerate(zip(names, times, strict=True)):
            if time is not None:
                label = name if number == 0 else None
                axis.bar(number + 0.2 * (place - 1.5), time, 0.18, color=common.COLOURS[place], label=label)
    axis.set_xticks(range(len(records)), [label_of(record).replace(", ", "\n") for record in records])
    axis.set(ylabel="milliseconds per example", title="exact Fisher information of LeNet")
    axis.legend()
    text = f"Milliseconds per example, {CLIENTS} clients of {examples}; ratio to nngeometry's best, range over rounds; "
    text += "relative difference of the diagonals (l2). "
    dearer = records[2]["result"]["vs_dearest"]
    text += f"Both take {dearer:.2f} times as long as the dearer of them in the same rounds.\n\n"
    text += common.markdown_table(["structure", *names, "ratio", "difference", "share of peak"], rows)
    by_name = {label_of(record): record["result"] for record in records}
    summary = {
        **{f"{s}_vs_nngeometry": by_name[s]["ratio"]["median"] for s in ("diagonal", "kronecker")},
        **{f"{s}_skip_vs_nngeometry": by_name[f"{s}, skip"]["ratio"]["median"] for s in ("diagonal", "kronecker")},
        "both_vs_dearest": by_name["both"]["vs_dearest"],
        "skip": SKIP,
        "relative_difference": {n: found.get("relative_difference") for n, found in by_name.items()},
        "share_of_peak": {n: found["share_of_peak"] for n, found in by_name.items()},
        "milliseconds_per_example": {s: found["milliseconds"]["ours"] for s, found in by_name.items()},
        "load_before": {s: found["load_before"] for s, found in by_name.items()},
    }
    common.report(settings.out, text, summary, fig)


if __name__ == "__main__":
    main()
