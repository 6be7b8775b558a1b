"""Groups of clients one after the other, with a checkpoint after each, from which a killed run goes on."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._files import content, require_file, write_atomically
from .._trees import pick
from ._map_clients import CohortReport, report_of
from ._over_devices import require_same_everywhere

PyTree = Any
Reports = list[tuple[CohortReport, float]]  # of each group, with its client-steps


class Checkpoint(NamedTuple):
    """A file of the clients of a fold that are done."""

    path: Path | None  # none is kept
    mark: str  # of what makes the fold what it is
    shape: PyTree  # of one client's result


def checkpoint_of(
    path: str | os.PathLike[str] | None, how: str, function: Callable, shared: PyTree, clients: PyTree
) -> Checkpoint:
    """Name the checkpoint of a fold, if there is to be one.

    Args:
        path: the file.
        how: what its bits depend on, beside the arrays.
        function: as in `fold_clients`; also `shared` and `clients`.
        shared: what is noted, with `clients`, by a hash.
        clients: with a leading client axis.

    Raises:
        ValueError: its folder is not there or cannot be written to.
    """
    if path is None:
        return Checkpoint(None, "", None)
    require_file(path, name="checkpoint")
    shape = jax.eval_shape(function, shared, pick(clients, 0))
    return Checkpoint(Path(path), content({how: (shared, clients, shape)}), shape)


def stacked_on(summary: Any, result: Any) -> np.ndarray:
    """Join the arrays of clients [m, ...] and of further ones [n, ...], on the host."""
    return np.concatenate([summary, result])


def in_groups(
    run: Callable[[np.ndarray], tuple[PyTree, CohortReport, float]],
    join: Callable[[Any, Any], Any],
    count: int,
    group: int,
    checkpoint: Checkpoint,
    done: Callable[[int], None] | None = None,
    found: Callable[[int], None] | None = None,
) -> tuple[PyTree, CohortReport]:
    """Run groups of clients one after the other, from the first one that a checkpoint lacks.

    Args:
        run: the clients' places → their result, how they ran, and their steps.
        join: a leaf so far, and the next group's → both.
        count: number of clients.
        group: clients in a group; the last has fewer where it does not divide their number.
        checkpoint: where they are kept.
        done: called with the number of clients that just finished.
        found: called with the number of clients that the checkpoint holds, before others run.
    """
    finished, summary, reports = _read(checkpoint)
    if checkpoint.path:
        words = f"checkpoint: got {checkpoint.path}, expected a file that all hosts share"
        require_same_everywhere(finished, words)
    if found and finished:
        found(finished)
    for start in range(finished, count, group):
        rows = np.arange(start, min(start + group, count))
        result, report, steps = run(rows)
        summary = result if summary is None else jax.tree.map(join, summary, result)
        reports.append((report, steps))
        _write(checkpoint, start + len(rows), summary, reports)
        if done:
            done(len(rows))
    return jax.tree.map(jnp.asarray, summary), report_of(reports)


def _write(checkpoint: Checkpoint, finished: int, summary: PyTree, reports: Reports) -> None:
    if checkpoint.path is None or jax.process_index() != 0:
        return
    buffer = io.BytesIO()
    leaves: dict[str, Any] = {f"leaf{number}": np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(summary))}
    about = {"mark": checkpoint.mark, "finished": finished, "reports": json.dumps(reports)}
    np.savez(buffer, **{name: np.array(value) for name, value in about.items()}, **leaves)
    write_atomically(checkpoint.path, buffer.getvalue())


def _read(checkpoint: Checkpoint) -> tuple[int, PyTree, Reports]:
    """How many clients a checkpoint holds, their summary, and how they ran."""
    path, mark, shape = checkpoint
    if path is None or not path.exists():
        return 0, None, []
    leaves, tree = jax.tree.flatten(shape)
    try:
        with np.load(path, allow_pickle=False) as file:
            found, finished = str(file["mark"]), int(file["finished"])
            stored = [file[f"leaf{number}"] for number in range(len(leaves))]
            reports: Reports = [(CohortReport(*report), work) for report, work in json.loads(str(file["reports"]))]
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"checkpoint: {path} is no checkpoint of this version ({error}); delete it or name another"
        ) from error
    if found != mark:
        others = "other clients, another training or another grouping"
        raise ValueError(f"checkpoint: {path} belongs to {others}; delete it or name another")
    summary = [a.view(leaf.dtype) if a.dtype.kind == "V" else a for a, leaf in zip(stored, leaves, strict=True)]
    return finished, jax.tree.unflatten(tree, summary), reports  # numpy's files know no bfloat16
