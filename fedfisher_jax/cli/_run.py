"""`fedfisher run`: one federation by every rule, its record, figures and models."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
from rich.console import Console

from .. import _files, report
from ..federate import Simulation, cohort, compare
from ..federate._over_devices import require_same_everywhere
from ..merge import Rule
from ..report import trackers
from ..report.trackers import OnRecord
from ._finished import TRAINED, begun, found_in
from ._hosts import inside, joined, watch, who_is_here
from ._one_line import going_on
from ._progress import bars, stage
from ._recording import Recording, record_of
from ._rounds import run_over_rounds
from ._settings import RunSettings, check, words_of
from ._world import rules_of, world


def run(settings: RunSettings) -> dict[str, Any]:
    """Run one federation and show its table; returns the record that `result.json` holds.

    With `distributed`, a process of this host does it, which has said everything; the record is empty.
    """
    check(settings)
    if settings.distributed and not inside():
        watch([*words_of(settings), *(["--overwrite"] if settings.overwrite else [])])
        return {}
    with joined() if settings.distributed else contextlib.nullcontext():
        first = jax.process_index() == 0
        console = Console(stderr=True, quiet=not first)
        if settings.distributed:
            console.print(who_is_here(), markup=False)
        record, again = run_in(settings, console)
    if first:
        Console().print(report.result_table(record))
        if again:
            print(f"{settings.out}: this run is finished; --overwrite runs it again")
        else:
            print(
                f"{settings.out}/result.json, records.csv, accuracy.pdf and .png, clients.pdf and .png"
                + (", models/" if settings.save else "")
            )
    return record


def run_in(settings: RunSettings, console: Console) -> tuple[dict[str, Any], bool]:
    """Run one federation, with progress and notes on a console; the record, and whether it was finished before."""
    check(settings)
    with contextlib.ExitStack() as held:
        return _run(settings, console, held)


def _run(settings: RunSettings, console: Console, held: contextlib.ExitStack) -> tuple[dict[str, Any], bool]:
    first = jax.process_index() == 0
    here = world(settings)
    rules = rules_of(settings, here, settings.rules)
    out = _files.require_folder(settings.out)
    if first:
        held.enter_context(_files.only_writer(out))
    before = begun(settings, here.dataset, out, first)
    done = bool(before and before.get("complete"))
    found = found_in(before) if settings.rounds == 1 else {}
    for number in (done, len(found.get("rules", ()))):
        require_same_everywhere(number, f"out: got {out}, expected a folder that all hosts share")
    if before is not None and done:
        if first:
            (out / TRAINED).unlink(missing_ok=True)  # of a run that was killed in its last moment
        return before, True

    record = record_of(settings, here) | found
    for word in record["words"]:
        console.print(f"note: {word}", markup=False)
    listeners = [] if not first else [held.enter_context(opened) for opened in _trackers(settings, record)]
    recording = Recording(settings, here, record, console, listeners, first)
    recording.save()
    recording.plot_clients()
    if settings.rounds > 1:
        run_over_rounds(settings, here, rules, out, console, recording.note, recording.keep, recording.tell)
    else:
        _one_shot(recording, rules)
    record = recording.finish(rules)
    if first:
        (out / TRAINED).unlink(missing_ok=True)
    return record, False


def _trackers(settings: RunSettings, record: dict[str, Any]) -> Iterator[contextlib.AbstractContextManager[OnRecord]]:
    for name in settings.track:
        yield trackers.TRACKERS[name](settings.out / name, record["settings"])


def _one_shot(recording: Recording, rules: Mapping[str, Rule]) -> None:
    """Run what the record lacks; clients that are trained, and it, are kept in the folder.

    Raises:
        KeyboardInterrupt: the user's; it says how to go on.
    """
    settings, here, record = recording.settings, recording.here, recording.record
    pooled = settings.pooled and record["references"]["pooled"] is None
    if not pooled and record["rules"].keys() >= rules.keys():
        return
    dataset, everyone = here.dataset, cohort(here.x, here.y, here.parts)
    simulation = Simulation(here.training, here.start, everyone, dataset.test_x, dataset.test_y)
    how = {"pooled": pooled, "strategy": settings.strategy, "keep": recording.keep, "known": tuple(record["rules"])}
    how["checkpoint"] = settings.out / TRAINED
    kept = "every finished group of clients and rule is kept"
    with bars(recording.console) as progress, going_on(lambda: kept, settings.overwrite):
        for result in compare(simulation, rules, here.key, stage=partial(stage, progress), **how):
            recording.note(result)
