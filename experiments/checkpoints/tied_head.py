"""Does curvature of a table that is the head, too, help a merge? The next byte of Python's standard library.

As `next_bytes`, with a transformer whose table of embeddings is its head, too. K-FAC has one Kronecker block for both
uses of the table; beside it stands K-FAC with a diagonal for the table, which it had where both uses were no layer.
Everything else is the same for both: models, examples, draws and the other layers' factors.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from experiments.checkpoints import next_bytes
from experiments.checkpoints.methods import Trained, Ways, averaged, measuring
from experiments.checkpoints.scoring import LABELS, found, over_seeds, report, scored
from experiments.lib import common
from fedfisher_jax.curvature import Capture

BLOCK, DIAGONAL = "fedfisher-kfac", "diagonal table"


def without_tied(captured: Capture, params: Any) -> Capture:
    """Leave diagonals to the weights that are read both ways, as if they were in no layer."""
    tied = [site for site in captured.sites if any(other.crossed for other in site.more)]
    leaves = [leaf for site in tied for leaf in site.layer.leaves]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    return dataclasses.replace(
        captured,
        sites=tuple(site for site in captured.sites if site not in tied),
        fallback=captured.fallback | {paths[leaf]: "read both ways" for leaf in leaves},
        fallback_leaves=tuple(sorted((*captured.fallback_leaves, *leaves))),
    )


def ways(trained: Trained, measured: int, key: jax.Array) -> Iterator[tuple[str, Ways]]:
    """The average, Fisher merge, and K-FAC with either kind of curvature for the table."""
    clients = measuring(trained, measured, "monte_carlo", key)
    yield "average", {"": lambda: averaged(trained)}
    yield "fisher-merge", {"": clients.merged(clients.sent("fisher-merge"), "fisher-merge")}
    yield BLOCK, clients.kfac()
    plain = dataclasses.replace(clients, captured=without_tied(clients.captured, trained.start))
    yield DIAGONAL, plain.kfac()


def run(seed: int, measured: int, width: int, **settings: Any) -> dict[str, Any]:
    """The merges of a seed."""
    models, key = next_bytes.trained(next_bytes.network_of(width, tied=True), seed, **settings)
    return scored(models, ways(models, measured, key))


def paired(results: Sequence[Mapping[str, Any]]) -> str:
    """Tell by how much the block is better than the diagonal, seed by seed: accuracy in points, loss in nats."""
    lines = []
    for kind, label in (("published", "published"), ("chosen", "chosen by validation")):
        (ours, nats), (theirs, other) = (found(results, kind, method) for method in (BLOCK, DIAGONAL))
        assert nats is not None and other is not None
        more, less = (ours - theirs).mean(1), (other - nats).mean(1)
        lines.append([label, common.mean_std(more, 2), common.mean_std(less, 4), " ".join(f"{d:+.2f}" for d in more)])
    columns = ["damping", "accuracy more", "loss less", "accuracy more, seed by seed"]
    return f"\n{LABELS[BLOCK]}, against {LABELS[DIAGONAL]}:\n\n" + common.markdown_table(columns, lines)


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(next_bytes.Settings, __doc__, quick=next_bytes.QUICK)
    results = over_seeds(settings, run)
    what = f"Accuracy of the next byte in %, {next_bytes.CLIENTS} clients, windows of {next_bytes.LENGTH}, tied head"
    report(settings.out, results, what, paired(results))


if __name__ == "__main__":
    main()
