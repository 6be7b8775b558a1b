"""Every rule over rounds, each in a folder of its own, from where the last call was stopped."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import Progress

from .._examples import Examples
from .._metrics import as_numbers, evaluate
from ..federate import (
    Cohort,
    Federation,
    Simulation,
    cohort,
    personalise,
    rounds,
    run_rounds,
    scores_at_clients,
)
from ..federate._over_devices import require_same_everywhere
from ..federate._references import Result, train_pooled
from ..federate._variants import Variant
from ..merge import Merged, Rule
from ..report._measure import ACCURACY, measure_of
from ..report.trackers import OnRecord
from ._clients import Pair, judged_apart
from ._local_training import variant
from ._names import file_name
from ._once import optimizer_of
from ._one_line import going_on
from ._progress import bars
from ._servers import server_of
from ._settings import RunSettings, sampled_of
from ._world import World, rules_of, with_rmse


class Setting(NamedTuple):
    """What all rules of a run have in common."""

    settings: RunSettings
    here: World
    everyone: Cohort
    variant: Variant | None
    folder: Path
    progress: Progress
    on_record: OnRecord

    def federation(self, name: str, rule: Rule) -> Federation:
        """The federation of a rule by its name, where its server may stand."""
        settings = self.settings
        sampled, server = sampled_of(settings, len(self.here.parts)), server_of(settings, name)
        how = self.variant, settings.barrier, settings.lengths
        return Federation(self.here.training, rule, sampled, server, *how)

    def start(self, federation: Federation) -> rounds.State:
        """The state before the first round."""
        return rounds.init(federation, self.here.start, len(self.here.parts), self.here.key.train)


def run_over_rounds(
    settings: RunSettings,
    here: World,
    rules: Mapping[str, Rule],
    out: Path,
    console: Console,
    note: Callable[[Result], None],
    keep: Callable[[str, Merged], None],
    on_record: OnRecord,
) -> None:
    """Run the warm-up once, and from it every rule; results and models are told as they are found.

    Raises:
        ValueError: as `run_rounds`; a rule that makes another network.
        KeyboardInterrupt: the user's; it says how to go on.
    """
    mine, judged = here.parts, here.held_out
    if settings.personalise and settings.held_out is None:
        judged = judged_apart(here.parts, here.data_seed)
        mine = [train for train, _ in judged]
    everyone = cohort(here.x, here.y, mine)
    corrected = variant(settings.local, settings.strength, settings)
    if settings.overwrite:
        if jax.process_index() == 0:
            _forget(out / "rounds")
        require_same_everywhere(True, "overwrite: expected it on all hosts")  # and no host looks before
    with bars(console) as progress:
        setting = Setting(settings, here, everyone, corrected, out / "rounds", progress, on_record)
        warm, before = _warm_up(setting) if settings.warm_up is not None else (None, {"rounds": []})
        for name, rule in rules.items():
            federation = setting.federation(name, rule)
            state = setting.start(federation)
            if warm is not None:
                state = _after(warm, state, server_of(settings, str(settings.warm_up)) is federation.optimizer)
            state, lines = _go_on(setting, name, federation, state, settings.rounds, f"rules/{file_name(name)}")
            value = before | {"rounds": [*before["rounds"], *lines], "diagnostics": lines[-1]["diagnostics"]}
            value |= _scores(here, state.params) | {"bits_up": _bits(federation, here)}
            at = scores_at_clients(here.training, state.params, everyone, strategy=settings.strategy)
            value["clients"] = at._asdict()
            if settings.personalise:
                value["personalised"] = _personalised(settings, here, state.params, judged, None)
            if settings.shots is not None:
                value["personalised_few"] = _personalised(settings, here, state.params, judged, settings.shots)
            keep(name, Merged(state.params, {}))
            note(Result("rule", name, value))
    if settings.pooled:
        note(Result("reference", "pooled", _pooled(settings, here, everyone)))


def _warm_up(setting: Setting) -> tuple[rounds.State, dict[str, Any]]:
    """The state after the warm-up, and what every rule's result begins with."""
    settings, here = setting.settings, setting.here
    ((name, rule),) = rules_of(settings, here, (str(settings.warm_up),)).items()
    federation, count = setting.federation(name, rule), settings.warm_up_rounds
    state, lines = _go_on(setting, f"warm-up by {name}", federation, setting.start(federation), count, "warm-up")
    return state, {"bits_up_warm_up": _bits(federation, here), "rounds": lines}


def _after(warm: rounds.State, fresh: rounds.State, same_server: bool) -> rounds.State:
    """The state after the warm-up for a rule: what the rule and another server keep between rounds begins afresh."""
    return warm._replace(carried=fresh.carried, optimizer=warm.optimizer if same_server else fresh.optimizer)


def _go_on(
    setting: Setting, name: str, federation: Federation, state: rounds.State, count: int, folder: str
) -> tuple[rounds.State, list[dict[str, Any]]]:
    task = setting.progress.add_task(name, total=count, completed=int(state.round))

    def done(line: dict[str, Any]) -> None:
        measure = measure_of([line])
        words = f"{name[:17]} {measure.text(line.get(measure.key)):>5}{' %' * (measure is ACCURACY)}"
        setting.progress.update(task, completed=line["round"], description=words)
        setting.on_record({"kind": "round", "name": name, **line})

    how: dict[str, Any] = {
        "evaluate": lambda params: _of_test(_scores(setting.here, params)),
        "on_record": done,
        "strategy": setting.settings.strategy,
    }
    with going_on(lambda: f"every finished round of {name} is kept", setting.settings.overwrite):
        found = run_rounds(federation, state, setting.everyone, count, setting.folder / folder, **how)
    setting.progress.update(task, completed=count)  # those of an earlier call, too
    return found


def _scores(here: World, params: Any) -> dict[str, float]:
    settings = here.network.apply, here.likelihood
    return with_rmse(here, as_numbers(evaluate(*settings, params, here.dataset.test_x, here.dataset.test_y)))


def _of_test(scores: dict[str, float]) -> dict[str, float]:
    """Scores for a line that has a loss already, of training."""
    return {"test_loss" if name == "loss" else name: value for name, value in scores.items()}


def _personalised(
    settings: RunSettings, here: World, params: Any, judged: list[Pair], shots: int | None
) -> dict[str, Any]:
    tuning = dataclasses.replace(here.training, epochs=settings.personalise)
    if settings.personalise_learning_rate is not None:
        rate = settings.personalise_learning_rate
        step = optimizer_of(settings.optimizer, rate, settings.momentum, settings.schedule)
        tuning = dataclasses.replace(tuning, optimizer=step)
    mine, tests = (cohort(here.x, here.y, [pair[side] for pair in judged]) for side in (0, 1))
    how = {"shots": shots, "strategy": settings.strategy}
    return personalise(tuning, params, mine, tests, here.key.measure, **how)._asdict()


def _pooled(settings: RunSettings, here: World, everyone: Cohort) -> dict[str, float]:
    longer = dataclasses.replace(here.training, epochs=settings.epochs * settings.rounds)
    simulation = Simulation(longer, here.start, everyone, here.dataset.test_x, here.dataset.test_y)
    return train_pooled(simulation, here.key.train)


def _bits(federation: Federation, here: World) -> int:
    few = Examples(here.x, here.y, jnp.zeros(1, jnp.int32), jnp.ones((), jnp.int32))
    return rounds.bits_up(federation, here.start, few)


def _forget(out: Path) -> None:
    """Remove the rounds of an earlier run: what `run_rounds` made, and nothing else."""
    for folder in [out / "warm-up", *(out / "rules").glob("*")]:
        if (folder / "run.json").exists():
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            for name in ("rounds.jsonl", "run.json"):
                (folder / name).unlink(missing_ok=True)
