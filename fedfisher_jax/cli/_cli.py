"""The `fedfisher` command: a thin face over the library."""

import contextlib
import dataclasses
import os
import sys
import threading
import traceback
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .. import _files, data, models, report
from .._likelihood import Likelihood, categorical
from ..curvature import capture
from ..federate import LocalTraining, Simulation, cohort, compare, crop_and_flip, run_keys
from ..federate._map_clients import HANDS
from ..federate._one_shot import Result
from ..federate._one_shot import offers as offers_of
from ..merge import catalogue
from ..merge._rule import Rule
from ..solve._conjugate_gradients import conjugate_gradients
from ._commands import COMMANDS
from ._finished import finished
from ._one_line import Terminated, fit_terminal, listen, one_line
from ._ranges import require_ranges
from ._run_words import words_on_data, words_on_result

INTERRUPTED, TERMINATED = 130, 143  # the exit codes of shells for Ctrl-C and for SIGTERM


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Train clients on unevenly split data, measure their Fisher information, merge once, and show what that bought."""

    dataset: str = "digits"
    """A name of `fedfisher list`, or a path to your own .npz."""
    model: str = "mlp"
    """A name of `fedfisher list`."""
    clients: int = 5
    """Number of clients."""
    partition: str = "dirichlet-client"
    """How examples are split over clients: a name of `fedfisher list`."""
    alpha: float = 0.1
    """Concentration of the Dirichlet splits: small is uneven."""
    epochs: int = 30
    """Local epochs."""
    rules: tuple[str, ...] = ("fedavg", "fisher-merge", "fedfisher-diag", "fedfisher-kfac")
    """Merge rules, or your own as module:function."""
    seed: int = 0
    """Seed of initialisation, training and Monte-Carlo draws."""
    data_seed: int | None = None
    """Seed of the split; default the value of --seed."""
    out: Path = Path("runs/latest")
    """Folder of result.json, accuracy.png and clients.png."""
    preset: Literal["none", "paper"] = "none"
    """"paper": every rule with the authors' settings, their server loop picked by 500 labelled training examples."""
    pooled: bool = False
    """Also train one model on all clients' data."""
    batch_size: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    inputs: Literal["standardised", "as-is"] = "standardised"
    """Of your own .npz: give every channel or feature mean 0 and spread 1 by the training examples, or do nothing."""
    bias: bool = False
    """Whether the layers have biases (the papers' networks have none)."""
    start: Literal["usual", "designed"] = "usual"
    """"designed": convolutions made for the heads of `analytic`, cosines first; free of data."""
    kind: Literal["exact", "monte_carlo", "empirical"] = "exact"
    """Kind of Fisher information."""
    samples: int = 1
    """Monte-Carlo draws per example."""
    damping: float | None = None
    """Damping of the fedfisher solvers, relative to a layer's mean diagonal; by default each rule's own."""
    min_size: int | None = None
    """Fewest examples of a client, for the splits that have it."""
    classes_per_client: int = 2
    """Classes of each client, for the shards split."""
    strategy: str | None = None
    """How clients share the machine: sequential, threads, vectorised, devices or pmap."""
    data_dir: Path | None = None
    """Folder where data sets lie."""
    overwrite: bool = False
    """Run again, or instead, where --out holds a run already."""
    distributed: bool = False
    """Join the other hosts of a pod or a Slurm step, each of which runs this same command; the first one reports."""


@dataclasses.dataclass(frozen=True)
class ListSettings:
    """List the names of data sets, models, splits and rules."""


def main(arguments: list[str] | None = None) -> None:
    """Exit with 2, or 130 after Ctrl-C, and one line, whatever the input is; `--debug` shows Python's trace, too."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug, arguments = "--debug" in arguments, [word for word in arguments if word != "--debug"]
    fit_terminal()
    known = {"run": RunSettings, "list": ListSettings} | {name: settings for name, (settings, _) in COMMANDS.items()}
    try:
        listen()
        command = tyro.extras.subcommand_cli_from_dict(known, args=arguments, prog="fedfisher", sort_subcommands=False)
    except SystemExit:  # after help, or tyro's own words about what it does not know
        raise
    except BaseException as error:
        _leave(error, debug)
    try:
        _do(command)
    except BaseException as error:  # of whatever kind: code that users name may raise anything
        _leave(error, debug)


def _do(command: Any) -> None:
    if isinstance(command, ListSettings):
        names = {"data sets": data.DATASETS, "models": models.NAMES, "splits": data.PARTITIONS}
        for kind, known in {**names, "rules": catalogue.RULES}.items():
            print(f"{kind}: {', '.join(known)}")
    elif isinstance(command, RunSettings):
        if command.distributed:
            jax.distributed.initialize()
        run(command)
    else:
        function = next(function for settings, function in COMMANDS.values() if isinstance(command, settings))
        function(command)


def _leave(error: BaseException, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    print(f"fedfisher: {one_line(error)}", file=sys.stderr)
    codes = {Terminated: TERMINATED, KeyboardInterrupt: INTERRUPTED}
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), 2)
    if code != 2 and any(thread.name.startswith(HANDS) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # or it would wait for clients' programs, which nothing stops
    raise SystemExit(code) from None


def run(settings: RunSettings) -> dict[str, Any]:
    """Run one one-shot federation; returns the record that `result.json` holds."""
    _check(settings)
    with contextlib.ExitStack() as held:
        return _run(settings, held)


def _run(settings: RunSettings, held: contextlib.ExitStack) -> dict[str, Any]:
    first = jax.process_index() == 0
    console = Console(stderr=True, quiet=not first)
    dataset = data.load(settings.dataset, data_dir=settings.data_dir, inputs=settings.inputs)
    data_seed = settings.seed if settings.data_seed is None else settings.data_seed
    parts = data.split(
        settings.partition,
        dataset.train_y,
        settings.clients,
        seed=data_seed,
        alpha=settings.alpha,
        classes_per_client=settings.classes_per_client,
        min_size=settings.min_size,
        groups=dataset.groups,
    )
    network = models.build(settings.model, dataset.train_x.shape[1:], dataset.num_classes, settings.bias)
    likelihood, apply = categorical(), network.apply
    key = run_keys(settings.seed)
    start = models.STARTS[settings.start](network.init(key.init))
    captured = capture(apply, start, dataset.train_x)
    x, y = jnp.asarray(dataset.train_x), jnp.asarray(dataset.train_y)
    training = LocalTraining(
        apply,
        likelihood,
        optax.sgd(settings.learning_rate, settings.momentum),
        settings.epochs,
        settings.batch_size,
        crop_and_flip() if dataset.augment else None,
    )
    offers = offers_of(network.init, training, captured, settings.seed, kind=settings.kind, samples=settings.samples)
    rules = _rules(settings, apply, likelihood, offers, x, y, key.pick)
    out = _files.require_folder(settings.out)
    if first:
        held.enter_context(_files.only_writer(out))
    if (found := finished(settings, dataset, out, first)) is not None:
        if first:
            Console().print(report.result_table(found))
            print(f"{out}: this run is finished; --overwrite runs it again")
        return found

    counts = data.label_counts(dataset.train_y, parts, dataset.num_classes)
    record: dict[str, Any] = {
        "settings": dataclasses.asdict(settings) | {"data_seed": data_seed},
        "preset": _preset_note(settings),
        "seed": settings.seed,
        "versions": report.versions(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(start)),
        "fallback": captured.fallback,
        "fedavg_bits": 32 * sum(leaf.size for leaf in jax.tree.leaves(start)),
        "inputs": None if dataset.scaling is None else dataset.scaling.plain(),
        "classes": dataset.classes,
        "clients": {"sizes": [len(part) for part in parts], "label_counts": counts, "accuracies": []},
        "rules": {},
        "references": {"best_local": None, "ensemble": None, "ensemble_by_class": None, "pooled": None},
        "seconds": {},
        "words": words_on_data(dataset),
        "complete": False,
    }
    for word in record["words"]:
        console.print(f"note: {word}", markup=False)

    def save() -> None:
        if first:
            _files.write_json(out / "result.json", record)

    save()
    if first:
        data.plot_label_counts(counts, out / "clients.png")
    simulation = Simulation(training, start, cohort(x, y, parts), dataset.test_x, dataset.test_y)
    with _progress(console) as progress:
        found = compare(
            simulation,
            rules,
            key,
            pooled=settings.pooled,
            strategy=settings.strategy,
            stage=partial(_stage, progress),
        )
        for result in found:
            _note(record, result)
            words = words_on_result(result, parts, dataset.train_y)
            record["words"] += words
            for word in words:
                console.print(f"note: {word}", markup=False)
            save()

    record["complete"] = True
    record = _files.plain(record)
    save()
    if first:
        report.plot_accuracy(record, out / "accuracy.png")
        Console().print(report.result_table(record))
        print(f"{out}/result.json, accuracy.png, clients.png")
    return record


def _check(settings: RunSettings) -> None:
    require_ranges(settings)
    if len(set(settings.rules)) != len(settings.rules) or not settings.rules:
        raise ValueError(f"rules: expected different names, at least one, got {' '.join(settings.rules) or 'none'}")
    if settings.preset == "paper" and settings.damping is not None:
        raise ValueError("damping: the paper's loop has none; leave it out with --preset paper")


def _note(record: dict[str, Any], result: Result) -> None:
    """Put a result in its place in the record."""
    if result.kind == "training":
        record["seconds"]["train"], record["cohort"] = result.value["seconds"], result.value["cohort"]
        record["clients"]["own"] = result.value["own"]
    elif result.kind == "client":
        record["clients"]["accuracies"].append(result.value["accuracy"])
    else:
        record["rules" if result.kind == "rule" else "references"][result.name] = result.value


def _rules(
    settings: RunSettings, apply: Callable, likelihood: Likelihood, offers: dict[str, Any], x: Any, y: Any, key: Any
) -> dict[str, Rule]:
    if settings.preset == "paper":
        picked = jax.random.randint(key, (500,), 0, len(x))  # with replacement, as the authors do
        pick_x, pick_y = x[picked], y[picked]

        def validation(params: Any) -> Any:
            return jnp.mean(jnp.argmax(apply(params, pick_x), axis=-1) == pick_y)

        offers = offers | {"validation": validation}
    known = catalogue.RELEASED if settings.preset == "paper" else catalogue.RULES
    solved = {} if settings.damping is None else {"solver": conjugate_gradients(damping=settings.damping)}

    @cache
    def part(name: str) -> Rule:
        own = solved if name in catalogue.SOLVED else {}
        return catalogue.named_rule(name, apply, likelihood, offers=offers, rules=known, **own)

    return {name: catalogue.composed(name, part) for name in settings.rules}


def _preset_note(settings: RunSettings) -> str | None:
    if settings.preset != "paper":
        return None
    return (
        "the authors' settings: 2000 steps of their server loop at rate 0.01, the iterate (of dense, the student) "
        "picked by accuracy on 500 labelled training examples; their 16-bit quantisation is applied by regmean alone"
    )


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)


def _stage(progress: Progress, name: str, total: int) -> Callable[..., None]:
    task = progress.add_task(name, total=total)
    return lambda count=1: progress.update(task, advance=count)


if __name__ == "__main__":
    main()
