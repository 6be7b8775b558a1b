"""`fedfisher measure`: what a silo does. Data and the start in, one payload file out."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from .. import _files, payload
from .._examples import examples
from ..data import Columns
from ..data._scaling import far_from_one
from ..data._where import expanded
from ..federate import LocalTraining, best_constant, crop_and_flip, own_scores, run_keys, zero_fishers
from ..merge import Update
from ..merge._options import plain_name
from ..models import weights
from ..payload import _structures as structures
from ..payload import plan
from ..payload._header import MOST_TEXT
from ..privacy import dp_training, example_noise, noise
from ..privacy.example_noise import Promise
from ..report import words_on_rule, words_on_training
from ..silos import _model_file as model_file
from ..silos import _silo_data as silo_data
from ..silos import silo_cohort, train_and_measure
from ..silos._network import likelihood_of, outputs_of
from . import _checkpoints as checkpoints
from ._once import layers_of, rule_of, scoring, sgd
from ._one_line import say
from ._ranges import require_ranges

TRAINING = ("epochs", "learning_rate", "momentum", "augment")  # settings that a checkpoint leaves no use for
PRIVATE = ("delta", "rounds", "unit", "clip_params", "clip_fisher", "clip_features", "clip_gradients")  # of epsilon
PRIVATELY_TRAINED = "fedavg"  # what it sends is the trained parameters, and nothing that is not private
Guarantee = noise.Guarantee | Promise | dp_training.Promise


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """Train from the start on this silo's data, measure, and write one payload file: all that leaves the silo."""

    data: str
    """This silo's examples: a .npz file with train_x, train_y (or x, y), a name of `fedfisher list`, or with a folder
    of checkpoints a folder of .npz files of the same names."""
    start: Path = Path("start.safetensors")
    """The common starting model, from `fedfisher init`."""
    out: Path = Path("payload.safetensors")
    """The payload file; with a folder of checkpoints a folder."""
    local: Path | None = None
    """Write this silo's own trained model here, too; it is for this silo alone."""
    silo: int = 0
    """This silo's number; no other silo of the federation may have it."""
    name: str = ""
    """What people call this silo; not written unless given."""
    rule: str = "fedfisher-kfac"
    """Merge rule to measure for: a name of `fedfisher list`."""
    checkpoint: Path | None = None
    """An already trained safetensors file of this network, a folder of its shards, or a folder of such files: nothing
    is trained, only measured."""
    budget: float | None = None
    """Compress the file to this multiple of FedAvg's 32 bits per parameter."""
    compression: Literal["none", "authors"] = "none"
    """"authors": the scheme of arXiv 2403.12329."""
    stochastic: bool = False
    """With a budget, round so that every number is right on average."""
    kind: Literal["exact", "monte_carlo", "empirical"] = "exact"
    """Kind of Fisher information."""
    samples: int = 1
    """Monte-Carlo draws per example."""
    epochs: int = 30
    """Local epochs."""
    batch_size: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    augment: bool = False
    """Random crops and flips while training, for images."""
    unscaled: bool = False
    """Train on inputs that are far from one, which is refused otherwise where the start does not scale them."""
    seed: int = 0
    """Seed of training and Monte-Carlo draws, as in `fedfisher run`."""
    epsilon: float | None = None
    """Privacy loss ε: clip what is sent and add noise (docs/privacy.md)."""
    unit: Literal["silo", "example"] = "silo"
    """Whom epsilon is for: this silo as a whole, or each of its examples, for the rules analytic and recalibrate, and
    for fedavg, by private training."""
    delta: float = 1e-5
    """Probability δ with which the promise may fail."""
    rounds: int = 1
    """Number of files of this silo, in all, that the promise holds for: 2 for analytic, then recalibrate."""
    clip_params: float = 1.0
    """With epsilon: largest norm of trained minus starting parameters."""
    clip_fisher: float = 1.0
    """With epsilon: largest norm of each array of the Fisher information."""
    label: tuple[str, ...] = ("label",)
    """Column, or columns, of the labels in a table."""
    ignore: tuple[str, ...] = ()
    """Columns of a table that are no inputs."""
    clip_features: float = 1.0
    """With epsilon of examples: largest norm of an example's features; all silos should have the same."""
    clip_gradients: float = 1.0
    """With epsilon of examples and fedavg: largest norm of an example's gradient while training."""
    model: str | None = None
    """module:function, where the start is of a network of your own; or hf:FOLDER, a fine-tuned model of transformers or
    an adapter of peft that is only measured, with --start the folder of the model that all fine-tuned
    (docs/checkpoints.md)."""
    text_column: str = "text"
    """With hf: column of the texts in a .jsonl or .parquet file."""
    label_column: str = "label"
    """With hf: column of the labels, integers; where there is none, next tokens are predicted."""
    length: int = 128
    """With hf: tokens of a text at most."""
    where: str | None = None
    """With hf: a regular expression; only parameters in whose names it is found are measured and sent, and the others
    must be the start's. ^classifier is a head, ^(?!.*embeddings) everything but embeddings."""


def measure(settings: MeasureSettings) -> None:
    """Write the payload file, or one for each checkpoint of a folder.

    Raises:
        ValueError: data, start, checkpoint or settings that do not work, named.
    """
    _check(settings)
    if (settings.model or "").startswith(checkpoints.HF):
        return _folder(settings)
    each = _each(settings)
    inputs = [settings.start, *(expanded(path) for one in each for path in (one.data, one.checkpoint) if path)]
    for one in each:
        _files.require_file(one.out, inputs)
    if settings.local is not None:
        _files.require_file(settings.local, [*inputs, settings.out])
    start = model_file.read(settings.start, settings.model)
    guarantee = _guarantee(settings)
    for one in each:
        _one(one, start, guarantee)


def _folder(settings: MeasureSettings) -> None:
    """Write the payload of one fine-tuned folder."""
    unused = (*TRAINING, *PRIVATE, "checkpoint", "batch_size", "unscaled", "epsilon")
    if given := _changed(settings, unused):
        raise ValueError(f"{given}: with a model of transformers nothing is trained, and no noise added")
    _files.require_file(settings.out, [expanded(settings.data)])
    sent, likelihood, start = checkpoints.measured(settings)
    bits = _write(settings, likelihood, start, sent, None)
    size = sum(leaf.size for leaf in jax.tree.leaves(sent.params))
    print(f"{settings.out}: silo {settings.silo}, {int(sent.weight)} examples, {bits / 32 / size:.3f} × FedAvg's bits")


def _each(settings: MeasureSettings) -> list[MeasureSettings]:
    """The settings of every payload: one, or one for each checkpoint of a folder."""
    if settings.checkpoint is None or not settings.checkpoint.is_dir():
        return [settings]
    found = weights.checkpoints(settings.checkpoint.glob("*.safetensors"))
    if len(found) == 1 and len(next(iter(found.values()))) > 1 and settings.data.endswith(".npz"):
        return [settings]  # the shards of one
    if sharded := [name for name, parts in found.items() if len(parts) > 1]:
        raise ValueError(f"checkpoint: {sharded[0]} has shards: give each checkpoint in shards as a folder of its own")
    if not found:
        raise ValueError(f"checkpoint: no .safetensors file in {settings.checkpoint}")
    if settings.silo + len(found) > 2**31:
        raise ValueError(f"silo: got {settings.silo}, expected room for {len(found)} numbers below 2^31")
    _files.require_folder(settings.out)
    return [
        dataclasses.replace(
            settings,
            checkpoint=file,
            data=str(Path(settings.data) / f"{file.stem}.npz"),
            out=settings.out / file.name,
            silo=number,
        )
        for number, (file,) in enumerate(found.values(), settings.silo)
    ]


def _one(settings: MeasureSettings, start: model_file.Model, guarantee: Guarantee | None) -> None:
    x, y = silo_data.read(settings.data, "train", columns=Columns(settings.label, None, settings.ignore))
    y = silo_data.classes_of(settings.data, start, y)
    x = silo_data.inputs_of(settings.data, start, x)
    _require_near_one(settings, start, x)
    apply, likelihood = start.network.apply, likelihood_of(start.kind.likelihood)
    outputs = outputs_of(apply, start.params, x, start.kind.input_shape)
    y = silo_data.targets_of(settings.data, likelihood, outputs, y)
    captured = layers_of(apply, start.params, x)
    offers = (("captured", captured), ("kind", settings.kind), ("samples", settings.samples))
    rule = rule_of(settings.rule, apply, likelihood, offers)
    key = run_keys(settings.seed)
    if isinstance(guarantee, Promise):
        rule = example_noise.clipped(rule, guarantee)
    private = None
    if settings.unit == "example" and settings.rule == PRIVATELY_TRAINED:
        guarantee = _of_training(settings, len(x))
        private, key = guarantee.private, key._replace(train=dp_training.secret_key())
    promised = jax.eval_shape(
        rule.measure, Update(start.params, start.params, start.params), examples(x, y), key.measure
    )
    structures.name_of(promised.statistics)  # before training: what has no form in files, or no noise
    if isinstance(guarantee, noise.Guarantee):
        noise.require_defined(promised.statistics)
    params, training = None, None
    if not rule.trains:
        if given := _changed(settings, (*TRAINING, "checkpoint", "local")):
            raise ValueError(f"{given}: {settings.rule} measures the start itself, and nothing is trained")
    elif settings.checkpoint is not None:
        params = model_file.read_checkpoint(settings.checkpoint, start.params)
    else:
        optimizer = sgd(settings.learning_rate, settings.momentum)
        augment = crop_and_flip() if settings.augment else None
        training = LocalTraining(
            apply,
            likelihood,
            optimizer,
            settings.epochs,
            settings.batch_size,
            augment,
            None,
            rule.squares,
            private=private,
        )
    mine = silo_cohort(x, y, settings.silo, settings.batch_size)
    sent = train_and_measure(training, rule, start.params, mine, key, params=params)
    if sent.params is not None:
        _tell(settings, start, sent, mine, rule.name)
    if settings.local is not None:
        own = jax.tree.map(np.asarray, sent.params)
        model_file.write(settings.local, start.kind, own, f"silo {settings.silo}", start.scaling, start.classes)
    if isinstance(guarantee, Promise):
        sent = example_noise.noisy(sent, guarantee)
    elif isinstance(guarantee, noise.Guarantee):
        print(f"for this silo only: {noise.losses(sent, start.params, guarantee)}")
        sent = noise.privatise(sent, start.params, guarantee)
    bits = _write(settings, start.kind.likelihood, start.fingerprint, sent, guarantee)
    size = sum(leaf.size for leaf in jax.tree.leaves(start.params))
    print(f"{settings.out}: silo {settings.silo}, {len(x)} examples, {bits / 32 / size:.3f} × FedAvg's bits")


def _require_near_one(settings: MeasureSettings, start: model_file.Model, x: np.ndarray) -> None:
    """Refuse inputs that our networks hardly learn from, unless asked for; of others say it."""
    far = far_from_one(x)
    if far is None:
        return
    if start.scaling is None and ":" not in start.kind.model and settings.checkpoint is None and not settings.unscaled:
        remedy = "let silos agree on a scaling (fedfisher describe, then init --standardise), or say --unscaled"
        raise ValueError(f"data: {settings.data}: {far}, which training hardly digests: {remedy}")
    say(f"{settings.data}: {far}")


def _tell(settings: MeasureSettings, start: model_file.Model, sent: Any, mine: Any, rule: str) -> None:
    """Tell this silo how its model does on its own examples, before and after, and what is odd about it."""
    if sent.params is None:  # the start was measured, and nothing trained
        return
    likelihood = likelihood_of(start.kind.likelihood)
    model = scoring(start.network.apply, likelihood, settings.batch_size)
    before, after = own_scores(model, start.params, jax.tree.map(lambda leaf: leaf[None], sent.params), mine)
    shown = [
        ", ".join(f"{name} {value[0]:.4f}" for name, value in scores._asdict().items() if value is not None)
        for scores in (before, after)
    ]
    print(f"on this silo's examples: {shown[0]} before, {shown[1]} after")
    words = words_on_training([f"silo {settings.silo}"], after, [best_constant(likelihood, mine.y)])
    zero = zero_fishers(jax.tree.map(lambda leaf: leaf[None], sent))
    for word in words + words_on_rule(rule, {"zero_fisher": [settings.silo] if zero else []}):
        say(word)


def _of_training(settings: MeasureSettings, size: int) -> dp_training.Promise:
    """The promise of private training on so many examples."""
    return dp_training.promise(
        settings.epsilon or 0.0,
        settings.delta,
        size,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        clip_gradients=settings.clip_gradients,
        releases=settings.rounds,
    )


def _guarantee(settings: MeasureSettings) -> Guarantee | None:
    if settings.epsilon is None:
        if given := _changed(settings, PRIVATE):
            raise ValueError(f"{given}: needs epsilon; without it nothing is clipped and no noise added")
        return None
    if settings.unit == "example":
        if given := _changed(settings, ("clip_params", "clip_fisher")):
            what = "gradients" if settings.rule == PRIVATELY_TRAINED else "features"
            raise ValueError(f"{given}: of examples the {what} are clipped, see clip_{what}")
        if settings.rule == PRIVATELY_TRAINED:
            if given := _changed(settings, ("clip_features", "checkpoint")):
                raise ValueError(f"{given}: {PRIVATELY_TRAINED} with privacy of examples trains, see clip_gradients")
            return None  # it depends on the number of examples
        if given := _changed(settings, ("clip_gradients",)):
            raise ValueError(f"{given}: {settings.rule} reads no gradients, expected fedavg")
        asked = {"clip_features": settings.clip_features, "releases": settings.rounds}
        return example_noise.promise(settings.epsilon, settings.delta, **asked)
    if given := _changed(settings, ("clip_features", "clip_gradients")):
        raise ValueError(f"{given}: needs unit example")
    clips = {"clip_params": settings.clip_params, "clip_fisher": settings.clip_fisher}
    return noise.noise_for(settings.epsilon, settings.delta, rounds=settings.rounds, **clips)


def _write(settings: MeasureSettings, likelihood: str, start: str, sent: Any, guarantee: Guarantee | None) -> int:
    said = payload.About(
        rule=plain_name(settings.rule),  # options are the server's to say
        likelihood=likelihood,
        start=start,
        kind=None if sent.kind is None else sent.kind.name,
        silo=settings.silo,
        name=settings.name,
        privacy=None if guarantee is None else guarantee._asdict(),
        compression=settings.compression if settings.budget is None else f"budget {settings.budget:g}",
    )
    if settings.budget is not None:
        chosen = plan.fit(sent, said, settings.budget, stochastic=settings.stochastic)
    else:
        chosen = plan.authors(sent) if settings.compression == "authors" else plan.none(sent)
    random = np.random.default_rng([settings.seed, settings.silo])
    return payload.write(settings.out, sent, said, chosen, random=random)


def _changed(settings: MeasureSettings, names: tuple[str, ...]) -> str:
    """Name those of the settings that are not the defaults."""
    return ", ".join(name for name in names if getattr(settings, name) != getattr(MeasureSettings, name))


def _check(settings: MeasureSettings) -> None:
    require_ranges(settings)
    if settings.checkpoint is not None and (given := _changed(settings, TRAINING)):
        raise ValueError(f"{given}: with a checkpoint nothing is trained")
    if settings.local is not None and (settings.checkpoint is not None or (settings.model or "").startswith("hf:")):
        raise ValueError("local: with a checkpoint nothing is trained")
    if len(settings.name) > MOST_TEXT or not settings.name.isprintable():
        raise ValueError(f"name: got {settings.name[:40]!r}, expected at most {MOST_TEXT} printable characters")
    if settings.budget is not None and settings.compression != "none":
        raise ValueError("budget, compression: give one of them")
    if settings.where is not None and not (settings.model or "").startswith(checkpoints.HF):
        raise ValueError(f"where: got {settings.where!r}, expected it with --model hf:FOLDER alone")
    if settings.stochastic and settings.budget is None:
        raise ValueError("stochastic: needs a budget")
