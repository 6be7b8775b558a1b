"""Every rule over rounds, each in a folder of its own, from where the last call was stopped."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from .._examples import Examples
from .._metrics import as_numbers, evaluate
from ..federate import Cohort, Federation, Simulation, cohort, payload_bits, personalise, rounds, run_rounds
from ..federate._one_shot import Result, train_pooled
from ..federate._variants import Variant
from ..merge import Merged, Rule, Update, exchanges
from ._local_training import optimizer, variant
from ._names import file_name
from ._one_line import Terminated
from ._progress import bars
from ._settings import RunSettings, sampled_of
from ._world import World, rules_of

HELD_OUT = 0.2  # of a client's examples, where the model is personalised


def run_over_rounds(
    settings: RunSettings,
    here: World,
    rules: Mapping[str, Rule],
    out: Path,
    console: Console,
    note: Callable[[Result], None],
    keep: Callable[[str, Merged], None],
) -> None:
    """Run the warm-up once, and from it every rule; results and models are told as they are found.

    Raises:
        ValueError: as `run_rounds`; a rule that makes another network.
        KeyboardInterrupt: the user's; it says how to go on.
    """
    mine, held_out = _held_out(settings, here)
    everyone = cohort(here.x, here.y, mine)
    corrected = variant(settings.local, settings.strength, settings)
    step = settings.server_optimizer
    server = None if step is None else optimizer("server_optimizer", step, settings.server_learning_rate, None)

    def federation(rule: Rule) -> Federation:
        sampled = sampled_of(settings, len(mine))
        return Federation(here.training, rule, sampled, server, corrected, settings.barrier)

    if settings.overwrite:
        _forget(out)
    with bars(console) as progress:

        def go_on(name: str, rule: Rule, state: Any, count: int, folder: Path) -> tuple[Any, list[dict[str, Any]]]:
            task = progress.add_task(name, total=count)

            def done(line: dict[str, Any]) -> None:
                now = f"{name[:18]} {100 * line['accuracy']:5.1f} %" if "accuracy" in line else name
                progress.update(task, completed=line["round"], description=now)

            how: dict[str, Any] = {"evaluate": lambda params: _of_test(_scores(here, params)), "done": done}
            try:
                return run_rounds(federation(rule), state, everyone, count, folder, strategy=settings.strategy, **how)
            except KeyboardInterrupt as stop:
                kind = Terminated if isinstance(stop, Terminated) else KeyboardInterrupt
                raise kind(f"every finished round of {name} is kept; the same command goes on from there") from None

        first, lines = None, []
        if settings.warm_up is not None:
            first = rules_of(settings, here, (settings.warm_up,))[settings.warm_up]
            state = rounds.init(federation(first), here.start, len(mine), here.key.train)
            name = f"warm-up by {settings.warm_up}"
            warm, lines = go_on(name, first, state, settings.warm_up_rounds, out / "rounds" / "warm-up")
        else:
            warm = None
        for name, rule in rules.items():
            if warm is None:
                state = rounds.init(federation(rule), here.start, len(mine), here.key.train)
            else:  # its own count of rounds, and so its own draws
                key = jax.random.fold_in(warm.key, settings.warm_up_rounds)
                state = warm._replace(round=jnp.zeros((), jnp.int32), key=key)
            left = settings.rounds - settings.warm_up_rounds
            state, own = go_on(name, rule, state, left, out / "rounds" / "rules" / file_name(name))
            own = [line | {"round": line["round"] + settings.warm_up_rounds} for line in own]
            value = _scores(here, state.params) | {"bits_up": _bits(rule, corrected, here)}
            value |= {"rounds": [*lines, *own], "diagnostics": own[-1]["diagnostics"]}
            if settings.warm_up is not None:
                value["bits_up_warm_up"] = _bits(first, corrected, here)
            if settings.personalise:
                value["personalised"] = _personalised(settings, here, state.params, everyone, held_out)
            keep(name, Merged(state.params, {}))
            note(Result("rule", name, value))
        if settings.pooled:
            note(Result("reference", "pooled", _pooled(settings, here, everyone)))


def _scores(here: World, params: Any) -> dict[str, float]:
    settings = here.network.apply, here.likelihood
    return as_numbers(evaluate(*settings, params, here.dataset.test_x, here.dataset.test_y))


def _of_test(scores: dict[str, float]) -> dict[str, float]:
    """Scores for a line that has a loss already, of training."""
    return {"test_loss" if name == "loss" else name: value for name, value in scores.items()}


def _held_out(settings: RunSettings, here: World) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each client's rows to train on, and those to judge its personalised model by; all to train on without one."""
    if not settings.personalise:
        return here.parts, []
    if min(map(len, here.parts)) < 2:
        raise ValueError("personalise: a client has one example, expected at least 2 of each, one of them held out")
    drawn = [np.random.default_rng((here.data_seed, n)).permutation(part) for n, part in enumerate(here.parts)]
    counts = [max(1, round(HELD_OUT * len(part))) for part in drawn]
    pairs = [(part[count:], part[:count]) for part, count in zip(drawn, counts, strict=True)]
    return [train for train, _ in pairs], [test for _, test in pairs]


def _personalised(
    settings: RunSettings, here: World, params: Any, everyone: Cohort, held_out: list[np.ndarray]
) -> dict[str, Any]:
    tuning = dataclasses.replace(here.training, epochs=settings.personalise)
    tests, key = cohort(here.x, here.y, held_out), jax.random.fold_in(here.key.train, 1)
    return personalise(tuning, params, everyone, tests, key, strategy=settings.strategy)._asdict()


def _pooled(settings: RunSettings, here: World, everyone: Cohort) -> dict[str, float]:
    longer = dataclasses.replace(here.training, epochs=settings.epochs * settings.rounds)
    simulation = Simulation(longer, here.start, everyone, here.dataset.test_x, here.dataset.test_y)
    return train_pooled(simulation, here.key.train)


def _bits(rule: Rule, corrected: Variant | None, here: World) -> int:
    """Bits that a client sends in a round, by the shapes of its payloads; a variant may send as much again."""
    few = Examples(here.x, here.y, jnp.zeros(1, jnp.int32), jnp.ones((), jnp.int32))
    params, total = here.start, 0
    for part in exchanges(rule):
        update = Update(params, params, params if part.squares else None, 1)
        payload = jax.eval_shape(part.measure, update, few, here.key.measure)
        total += payload_bits(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), payload))
    sent = None if corrected is None else corrected.own(params)
    return total + sum(8 * leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(sent))


def _forget(out: Path) -> None:
    """Remove the rounds of an earlier run: the folders that `run_rounds` made, and nothing else."""
    for folder in [out / "rounds" / "warm-up", *(out / "rounds" / "rules").glob("*")]:
        if (folder / "run.json").exists():
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            for name in ("rounds.jsonl", "run.json"):
                (folder / name).unlink(missing_ok=True)
