"""One one-shot federation: its clients are trained, judged, measured and merged by every rule."""

import dataclasses
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from .._examples import Examples
from ..curvature import Capture
from ..merge import FreshModes, Merged, Rule, Update, exchanges
from ._cohort import Cohort
from ._local import LocalTraining, train
from ._own_scores import own_scores, scores_at_clients, zero_fishers
from ._references import Result, Simulation, judge_locals, score, train_pooled
from ._simulate import measure_clients, merge_clients, payload_bits, train_clients

PyTree = Any
MOST_SEED = 2**32 - 1
Stage = Callable[[str, int], Callable[..., None] | None]  # (name, steps) → called after each step, or with how many


class RunKeys(NamedTuple):
    """The random keys of a run's parts."""

    init: jax.Array
    train: jax.Array
    measure: jax.Array
    pick: jax.Array  # of labelled examples at the server


def run_keys(seed: int) -> RunKeys:
    """A run's keys from its seed.

    Raises:
        ValueError: a seed below 0 or beyond 32 bits, of which JAX drops the higher ones unless it counts in 64.
    """
    if not 0 <= seed <= MOST_SEED:
        raise ValueError(f"seed: got {str(seed)[:40]}, expected a whole number from 0 to {MOST_SEED}")
    return RunKeys(*jax.random.split(jax.random.key(seed), 4))


def compare(
    simulation: Simulation,
    rules: Mapping[str, Rule],
    key: RunKeys,
    *,
    pooled: bool = False,
    strategy: str | None = None,
    stage: Stage = lambda name, steps: None,
    keep: Callable[[str, Merged], None] = lambda name, merged: None,
    checkpoint: str | os.PathLike[str] | None = None,
    known: Collection[str] = (),
) -> Iterator[Result]:
    """Train all clients, judge their models, and merge them by each rule; results come as they are found.

    The best local model is chosen by the test examples (by loss where there is no accuracy): an oracle. Rules whose
    measures are equal share one pass over the data, and those whose first exchange is the same rule (see
    `merge.catalogue.composed`) one merge; seconds count for each of them.

    Args:
        simulation: the federation.
        rules: by the names that their results get.
        key: random keys of training and of what clients measure.
        pooled: also train one model on all clients' examples.
        strategy: how clients share the machine, see `map_clients`.
        stage: told the stages as they begin.
        keep: given the rule's name and the merged model, before its result comes.
        checkpoint: file of the clients that are trained, written after each group of them; what is there already is
            not trained again, however many devices and hosts there were. Where there are some, seconds of
            training are None.
        known: rules whose results an earlier call gave: neither they nor what comes before all rules comes again.

    Raises:
        ValueError: a model or payload is not finite, the client is named; a checkpoint of other clients or another
            start.
    """
    cohort, count, epochs = simulation.cohort, len(simulation.cohort.sizes), simulation.training.epochs
    reads_squares = any(rule.squares for rule in rules.values())
    tell = stage("train", count * epochs)
    alone = jax.process_count() == 1  # epochs are seen on the host where they run, groups of clients on all hosts
    training = dataclasses.replace(simulation.training, on_epoch=tell if alone else None, squares=reads_squares)
    began = time.perf_counter()
    how: dict[str, Any] = {"strategy": strategy}
    kept: list[int] = []  # clients that the checkpoint holds

    def tell_clients(clients: int) -> None:
        if tell:
            tell(clients * epochs)

    if checkpoint is not None:
        how |= {"checkpoint": checkpoint, "found": lambda clients: (kept.append(clients), tell_clients(clients))}
    if not alone:
        how["done"] = tell_clients
    trained, ran = train_clients(training, simulation.start, cohort, key.train, **how)
    if not known:
        seconds = None if kept else time.perf_counter() - began
        before, after = own_scores(simulation.training, simulation.start, trained.params, cohort, strategy=strategy)
        own = {"before": before._asdict(), "after": after._asdict()}
        yield Result("training", "clients", {"seconds": seconds, "cohort": ran._asdict(), "own": own})
        yield from judge_locals(simulation, trained.params, stage("evaluate clients", count))

    update = Update(trained.params, simulation.start, trained.squares, training.steps(np.asarray(cohort.sizes)))
    shared: dict[Any, tuple[Any, float]] = {}
    for name, rule in rules.items():
        if name in known:
            continue
        merged, found = _exchange(rule, update, cohort, key.measure, shared, name, stage, strategy)
        keep(name, merged)
        at = scores_at_clients(simulation.training, merged.params, cohort, merged.apply, strategy=strategy)
        yield Result("rule", name, score(simulation, merged.params, merged.apply) | found | {"clients": at._asdict()})

    if pooled:
        alone = dataclasses.replace(simulation.training, on_epoch=stage("train on pooled data", epochs))
        yield Result("reference", "pooled", train_pooled(dataclasses.replace(simulation, training=alone), key.train))


def _exchange(
    rule: Rule,
    update: Update,
    cohort: Cohort,
    key: jax.Array,
    shared: dict[Any, tuple[Any, float]],
    name: str,
    stage: Stage,
    strategy: str | None,
) -> tuple[Merged, dict[str, Any]]:
    """Merge by every exchange of a rule; the merged model, and what it cost.

    `shared` keeps what first exchanges measured and merged, by measure and by rule, and the seconds that it took.
    """
    bits, measuring, merging = 0, 0.0, 0.0
    zero: list[int] = []
    diagnostics: dict[str, Any] = {}
    merged = Merged(update.start, {})
    for number, part in enumerate(exchanges(rule)):
        if number and merged.apply is not None:
            raise ValueError(f"rule {name}: a part changes the network, which the next one cannot measure")
        here = update if number == 0 else Update(None, merged.params)
        if number or part.measure not in shared:
            done = stage(f"measure for {part.name}", len(cohort.sizes))
            began, own = time.perf_counter(), jax.random.fold_in(key, number) if number else key
            sent, _ = measure_clients(part.measure, here, cohort, own, done=done, strategy=strategy)
            spent = time.perf_counter() - began
            if number == 0:
                shared[part.measure] = sent, spent
        else:
            sent, spent = shared[part.measure]
        zero += [int(cohort.members.number[place]) for place in zero_fishers(sent)]
        measuring, bits = measuring + spent, bits + payload_bits(sent)
        if number or part not in shared:
            done, began = stage(f"merge by {part.name}", 1), time.perf_counter()
            merged = merge_clients(part, sent, here.start)
            jax.block_until_ready(merged.params)
            spent = time.perf_counter() - began
            if number == 0:
                shared[part] = merged, spent
            if done:
                done()
        else:
            merged, spent = shared[part]
        merging = merging + spent
        diagnostics = merged.diagnostics if number == 0 else diagnostics | {part.name: merged.diagnostics}
    seconds = {"seconds": measuring + merging, "seconds_measure": measuring, "seconds_merge": merging}
    return merged, {"bits_up": bits, **seconds, "diagnostics": diagnostics} | ({"zero_fisher": zero} if zero else {})


def offers(
    init: Callable[[jax.Array], PyTree], training: LocalTraining, captured: Capture, seed: int, **more: Any
) -> dict[str, Any]:
    """What rules may take (see `merge.catalogue`): the model's layers, and a second local model from a fresh start.

    Args:
        init: key → initial parameters.
        training: the clients' settings.
        captured: the model's layers.
        seed: seed of the fresh starts.
        more: further offers.
    """
    return {"captured": captured, "others": FreshModes(init, Fit(training), seed)} | more


@dataclasses.dataclass(frozen=True)
class Fit:
    """(params, data, key) → parameters trained by these settings; equal settings are traced once."""

    training: LocalTraining

    def __call__(self, params: PyTree, data: Examples, key: jax.Array) -> PyTree:
        """Trained parameters."""
        return train(self.training, params, data, key).params
