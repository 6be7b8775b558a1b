"""`fedfisher run`: one federation by every rule, its record, figures and models."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from .. import _files, data, report
from .._further import further_scores
from .._metrics import predict
from ..federate import Simulation, cohort, compare
from ..federate._one_shot import Result
from ..federate._over_devices import require_same_everywhere
from ..merge import Merged
from ..report import trackers
from ..report._measure import measure_of
from ..report._records import as_csv, as_json_lines, rows_of, rule_of
from ..report._summary import REFERENCES
from ..report.trackers import OnRecord
from ..silos import _model_file as model_file
from ._finished import TRAINED, begun, found_in
from ._hosts import inside, joined, watch, who_is_here
from ._names import file_name
from ._one_line import going_on
from ._progress import bars, stage
from ._rounds import run_over_rounds
from ._run_words import words_on_data, words_on_result
from ._settings import RunSettings, check, command_of, sampled_of, words_of
from ._world import World, rules_of, with_rmse, world


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

    record = _record_of(settings, here) | found
    for word in record["words"]:
        console.print(f"note: {word}", markup=False)

    listeners = [] if not first else [held.enter_context(opened) for opened in _trackers(settings, record)]

    def save() -> None:
        if first:
            _files.write_json(out / "result.json", record)

    def on_record(one: Mapping[str, Any]) -> None:
        for listener in listeners:
            listener(one)

    further: dict[str, Any] = {}

    def keep(name: str, merged: Merged) -> None:
        outputs = predict(merged.apply or here.network.apply, merged.params, here.dataset.test_x)
        further[name] = further_scores(here.likelihood, outputs, here.dataset.test_y)
        if settings.save and first:
            _save(out / "models", here, record, name, merged)

    def note(result: Result) -> None:
        more = further[result.name] if result.kind == "rule" else with_rmse(here, result.value)
        result = result._replace(value=result.value | more)
        _note(record, result)
        words = words_on_result(result, here)
        record["words"] += words
        for word in words:
            console.print(f"note: {word}", markup=False)
        save()
        on_record({"kind": result.kind, "name": _named(result), **rule_of(result.value), **_last(settings)})

    save()
    if first:
        counts, names = np.asarray(record["clients"]["label_counts"]), record["classes"]
        if settings.likelihood != "categorical":
            names = here.strata.names
        data.plot_label_counts(counts, out / "clients", here.strata.what, names)
    if settings.rounds > 1:
        run_over_rounds(settings, here, rules, out, console, note, keep, on_record)
    else:
        _one_shot(settings, here, rules, record, console, note, keep)

    record["rules"] = {name: record["rules"][name] for name in rules}  # those that a run was asked for later come last
    record["complete"] = True
    record = _files.plain(record)
    if first:
        rows = list(rows_of(record))
        _files.write_atomically(out / "records.jsonl", as_json_lines(rows))
        _files.write_atomically(out / "records.csv", as_csv(rows))
        report.plot_accuracy(record, out / "accuracy")
    save()  # last, since nothing is done after it
    if first:
        (out / TRAINED).unlink(missing_ok=True)
    return record, False


def _trackers(settings: RunSettings, record: dict[str, Any]) -> Iterator[contextlib.AbstractContextManager[OnRecord]]:
    for name in settings.track:
        yield trackers.TRACKERS[name](settings.out / name, record["settings"])


def _named(result: Result) -> str:
    return f"client {result.name}" if result.kind == "client" else result.name


def _last(settings: RunSettings) -> dict[str, int]:
    """The round in which a result was found, where there are rounds."""
    return {"round": settings.rounds} if settings.rounds > 1 else {}


def _one_shot(
    settings: RunSettings,
    here: World,
    rules: Any,
    record: dict[str, Any],
    console: Console,
    note: Callable[[Result], None],
    keep: Callable[[str, Merged], None],
) -> None:
    """Run what the record lacks; clients that are trained, and it, are kept in the folder.

    Raises:
        KeyboardInterrupt: the user's; it says how to go on.
    """
    pooled = settings.pooled and record["references"]["pooled"] is None
    if not pooled and record["rules"].keys() >= rules.keys():
        return
    dataset, everyone = here.dataset, cohort(here.x, here.y, here.parts)
    simulation = Simulation(here.training, here.start, everyone, dataset.test_x, dataset.test_y)
    how = {"pooled": pooled, "strategy": settings.strategy, "keep": keep, "known": tuple(record["rules"])}
    how["checkpoint"] = settings.out / TRAINED
    kept = "every finished group of clients and rule is kept"
    with bars(console) as progress, going_on(lambda: kept, settings.overwrite):
        for result in compare(simulation, rules, here.key, stage=partial(stage, progress), **how):
            note(result)


def _record_of(settings: RunSettings, here: World) -> dict[str, Any]:
    """What is known before any training."""
    dataset, size = here.dataset, sum(leaf.size for leaf in jax.tree.leaves(here.start))
    kinds = dataset.num_classes if settings.likelihood == "categorical" else len(here.strata.names)
    counts = data.label_counts(here.strata.labels, here.parts, kinds)
    return {
        "settings": dataclasses.asdict(settings) | {"data_seed": here.data_seed},
        "command": command_of(settings),
        "sampled": len(here.parts) if settings.rounds == 1 else sampled_of(settings, len(here.parts)),
        "preset": _preset_note(settings),
        "seed": settings.seed,
        "versions": report.versions(),
        "parameters": size,
        "fallback": here.captured.fallback,
        "fedavg_bits": 32 * size,
        "inputs": None if dataset.scaling is None else dataset.scaling.plain(),
        "classes": dataset.classes,
        "strata": None if settings.likelihood == "categorical" else here.strata._asdict() | {"labels": None},
        "clients": {"sizes": [len(part) for part in here.parts], "label_counts": counts},
        "rules": {},
        "references": dict.fromkeys(REFERENCES),
        "seconds": {},
        "words": words_on_data(dataset, here.strata),
        "complete": False,
    }


def _note(record: dict[str, Any], result: Result) -> None:
    """Put a result in its place in the record."""
    if result.kind == "training":
        record["seconds"]["train"], record["cohort"] = result.value["seconds"], result.value["cohort"]
        record["clients"]["own"] = result.value["own"]
    elif result.kind == "client":
        measure = measure_of([result.value])
        record["clients"].setdefault(measure.plural, []).append(result.value[measure.key])
    else:
        record["rules" if result.kind == "rule" else "references"][result.name] = result.value


def _save(folder: Path, here: World, record: dict[str, Any], name: str, merged: Merged) -> None:
    """Write a merged model; one of another network than the clients' has no file, and a word says so."""
    if merged.apply is not None:
        record["words"].append(f"{name}: it makes another network, for which there is no model file")
        return
    folder.mkdir(exist_ok=True)
    arrays = jax.tree.map(np.asarray, merged.params)
    model_file.write(
        folder / f"{file_name(name)}.safetensors",
        here.kind,
        arrays,
        f"run, {name}"[:200],
        here.scaling,
        here.dataset.classes if len(here.dataset.classes or ()) == here.kind.outputs else None,
    )


def _preset_note(settings: RunSettings) -> str | None:
    if settings.preset != "paper":
        return None
    return (
        "the authors' settings: 2000 steps of their server loop at rate 0.01, the iterate (of dense, the student) "
        "picked by accuracy on 500 labelled training examples; their 16-bit quantisation is applied by regmean alone"
    )
