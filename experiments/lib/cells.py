"""What the tables of one-shot rules share: a cell is one federation and every method on it.

A method is a rule by its name (or a user's, as module:function) or a reference: the best local model, chosen by the
test examples; the ensemble of local models, of equal weights, by size or by class shares; one model trained on
everybody's data. Cells differ by data set, number of clients, α, epochs, the seed of the split and the seed of
initialisation and training, and run the code of the `fedfisher` command. Every method is a line of ``results.jsonl``:
with a rule added, only what is missing is measured and merged (the clients are trained again, to the same models).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.progress

from experiments.lib import common
from fedfisher_jax import Cohort, LocalTraining, categorical, cohort, data, models
from fedfisher_jax._files import only_writer, plain
from fedfisher_jax.curvature import Capture, capture
from fedfisher_jax.data import Dataset
from fedfisher_jax.federate import Simulation, crop_and_flip, run_keys
from fedfisher_jax.federate import _one_shot as one_shot
from fedfisher_jax.federate._references import train_pooled
from fedfisher_jax.merge import Rule, catalogue, exchanges

ALPHA_RULES = ("fedavg", "fisher-merge", "fedfisher-diag", "fedfisher-kfac")
ALL_RULES = (*ALPHA_RULES, "fedlpa", "regmean", "regmean-kron", "otfusion", "pfnm", "dense", "fedbens")
LOCAL = ("best_local", "ensemble")
MORE = ("ensemble_by_size", "ensemble_by_class")  # noted where clients are trained; older results have none
MODELS = {"digits": "mlp", "mnist": "lenet", "fashion_mnist": "lenet"}
BATCH_SIZE = 64
OPTIMIZER = optax.sgd(0.01, 0.9)

Cell = Mapping[str, Any]  # dataset, model, clients, alpha, epochs, data_seed, train_seed, maybe start


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        rules: Merge rules by name, or your own as module:function.
        seeds: How many seeds.
        vary: What the seeds are of: "both" draws a split and a training from each; "split" and "training" hold the
            other one at the first seed; "crossed" combines every split with every training, which tells the two spreads
            apart.
    """

    rules: tuple[str, ...] = ALL_RULES
    seeds: int = 3
    vary: Literal["both", "split", "training", "crossed"] = "both"


class World(NamedTuple):
    """Examples, on the device too, and the network that is trained on them with its captured layers."""

    dataset: Dataset
    arrays: tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # x, y, test x, test y
    network: models.Network
    captured: Capture


@cache
def model_of(dataset: str) -> str:
    """The network of a data set: the paper's CNN for images, an MLP for other inputs, unless `MODELS` has another."""
    if dataset in MODELS:
        return MODELS[dataset]
    return "cnn" if data.load(dataset).train_x.ndim == 4 else "mlp"


def world(dataset: str, model: str) -> World:
    """A data set and a model by name, as they are now."""
    return _world(dataset, model, tuple(common.contents({"dataset": dataset}).values()))


@cache
def _world(dataset: str, model: str, content: tuple[str, ...]) -> World:
    del content  # of a user's own file, which may have been written anew
    loaded = data.load(dataset)
    return world_of(loaded, *captured_network(model, loaded.train_x.shape[1:], loaded.num_classes))


def captured_network(
    model: str, shape: Sequence[int], classes: int, use_bias: bool = False, **options: Any
) -> tuple[models.Network, Capture]:
    """A network of `models.build` and its layers."""
    network = models.build(model, shape, classes, use_bias, **options)
    return network, capture(
        network.apply, jax.eval_shape(network.init, jax.random.key(0)), np.zeros((1, *shape), np.float32)
    )


def last_layer(here: World) -> tuple[str, ...]:
    """Names on the way to the parameters of the network's last layer."""
    path, _ = jax.tree.leaves_with_path(jax.eval_shape(here.network.init, jax.random.key(0)))[
        here.captured.layers[-1].weight
    ]
    return tuple(entry.key for entry in path[:-1])


def world_of(dataset: Dataset, network: models.Network, captured: Capture) -> World:
    """A data set and a network."""
    x, y, test_x, test_y = (jnp.asarray(a) for a in (dataset.train_x, dataset.train_y, dataset.test_x, dataset.test_y))
    return World(dataset, (x, y, test_x, test_y), network, captured)


def seed_pairs(settings: Settings) -> list[dict[str, int]]:
    """Seeds of split and training of each repetition."""
    seeds = range(settings.seed, settings.seed + settings.seeds)
    pairs = {
        "both": [(s, s) for s in seeds],
        "split": [(s, settings.seed) for s in seeds],
        "training": [(settings.seed, s) for s in seeds],
        "crossed": [(d, t) for d in seeds for t in seeds],
    }
    return [{"data_seed": split, "train_seed": training} for split, training in pairs[settings.vary]]


@cache
def training(network: models.Network, augment: bool, epochs: int) -> LocalTraining:
    """How the clients of a cell train; one object per setting, so that it is traced once."""
    return LocalTraining(
        network.apply, categorical(), OPTIMIZER, epochs, BATCH_SIZE, crop_and_flip() if augment else None
    )


@cache
def _init(network: models.Network) -> Callable[[jax.Array], Any]:
    return jax.jit(network.init)


@cache
def _rule(name: str, network: models.Network, captured: Capture, train: LocalTraining, seed: int | None) -> Rule:
    """One object per rule and setting: what is compiled for it serves every seed, unless it draws starts (`others`)."""
    if "+" in name:
        return catalogue.composed(name, lambda part: _rule(part, network, captured, train, seed))
    offers: dict[str, Any] = {"captured": captured}
    if seed is not None:
        offers = one_shot.offers(network.init, train, captured, seed)
    return catalogue.named_rule(name, network.apply, categorical(), offers=offers)


def compare(here: World, cell: Cell, rules: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train the clients of a cell; yields every reference and rule, and "training", with their results."""
    dataset, network = here.dataset, here.network
    parts = data.split(
        "dirichlet-client", dataset.train_y, cell["clients"], seed=cell["data_seed"], alpha=cell["alpha"]
    )
    x, y, *_ = here.arrays
    everyone = cohort(x, y, parts, length=len(dataset.train_y))
    federation = simulation(here, cell["epochs"], cell["train_seed"], everyone, start=cell.get("start", "usual"))
    seeds = {name: cell["train_seed"] if "others" in catalogue.takes(name) else None for name in rules}
    named = {name: _rule(name, network, here.captured, federation.training, seed) for name, seed in seeds.items()}
    for found in one_shot.compare(federation, named, run_keys(cell["train_seed"])):
        if found.kind != "client":
            yield "training" if found.kind == "training" else found.name, found.value


def pooled(here: World, cell: Cell) -> dict[str, Any]:
    """Training on everybody's data, with the clients' settings."""
    x, y, *_ = here.arrays
    everybody = cohort(x, y, [np.arange(len(y))])
    federation = simulation(here, cell["epochs"], cell["train_seed"], everybody)
    return train_pooled(federation, run_keys(cell["train_seed"]).train)


def simulation(
    here: World, epochs: int, seed: int, who: Cohort, held_out: Any = None, start: str = "usual"
) -> Simulation:
    """A federation of clients with the cells' settings, judged by `held_out` (x, y), by default the test examples."""
    train = training(here.network, here.dataset.augment, epochs)
    params = models.STARTS[start](_init(here.network)(run_keys(seed).init))
    return Simulation(train, params, who, *(held_out or here.arrays[2:]))


def count_exchanges(here: World, name: str) -> int:
    """How many exchanges a rule is."""
    return len(exchanges(_rule(name, here.network, here.captured, training(here.network, False, 1), 0)))


class Outcome(NamedTuple):
    """A cell and the results of its methods."""

    cell: Cell
    methods: Mapping[str, Mapping[str, Any]]


POOLED_BY = ("dataset", "model", "epochs", "train_seed")  # what pooled training depends on, where data are given


def run_cells(
    out: Path,
    cells: Iterable[Cell],
    rules: Sequence[str],
    worlds: Callable[[Cell], World] = lambda cell: world(cell["dataset"], cell["model"]),
    pooled_by: Sequence[str] = POOLED_BY,
) -> list[Outcome]:
    """Run what is missing of every cell; pooled training once for all cells that it does not tell apart.

    Args:
        out: Folder of ``results.jsonl``.
        cells: The cells.
        rules: Their rules.
        worlds: Data and network of a cell.
        pooled_by: Names of the settings on which pooled training depends; () leaves it out.
    """
    cells, path = list(cells), out / "results.jsonl"
    with only_writer(out):
        return _run_missing(path, cells, rules, worlds, pooled_by)


def _run_missing(
    path: Path, cells: Sequence[Cell], rules: Sequence[str], worlds: Callable[[Cell], World], pooled_by: Sequence[str]
) -> list[Outcome]:
    done = {common.key_of(r): r["result"] for r in common.read_results(path)}
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    outcomes = []
    with rich.progress.Progress(*columns) as progress:
        task = progress.add_task("cells", total=len(cells))

        def note(settings: Mapping[str, Any], result: Mapping[str, Any]) -> None:
            if common.run_key(settings) not in done:
                common.append_result(path, {"settings": settings, "result": result})
                done[common.run_key(settings)] = plain(result)

        for cell in cells:
            names = {method: {**cell, "method": method} for method in ("training", *LOCAL, *rules)}
            if pooled_by:
                names["pooled"] = {**{name: cell[name] for name in pooled_by}, "method": "pooled"}
            known = names | {method: {**cell, "method": method} for method in MORE}
            missing = [method for method, settings in names.items() if common.run_key(settings) not in done]
            if set(missing) - {"pooled"}:
                for method, result in compare(worlds(cell), cell, [name for name in missing if name in rules]):
                    if method in known:
                        note(known[method], result)
            if "pooled" in missing:
                note(names["pooled"], pooled(worlds(cell), cell))
            found = {m: done[key] for m, settings in known.items() if (key := common.run_key(settings)) in done}
            outcomes.append(Outcome(cell, found))
            progress.advance(task)
    return outcomes
