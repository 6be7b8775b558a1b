"""Rounds that survive being killed: checkpoints, a line of metrics per round, and progress while they run."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._files import (
    content,
    only_writer,
    plain,
    read_json_lines,
    require_folder,
    require_same_run,
    write_atomically,
)
from ..merge import exchanges
from ._cohort import Cohort
from ._described import described, further_training_settings, program_of, training_settings
from ._over_devices import from_first
from .rounds import DIVERGED, Federation, State, step


def run_rounds(
    federation: Federation,
    state: State,
    cohort: Cohort,
    rounds: int,
    folder: str | os.PathLike[str],
    *,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    every: int = 1,
    on_record: Callable[[dict[str, Any]], None] | None = None,
    **how: Any,
) -> tuple[State, list[dict[str, Any]]]:
    """Run until `rounds` rounds are done, going on from the last checkpoint in `folder`.

    All hosts of a run call it; the first one writes, and the others begin from what it read.

    Args:
        federation: the settings.
        state: the state to begin from, before the first round or after some that are kept elsewhere (a warm-up's); a
            checkpoint must have its shapes.
        cohort: all registered clients.
        rounds: number of rounds in total, those of earlier calls and of `state` included.
        folder: where `checkpoints/` (orbax) and `rounds.jsonl`, a line per round, are kept. Delete it to start over.
        evaluate: params → scores of the server's model, noted every `every` rounds and after the last.
        every: rounds between evaluations and checkpoints.
        on_record: called with each round's line once it is written, for progress and trackers (`report.trackers`).
        how: options of `rounds.step`: epochs, strategy.

    Returns:
        The state after the last round, and all lines; numbers that are not finite are None.

    Raises:
        ValueError: `rounds` or `every` below 1, a folder that holds another run (what differs is named) or in which
            another process runs, a checkpoint that is further than `rounds`, or a model that is not finite after a
            round, of which nothing is written. Also where a line of `rounds.jsonl` is damaged; it is named.
    """
    for name, value in (("rounds", rounds), ("every", every)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    folder, first = Path(folder).resolve(), jax.process_index() == 0
    if first:
        require_folder(folder, "folder")
    identity = _identity(federation, state, cohort, how.get("epochs"))
    with only_writer(folder) if first else contextlib.nullcontext():
        begun = _begun(folder)
        if first or begun:  # else what was noted is of a first round that failed, and may be why it did
            may_change = () if begun else (*identity, "lengths")
            require_same_run(folder, identity, write=first, defaults=_further(federation), may_change=may_change)
        return _go_on(federation, state, cohort, rounds, folder, every, evaluate, on_record, how)


def _go_on(
    federation: Federation,
    state: State,
    cohort: Cohort,
    rounds: int,
    folder: Path,
    every: int,
    evaluate: Callable[[Any], dict[str, float]] | None,
    on_record: Callable[[dict[str, Any]], None] | None,
    how: dict[str, Any],
) -> tuple[State, list[dict[str, Any]]]:
    log, first, before = folder / "rounds.jsonl", jax.process_index() == 0, int(state.round)
    with _checkpoints(folder) if first else contextlib.nullcontext() as manager:
        if manager is not None:
            state = _latest(manager, state, folder)
        state = _restored(from_first(_storable(state)), state)
        number = int(state.round)
        if number > rounds:
            raise ValueError(f"rounds: got {rounds}, but {folder} holds {number}; delete it to start over")
        lines = [line for line in read_lines(log, before) if line["round"] <= number]
        if first and len(lines) < number - before:
            said = f"got {len(lines)} lines, expected {number - before}, since the checkpoint is of round {number}"
            raise ValueError(f"{log}: {said}; bring it back, or delete {folder} to start over")
        if first:
            write_atomically(log, "".join(json.dumps(line) + "\n" for line in lines).encode())
        while number < rounds:
            state, metrics = step(federation, state, cohort, **how)
            number += 1
            if not jnp.isfinite(metrics.moved):
                raise ValueError(f"round {number}: NaN or infinity after a {DIVERGED}")
            line: dict[str, Any] = {"round": number, **metrics._asdict()}
            noted = number % every == 0 or number == rounds
            if noted and evaluate is not None:
                line |= evaluate(state.params)
            line = plain(jax.device_get(line))
            lines.append(line)
            if first:
                with open(log, "a") as file:
                    file.write(json.dumps(line) + "\n")
            if noted and manager is not None:  # after its line, so that no checkpoint lacks one
                _keep(manager, number, state)
            if on_record is not None:
                on_record(line)
    return state, lines


def _begun(folder: Path) -> bool:
    """Whether any round was noted or kept."""
    log = folder / "rounds.jsonl"
    return (log.exists() and log.stat().st_size > 0) or any((folder / "checkpoints").glob("[0-9]*"))


def _checkpoints(folder: Path) -> Any:
    """Orbax's manager of the checkpoints in a folder, which waits for no other host."""
    import orbax.checkpoint as orbax  # here, since it costs more than the rest of this library's import

    options: dict[str, Any] = {"max_to_keep": 2, "enable_async_checkpointing": False}
    if jax.process_count() > 1:
        alone = {"primary_host": 0, "active_processes": {0}, "barrier_sync_key_prefix": "first"}
        options["multiprocessing_options"] = orbax.options.MultiprocessingOptions(**alone)
        options["create"] = False  # which orbax refuses where some hosts are left out
        (folder / "checkpoints").mkdir(exist_ok=True)
    return orbax.CheckpointManager(folder / "checkpoints", options=orbax.CheckpointManagerOptions(**options))


def _latest(manager: Any, state: State, folder: Path) -> State:
    """The state of the last checkpoint; `state` itself where there is none.

    Raises:
        ValueError: it cannot be read.
    """
    import orbax.checkpoint as orbax

    latest = manager.latest_step()
    if latest is None:
        return state
    like = jax.tree.map(orbax.utils.to_shape_dtype_struct, _storable(state))
    try:
        return _restored(manager.restore(latest, args=orbax.args.StandardRestore(like)), state)
    except Exception as error:  # of orbax and what it stores by, whose errors have no common class
        kept = folder / "checkpoints" / str(latest)
        raise ValueError(
            f"folder: {kept} cannot be read ({type(error).__name__}): delete it to go on from the checkpoint before, "
            f"or {folder} to start over"
        ) from error


def _keep(manager: Any, number: int, state: State) -> None:
    import orbax.checkpoint as orbax

    stored = _storable(state)
    if jax.process_count() > 1:  # orbax stores no arrays of one host among several, but NumPy's
        stored = jax.device_get(stored)
    manager.save(number, args=orbax.args.StandardSave(stored))


def _identity(federation: Federation, state: State, cohort: Cohort, epochs: Any) -> dict[str, str]:
    """What makes a run the run that it is, as texts that can be compared and named."""
    training = federation.training
    parts: dict[str, Any] = {
        **training_settings(training, state.params),
        "rule": federation.rule.name,
        "sampled": federation.sampled,
        "epochs": training.epochs if epochs is None else np.asarray(epochs).tolist(),
        "server optimizer": program_of(federation.optimizer, state.params),
        "variant": program_of(_corrected(federation, state), state.params),
        "start": _short(state.params),
        "key": np.asarray(jax.random.key_data(state.key)).tolist(),
        "clients": _short((cohort.rows, cohort.clients)),
        "data": _short((cohort.x, cohort.y)),
    }
    if federation.lengths:
        parts["lengths"] = federation.lengths
    return {name: str(value) for name, value in parts.items()} | _further(federation)


def _further(federation: Federation) -> dict[str, str]:
    """What folders of earlier versions do not name."""
    training, rule = federation.training, federation.rule
    settings = described([(part.measure, part.lift, part.solve, part.carry) for part in exchanges(rule)])
    return {
        **further_training_settings(training),
        "the rule's settings": hashlib.sha256(settings.encode()).hexdigest()[:12],
        "squares": described(training.squares or rule.squares),
        "barrier": described(federation.barrier),
    }


def _corrected(federation: Federation, state: State) -> Any:
    """A variant's local optimiser, in which its strengths stand; None without a variant."""
    variant, start = federation.variant, state.params
    if variant is None:
        return None
    return variant.optimizer(federation.training.optimizer, start, variant.own(start), variant.common(start))


def _short(tree: Any) -> str:
    return content(tree)[:12]


def read_lines(path: Path, before: int = 0) -> list[dict[str, Any]]:
    """Read the whole lines of a `rounds.jsonl` that begins after `before` rounds; a torn last one is left out.

    Raises:
        ValueError: a line is damaged or missing; it is named by its number.
    """
    lines = read_json_lines(path, "round")
    for number, line in enumerate(lines, start=before + 1):
        if type(line["round"]) is not int or line["round"] != number:
            raise ValueError(
                f"{path}: line {number - before}: got round {line['round']!s:.40}, expected {number}; mend or delete it"
            )
    return lines


def _storable(state: State) -> dict[str, Any]:
    """The state as arrays in a dictionary; parts that are empty are left out."""
    parts = state._replace(key=jax.random.key_data(state.key))._asdict()
    return {name: dict(enumerate(jax.tree.leaves(part))) for name, part in parts.items() if jax.tree.leaves(part)}


def _restored(stored: dict[str, Any], like: State) -> State:
    def part(name: str, value: Any) -> Any:
        leaves, tree = jax.tree.flatten(value)
        return jax.tree.unflatten(tree, [stored[name][number] for number in range(len(leaves))])

    raw = like._replace(key=jax.random.key_data(like.key))
    state = State(**{name: part(name, value) for name, value in raw._asdict().items()})
    return state._replace(key=jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(like.key)))
