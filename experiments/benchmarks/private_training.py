"""Training with privacy of every example against plain training, and against optax's aggregation of gradients.

An epoch of one client. "optax" is the usual way in JAX: gradients of all examples of a batch by `vmap`, then
`optax.contrib.differentially_private_aggregate`; its batches are of a fixed size, ours are Poisson samples of that mean
size. Seconds are the least of several runs that alternate in one process; clips and noise do not change them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fedfisher_jax as ff
from experiments.benchmarks import side_by_side
from experiments.lib import cells, common
from fedfisher_jax._examples import take
from fedfisher_jax.federate import Private

CLIP, NOISE = 0.1, 1.0


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        datasets: Names of `fedfisher list`: an MLP for digits, LeNet for images.
        examples: The client's number of examples, at most.
        batches: Mean numbers of examples in a step.
        rounds: Alternating runs.
    """

    datasets: tuple[str, ...] = ("digits", "fashion_mnist")
    examples: int = 12_000
    batches: tuple[int, ...] = (64, 256)
    rounds: int = 3


def by_optax(here: cells.World, batch: int, optimizer: optax.GradientTransformation) -> Callable:
    """An epoch of (parameters, data), with a gradient of each example of a batch."""
    private = optax.contrib.differentially_private_aggregate(CLIP, NOISE, jax.random.key(2))
    chain, apply, nll = optax.chain(private, optimizer), here.network.apply, ff.categorical().nll

    def epoch(params: Any, data: ff.Examples) -> Any:
        def step(number: Any, carry: tuple) -> tuple:
            p, state = carry
            drawn = take(data, number * batch, batch)
            slope = jax.grad(lambda p, x, y: nll(apply(p, x[None])[0], y))
            updates, state = chain.update(jax.vmap(slope, (None, 0, 0))(p, drawn.x, drawn.y), state, p)
            return optax.apply_updates(p, updates), state

        return jax.lax.fori_loop(0, data.size // batch, step, (params, chain.init(params)))[0]

    return epoch


def run(dataset: str, count: int, batch: int, rounds: int) -> dict[str, float]:
    """Seconds of an epoch."""
    here, optimizer = cells.world(dataset, cells.model_of(dataset)), optax.sgd(0.1, 0.9)
    x, y, *_ = here.arrays
    data, params = ff.examples(x[:count], y[:count]), here.network.init(jax.random.key(0))

    def ours(private: Private | None) -> Callable:
        training = ff.LocalTraining(here.network.apply, ff.categorical(), optimizer, 1, batch, private=private)
        return lambda params, data: ff.train(training, params, data, jax.random.key(1)).params

    ways = {"plain": ours(None), "private": ours(Private(CLIP, NOISE, 2 * batch + 32))}
    ways["optax"] = by_optax(here, batch, optimizer)

    def ready(way: Callable) -> Callable:
        compiled = jax.jit(way).lower(params, data).compile()
        jax.block_until_ready(compiled(params, data))
        return lambda: jax.block_until_ready(compiled(params, data))

    spent = side_by_side.alternate({name: ready(way) for name, way in ways.items()}, rounds)
    return {"examples": int(jnp.asarray(data.size)), **{name: min(times) for name, times in spent.items()}}


def main() -> None:
    """Runs what is missing and reports."""
    quick = {"datasets": ("digits",), "batches": (64,), "rounds": 1}
    settings = common.command_line(Settings, __doc__, quick=quick)
    fixed = {"count": settings.examples, "rounds": settings.rounds}
    grid = [{"dataset": d, "batch": b, **fixed} for d in settings.datasets for b in settings.batches]
    rows, summary = [], {}
    for record in common.run_all(settings.out, grid, run):
        found, (dataset, batch) = record["result"], (record["settings"][name] for name in ("dataset", "batch"))
        over_plain, under_optax = found["private"] / found["plain"], found["optax"] / found["private"]
        times = (f"{found[name]:.3f}" for name in ("plain", "private", "optax"))
        rows.append([dataset, found["examples"], batch, *times, f"{over_plain:.1f}×", f"{under_optax:.1f}×"])
        summary[f"{dataset}, batch {batch}"] = found | {"over_plain": over_plain, "optax_over_ours": under_optax}
    header = ["data", "examples", "batch", "plain, s", "private, s", "optax, s", "private / plain", "optax / private"]
    common.report(settings.out, common.markdown_table(header, rows), summary)


if __name__ == "__main__":
    main()
