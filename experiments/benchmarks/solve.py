"""The server's solve: conjugate gradients against the authors' 2000-step loop in PyTorch, on the authors' own factors.

Five LeNets and their Kronecker factors from the authors' run. Both minimise Q(θ) = Σ p_i (θ − θ_i)ᵀ F_i (θ − θ_i)
without damping; the ratio is that of the fewest iterations whose Q is at most theirs. The library's default, which adds
damping so that no labels are needed to stop early, is timed too; it minimises another function. The authors'
validation passes, which choose an iterate, are left out of their time.
"""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import authors_run, side_by_side
from experiments.benchmarks.side_by_side import Contender
from experiments.lib import common
from fedfisher_jax import solve
from fedfisher_jax.models import torch_layout

STEPS = 2000
ITERATIONS = (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 75, 100, 150, 200, 300, 500)
DEFAULT = "ours, default damping"


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        rounds: Alternating runs of every contender.
    """

    rounds: int = 5


def problem() -> tuple[Any, Any, Any]:
    """Stacked Fishers, stacked parameters, weights."""
    stack = lambda *leaves: jnp.stack(leaves)  # noqa: E731
    clients = range(authors_run.CLIENTS)
    fishers = jax.tree.map(stack, *map(authors_run.kronecker, clients))
    return (
        fishers,
        jax.tree.map(stack, *map(authors_run.params, clients)),
        jnp.asarray(authors_run.sizes(), jnp.float32),
    )


def quality(matrices: list[np.ndarray]) -> float:
    """Q at [out, in] matrices, relative to its value at the average, in float64 and by neither contender's code."""
    shares = (authors_run.sizes() / authors_run.sizes().sum())[:, None, None]
    found = reference = 0.0
    for (a, g, w), mine in zip(layers(), matrices, strict=True):
        for guess in (mine, np.sum(shares * w, axis=0)):
            gap = guess.astype(float) - w
            value = float(np.sum(shares * gap * (g.astype(float) @ gap @ a.astype(float))))
            found, reference = (found + value, reference) if guess is mine else (found, reference + value)
    return found / reference


def ours(iterations: int | None) -> Callable[[], dict[str, Any]]:
    """Contender: the default solver, or so many iterations without damping; it counts how often it was traced."""
    arguments, traced = problem(), []
    if iterations is None:
        solver = solve.conjugate_gradients()
    else:
        solver = solve.conjugate_gradients(damping=0.0, iterations=iterations, tolerance=0.0)

    @jax.jit
    def program(fishers: Any, models: Any, weights: Any) -> Any:
        traced.append(1)
        return solver(solve.objective(fishers, models, weights)).params

    def run() -> dict[str, Any]:
        found = jax.block_until_ready(program(*arguments))
        return {"found": matrices(found), "traced": len(traced)}

    return run


def layers() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per layer A, G and W as [out, in] of all clients, in PyTorch's layout."""
    everyone = range(authors_run.CLIENTS)
    factors, states = [authors_run.factors(i) for i in everyone], [authors_run.state(i) for i in everyone]
    result = []
    for name in authors_run.LAYERS:
        weights = [state[f"{name}.weight"] for state in states]
        matrices = np.stack([weight.reshape(weight.shape[0], -1) for weight in weights])
        result.append((np.stack([a[name] for a, _ in factors]), np.stack([g[name] for _, g in factors]), matrices))
    return result


def matrices(params: Any) -> list[np.ndarray]:
    """Our parameters as the loop has them."""
    state = torch_layout.to_torch(params)
    return [state[f"{name}.weight"].reshape(len(state[f"{name}.weight"]), -1) for name in authors_run.LAYERS]


def run(steps: int, rounds: int) -> dict[str, Any]:
    """The whole contest."""
    cores, shares = side_by_side.cores(), authors_run.sizes() / authors_run.sizes().sum()
    contenders = {}
    for batched in (False, True):
        for threads in sorted({1, cores}):
            name = f"torch, {'batched' if batched else 'as released'}, {threads} thread{'s' if threads > 1 else ''}"
            env = side_by_side.ONE_THREAD if threads == 1 else None
            contenders[name] = Contender("torch_side:server_loop", layers(), shares, steps, batched, threads, env=env)
    theirs = list(contenders)
    contenders[DEFAULT] = Contender("solve:ours", None)
    objectives = {}
    busy = side_by_side.load()
    with side_by_side.ready(contenders):
        objectives |= {name: quality(contenders[name].value()) for name in theirs}
        goal = min(objectives.values())
        for count in ITERATIONS:
            challenger = Contender("solve:ours", count)
            challenger.finish()
            mine, reached = f"ours, {count} iterations", quality(challenger.value()["found"])
            contenders[mine] = challenger
            if reached <= goal:
                break
            objectives[mine] = reached
            challenger.close()
            del contenders[mine]
        else:
            raise RuntimeError(f"no number of iterations up to {ITERATIONS[-1]} reached {goal}: {objectives}")
        objectives |= {mine: reached, DEFAULT: quality(contenders[DEFAULT].value()["found"])}
        seconds = side_by_side.alternate(contenders, rounds)
        traced = [contenders[name].value()["traced"] for name in (mine, DEFAULT)]
    best = side_by_side.fastest(seconds, theirs)
    return {
        "objectives": objectives,
        "milliseconds": {name: 1e3 * statistics.median(times) for name, times in seconds.items()},
        "best": best,
        "equal": mine,
        "ratio": side_by_side.ratio(seconds, mine, best),
        "default_ratio": side_by_side.ratio(seconds, DEFAULT, best),
        "traced_once": traced == [1, 1],
        "seconds": seconds,
        "load_before": busy,
    }


def main() -> None:
    """Runs what is missing and reports."""
    side_by_side.require("torch")
    settings = common.command_line(Settings, __doc__)
    grid = [{"steps": 200 if settings.quick else STEPS, "rounds": 3 if settings.quick else settings.rounds}]
    record = common.run_all(settings.out, grid, run)[0]
    found = record["result"]
    times, objectives = found["milliseconds"], found["objectives"]
    rows = [[name, f"{times[name]:.1f}", f"{objectives[name]:.6f}"] for name in times]
    text = f"{record['settings']['steps']} steps. Q is relative to the average's.\n\n"
    text += common.markdown_table(["solver", "milliseconds", "Q"], rows)
    text += f"\n{found['equal']} against {found['best']}: {side_by_side.show(found['ratio'])}; "
    text += f"default against it: {side_by_side.show(found['default_ratio'])}. Traced once: {found['traced_once']}.\n"

    fig, axes = common.figure(1, 1, width=6)
    axis = axes[0, 0]
    for name, colour in zip(times, common.COLOURS, strict=False):
        axis.plot(times[name], objectives[name], "o" if name.startswith("ours") else "s", color=colour, label=name)
    axis.set(xscale="log", xlabel="milliseconds", ylabel="Q relative to the average's", title="K-FAC, LeNet, 5 clients")
    axis.legend()
    summary = {
        "vs_2000_steps": found["ratio"]["median"] if record["settings"]["steps"] == STEPS else None,
        "default_vs_2000_steps": found["default_ratio"]["median"] if record["settings"]["steps"] == STEPS else None,
        "objective": {"ours": objectives[found["equal"]], "theirs": objectives[found["best"]]},
        "traced_once": found["traced_once"],
        "load_before": found["load_before"],
    }
    common.report(settings.out, text, summary, fig)


if __name__ == "__main__":
    main()
