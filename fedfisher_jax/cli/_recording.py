"""The record of a run while it runs: results go into it, into its file and to trackers as they come."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from .. import _files, data, report
from .._further import further_scores
from .._metrics import predict
from ..federate._references import Result
from ..merge import Merged
from ..report._measure import measure_of
from ..report._records import as_csv, as_json_lines, rows_of, rule_of
from ..report._summary import REFERENCES
from ..report.trackers import OnRecord
from ..silos import _model_file as model_file
from ._names import file_name
from ._run_words import words_on_data, words_on_result, words_on_settings
from ._settings import RunSettings, command_of, sampled_of
from ._world import World, with_rmse


@dataclasses.dataclass(frozen=True)
class Recording:
    """What a run has found so far, and who is told.

    Attributes:
        settings: the run's.
        here: its data and model.
        record: what `result.json` will hold; it grows.
        console: where notes are printed.
        listeners: trackers.
        first: whether this host is the one that writes files.
    """

    settings: RunSettings
    here: World
    record: dict[str, Any]
    console: Console
    listeners: Sequence[OnRecord]
    first: bool
    further: dict[str, Any] = dataclasses.field(default_factory=dict)  # scores of models that were just merged

    def save(self) -> None:
        """Write the record as it is."""
        if self.first:
            _files.write_json(self.settings.out / "result.json", self.record)

    def tell(self, one: Mapping[str, Any]) -> None:
        """Tell the trackers."""
        for listener in self.listeners:
            listener(one)

    def keep(self, name: str, merged: Merged) -> None:
        """Score a merged model further, before its result comes, and write it."""
        here = self.here
        outputs = predict(merged.apply or here.network.apply, merged.params, here.dataset.test_x)
        self.further[name] = further_scores(here.likelihood, outputs, here.dataset.test_y)
        if self.settings.save and self.first:
            _save(self.settings.out / "models", here, self.record, name, merged)

    def note(self, result: Result) -> None:
        """Put a result into the record, with words on it, and tell everybody."""
        more = self.further[result.name] if result.kind == "rule" else with_rmse(self.here, result.value)
        result = result._replace(value=result.value | more)
        _note(self.record, result)
        self.say(words_on_result(result, self.here))
        self.save()
        name = f"client {result.name}" if result.kind == "client" else result.name
        last = {"round": self.settings.rounds} if self.settings.rounds > 1 else {}  # in which it was found
        self.tell({"kind": result.kind, "name": name, **rule_of(result.value), **last})

    def say(self, words: Iterable[str]) -> None:
        """Print notes, and keep them."""
        for word in words:
            self.record["words"].append(word)
            self.console.print(f"note: {word}", markup=False)

    def plot_clients(self) -> None:
        """Draw who has how many examples of which class."""
        if not self.first:
            return
        counts, names = np.asarray(self.record["clients"]["label_counts"]), self.record["classes"]
        if self.settings.likelihood != "categorical":
            names = self.here.strata.names
        data.plot_label_counts(counts, self.settings.out / "clients", self.here.strata.what, names)

    def finish(self, rules: Iterable[str]) -> dict[str, Any]:
        """Write what there is at the end of a run, the record last, since nothing is done after it."""
        self.record["rules"] = {name: self.record["rules"][name] for name in rules}  # later ones come last
        self.record["complete"] = True
        record, out = _files.plain(self.record), self.settings.out
        if self.first:
            rows = list(rows_of(record))
            _files.write_atomically(out / "records.jsonl", as_json_lines(rows))
            _files.write_atomically(out / "records.csv", as_csv(rows))
            report.plot_accuracy(record, out / "accuracy")
            _files.write_json(out / "result.json", record)
        return record


def record_of(settings: RunSettings, here: World) -> dict[str, Any]:
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
        "words": words_on_settings(settings) + words_on_data(dataset, here.strata),
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
