"""What leaving takes away: `fedfisher leave` beside training again without the silo, after one exchange and after two.

Five silos of about equal size hold examples of four classes each, every class at two of them. Every silo leaves once,
and the numbers are means over who leaves. A model is judged by its accuracy on the leaving silo's examples, on as many
of nobody's with the same labels, and on the test examples; and by how well its loss, or the difference of two models'
losses, tells the silo's examples from nobody's (AUC; 0.5 is a guess). After two exchanges the silo leaves the second
one alone, whose payloads were trained from a model that it had a part in.
"""

import dataclasses
import shutil
import tempfile
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import cells, common, silo_files
from fedfisher_jax import categorical, cohort, data, payload
from fedfisher_jax._metrics import predict
from fedfisher_jax.cli._leave import LeaveSettings, leave
from fedfisher_jax.cli._merge import MergeSettings, merge
from fedfisher_jax.data import Dataset
from fedfisher_jax.federate import RunKeys, run_keys
from fedfisher_jax.merge import Rule, catalogue
from fedfisher_jax.models import Network
from fedfisher_jax.privacy import attacks
from fedfisher_jax.privacy.attacks import measures
from fedfisher_jax.silos import _model_file as model_file

CLIENTS, CLASSES = 5, 4  # classes of each silo
RULES = ("fedavg", "fedfisher-diag", "fedfisher-kfac")
MODELS = {  # what is merged, in the table's words
    "file": "none: the silo's own file",
    "with": "with the silo",
    "left": "`leave`",
    "again": "trained again without it",
    "anew": "the same, other seed",
    "with, 2": "two exchanges with the silo",
    "left, 2": "`leave` after the second",
    "again, 2": "both trained again without it",
}
SCORES = {"own": "own examples", "others": "nobody's", "test": "test", "auc": "AUC by loss"}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        dataset: A name of `fedfisher list`, of labels.
        rules: Merge rules by name.
        examples: How many all silos have together; as many more are nobody's, where there are.
        epochs: Local epochs of an exchange.
        seeds: Each draws examples, split, start and training.
    """

    dataset: str = "digits"
    rules: tuple[str, ...] = RULES
    examples: int = 1000
    epochs: int = 30
    seeds: int = 5


class Silos(NamedTuple):
    """Who takes part, and whom the attack is measured on."""

    dataset: Dataset
    x: Any  # examples of the silos, then nobody's
    y: np.ndarray
    parts: list[np.ndarray]  # each silo's rows
    judged: list[tuple[np.ndarray, np.ndarray]]  # rows of each silo's, and as many of nobody's with the same labels


@lru_cache(maxsize=1)
def silos(dataset: str, examples: int, seed: int) -> Silos:
    """Draw the examples, and split them."""
    full, random = data.load(dataset), np.random.default_rng(seed)
    rows = random.permutation(len(full.train_y))[: 2 * examples]
    y, inside = full.train_y[rows], np.arange(min(examples, len(rows)))
    parts = data.split("shards", y[inside], CLIENTS, seed=seed, classes_per_client=CLASSES)
    outside, judged = np.arange(len(inside), len(rows)), []
    for part in parts:
        pairs = []
        for label in range(full.num_classes):
            own, foreign = (random.permutation(some[y[some] == label]) for some in (part, outside))
            count = min(len(own), len(foreign))
            pairs.append((own[:count], foreign[:count]))
        own, foreign = zip(*pairs, strict=True)
        judged.append((np.concatenate(own), np.concatenate(foreign)))
    return Silos(full, jnp.asarray(full.train_x[rows]), y, parts, judged)


@cache
def rule_of(dataset: str, name: str) -> tuple[Network, Rule]:
    """The network of a data set and a rule for it, one object each, so that they are traced once."""
    full = data.load(dataset)
    network, captured = cells.captured_network(cells.MODELS[dataset], full.train_x.shape[1:], full.num_classes)
    rule = catalogue.named_rule(name, network.apply, categorical(), offers={"captured": captured})
    return network, rule


class Exchange(NamedTuple):
    """One exchange of files, in a folder."""

    folder: Path
    dataset: str
    rule: str
    here: Silos
    start: Path
    keys: RunKeys
    epochs: int

    def begin(self, numbers: list[int]) -> "Exchange":
        """These silos train, measure and write their files, which are merged into a model and a region."""
        network, rule = rule_of(self.dataset, self.rule)
        who = cohort(self.here.x, self.here.y, [self.here.parts[n] for n in numbers], numbers=numbers)
        training = cells.training(network, False, self.epochs)
        files = silo_files.write(self.folder, self.start, rule, who, self.keys, training)
        silo_files.quietly(
            merge, MergeSettings(files, self.start, self.model(), into=self.folder / "region.safetensors")
        )
        return self

    def model(self, without: int | None = None) -> Path:
        """Where the merged model is, that of all or that which a silo left."""
        return self.folder / f"model{'' if without is None else without}.safetensors"

    def leave(self, number: int) -> Path:
        """A silo leaves a copy of region and model."""
        region, out = self.folder / f"region{number}.safetensors", self.model(number)
        shutil.copy(self.folder / "region.safetensors", region)
        adds = rule_of(self.dataset, self.rule)[1].combine == "add"
        own = (self.folder / f"{number}.safetensors",) if adds else ()  # a region that stacks holds it
        record = self.folder / f"left{number}.json"
        silo_files.quietly(leave, LeaveSettings(region, (number,), own, self.start, out, record))
        return out


def run(dataset: str, rule: str, examples: int, epochs: int, seed: int) -> dict[str, Any]:
    """One federation and rule; every silo leaves it once."""
    here, (network, _) = silos(dataset, examples, seed), rule_of(dataset, rule)
    shape, classes = tuple(map(int, here.dataset.train_x.shape[1:])), here.dataset.num_classes
    everybody, found = list(range(CLIENTS)), []
    with tempfile.TemporaryDirectory() as base:
        start, other = (Path(base) / f"{name}.safetensors" for name in ("start", "other"))
        for path, by in ((start, seed), (other, seed + 1000)):
            kind = model_file.Kind(cells.MODELS[dataset], shape, classes)
            model_file.write(path, kind, network.init(run_keys(by).init), "experiment")
        keys = run_keys(seed)
        later = RunKeys(*(jax.random.fold_in(key, 1) for key in keys))

        def exchange(name: str, start: Path, keys: RunKeys, numbers: list[int]) -> Exchange:
            return Exchange(Path(base) / name, dataset, rule, here, start, keys, epochs).begin(numbers)

        first = exchange("first", start, keys, everybody)
        second = exchange("second", first.model(), later, everybody)
        for gone in everybody:
            stay = [number for number in everybody if number != gone]
            again = exchange(f"again{gone}", start, keys, stay)
            anew = exchange(f"anew{gone}", other, run_keys(seed + 1000), stay)
            twice = exchange(f"twice{gone}", again.model(), later, stay)
            paths = (first.model(), first.leave(gone), again.model(), anew.model())
            paths += (second.model(), second.leave(gone), twice.model())
            sent, _ = payload.read(first.folder / f"{gone}.safetensors", model_file.read(start).params)
            models = {"file": sent.params}
            models |= dict(zip(list(MODELS)[1:], (model_file.read(path).params for path in paths), strict=True))
            judged = {name: judge(here, network, params, gone) for name, params in models.items()}
            losses = {name: one.pop("losses") for name, one in judged.items()}
            for name in ("with", "with, 2"):  # to who has both models
                left = name.replace("with", "left")
                judged[left]["auc of both"] = told(here, gone, losses[left] - losses[name])
            gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), models["left"], models["again"])
            found.append({"models": judged, "gap": max(jax.tree.leaves(gap))})
    return {"silos": found}


def judge(here: Silos, network: Network, params: Any, gone: int) -> dict[str, Any]:
    """Scores of a model with respect to a silo, and minus the log-likelihood of all examples."""
    right = predict(network.apply, params, here.x).argmax(-1) == here.y
    test = predict(network.apply, params, jnp.asarray(here.dataset.test_x)).argmax(-1) == here.dataset.test_y
    own, others = here.judged[gone]
    losses = -np.asarray(
        attacks.loss_scores(network.apply, categorical(), params, here.x, jnp.asarray(here.y)), np.float64
    )
    means = {"own": right[here.parts[gone]].mean(), "others": right[others].mean(), "test": test.mean()}
    return {name: 100 * float(value) for name, value in means.items()} | {
        "auc": told(here, gone, -losses),
        "losses": losses,
    }


def told(here: Silos, gone: int, scores: np.ndarray) -> float:
    """How often a score is higher for an example of the silo than for one of nobody's, ties by half."""
    own, others = (jnp.asarray(scores[rows], jnp.float32) for rows in here.judged[gone])
    return float(measures.auc(own, others))


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 1, "epochs": 5, "examples": 500})
    seeds = range(settings.seed, settings.seed + settings.seeds)
    fixed = {"dataset": settings.dataset, "examples": settings.examples, "epochs": settings.epochs}
    grid = [{**fixed, "rule": rule, "seed": seed} for rule in settings.rules for seed in seeds]
    records = common.run_all(settings.out, grid, run, "federations")
    rows, summary = [], {}
    for rule in settings.rules:
        each = [r["result"]["silos"] for r in records if r["settings"]["rule"] == rule]
        mean = lambda model, score: [np.mean([one["models"][model][score] for one in all_]) for all_ in each]  # noqa: E731, B023
        summary[f"{rule}: largest difference of leave and training again"] = max(o["gap"] for a in each for o in a)
        for model, words in MODELS.items():
            scores = {score: mean(model, score) for score in SCORES}
            if model.startswith("left"):
                scores["auc of both"] = mean(model, "auc of both")
            summary |= {f"{rule}, {model}: {score}": float(np.mean(value)) for score, value in scores.items()}
            shown = [common.mean_std(value, 3 if "auc" in score else 1) for score, value in scores.items()]
            rows.append([rule, words, *shown, *([""] if "auc of both" not in scores else [])])
    header = ["rule", "model", *SCORES.values(), "AUC by both models' losses"]
    text = (
        f"{settings.dataset}, {CLIENTS} silos with {CLASSES} classes each, {settings.examples} examples in all, "
        f"{settings.epochs} local epochs an exchange. Accuracy in %. Mean ± std over {settings.seeds} seeds of means "
        "over the silo that leaves.\n\n"
    )
    common.report(settings.out, text + common.markdown_table(header, rows), summary)


if __name__ == "__main__":
    main()
