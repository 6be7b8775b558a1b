"""A whole model's low-rank Fisher: by the Fisher's rows, kept, against passes over the data for every product.

One client's 600 examples, LeNet, rank 10, as in a round of FIPA on the whole model. Both ways give the same subspace to
rounding; seconds are the least of several runs that alternate in one process.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import side_by_side
from experiments.lib import cells, common
from fedfisher_jax import categorical, curvature, examples
from fedfisher_jax.curvature import Subspace, _kept_rows


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list`.
        examples: The client's number of examples.
        rank: Eigenpairs.
        rounds: Alternating runs.
    """

    dataset: str = "fashion_mnist"
    examples: int = 600
    rank: int = 10
    rounds: int = 3


EFFORTS = {"no power step, two vectors more": (2, 0), "one power step, five vectors more": (5, 1)}


def program(dataset: str, count: int, effort: Subspace, room: int) -> Callable[[], Any]:
    """The Fisher, compiled with so much room for rows: 0 leaves none."""
    here = cells.world(dataset, cells.model_of(dataset))
    x, y, *_ = here.arrays
    params, data = here.network.init(jax.random.key(0)), examples(x[:count], y[:count])

    def estimate(params: Any, data: Any, key: jax.Array) -> Any:
        options = {"structure": "low_rank", "subspace": effort, "key": key}
        return curvature.fisher(here.network.apply, categorical(), params, data, **options)

    before, _kept_rows.ROOM = _kept_rows.ROOM, room
    try:
        compiled = jax.jit(estimate).lower(params, data, jax.random.key(1)).compile()
    finally:
        _kept_rows.ROOM = before
    return lambda: jax.block_until_ready(compiled(params, data, jax.random.key(1)))


def run(dataset: str, count: int, rank: int, effort: str, rounds: int) -> dict[str, Any]:
    """Seconds of both ways, and how far the largest eigenvalues are apart, relative to the first."""
    subspace = Subspace(rank, *EFFORTS[effort])
    programs = {
        "rows": program(dataset, count, subspace, _kept_rows.ROOM),
        "passes": program(dataset, count, subspace, 0),
    }
    values = {name: np.asarray(run().values) for name, run in programs.items()}
    spent = side_by_side.alternate(programs, rounds)
    gap = float(np.max(np.abs(values["rows"] - values["passes"])) / np.max(values["passes"]))
    return {"seconds": {name: min(times) for name, times in spent.items()}, "gap": gap}


def main() -> None:
    """Runs what is missing and reports."""
    quick = {"dataset": "digits", "examples": 40, "rank": 2, "rounds": 1}
    settings = common.command_line(Settings, __doc__, quick=quick)
    fixed = {"dataset": settings.dataset, "count": settings.examples, "rank": settings.rank, "rounds": settings.rounds}
    rows, summary = [], {}
    for record in common.run_all(settings.out, [{**fixed, "effort": effort} for effort in EFFORTS], run):
        effort, found = record["settings"]["effort"], record["result"]
        old, new = found["seconds"]["passes"], found["seconds"]["rows"]
        rows.append([effort, f"{old:.2f}", f"{new:.2f}", f"{old / new:.1f}×", f"{found['gap']:.0e}"])
        summary[effort] = found
    header = ["", "by passes, s", "by rows, s", "ratio", "largest gap of eigenvalues"]
    common.report(settings.out, common.markdown_table(header, rows), summary)


if __name__ == "__main__":
    main()
