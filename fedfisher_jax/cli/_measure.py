"""`fedfisher measure`: what a silo does. Data and the start in, one payload file out."""

from typing import Any

import jax
import numpy as np

from .. import _files, payload
from .._examples import examples
from .._likelihood import Likelihood
from ..data import Columns
from ..data._scaling import far_from_one
from ..data._where import expanded
from ..federate import Cohort, LocalTraining, best_constant, crop_and_flip, own_scores, run_keys, zero_fishers
from ..federate._private import Private
from ..merge import Payload, Rule, Update
from ..merge._natural_gradient import exchange_at
from ..merge._options import plain_name
from ..payload import _structures as structures
from ..payload import plan
from ..privacy import dp_training, example_noise, noise
from ..privacy.example_noise import Promise
from ..report import words_on_rule, words_on_training
from ..silos import _model_file as model_file
from ..silos import _silo_data as silo_data
from ..silos import silo_cohort, train_and_measure
from ..silos._network import likelihood_of, outputs_of
from . import _checkpoints as checkpoints
from ._measure_private import only_parameters, promise_of
from ._measure_settings import (
    PRIVATE,
    TRAINING,
    MeasureSettings,
    changed,
    check,
    each_of,
    of_pytorch,
)
from ._once import layers_of, optimizer_of, rule_of, scoring
from ._one_line import say

PyTree = Any
Guarantee = noise.Guarantee | Promise | dp_training.Promise


def measure(settings: MeasureSettings) -> None:
    """Write the payload file, or one for each checkpoint of a folder.

    Raises:
        ValueError: data, start, checkpoint or settings that do not work, named.
    """
    check(settings)
    if of_pytorch(settings):
        return _of_pytorch(settings)
    each = each_of(settings)
    inputs = [settings.start, *(expanded(path) for one in each for path in (one.data, one.checkpoint) if path)]
    for one in each:
        _files.require_file(one.out, inputs)
    if settings.local is not None:
        _files.require_file(settings.local, [*inputs, settings.out], "local")
    start = model_file.read(settings.start, settings.model)
    guarantee = _guarantee(settings)
    for one in each:
        _one(one, start, guarantee)


def _of_pytorch(settings: MeasureSettings) -> None:
    """Write the payload of one fine-tuned model of PyTorch."""
    inputs = [expanded(settings.data), settings.start, *([settings.checkpoint] if settings.checkpoint else [])]
    _files.require_file(settings.out, inputs)
    sent, likelihood, start = checkpoints.measured(settings)
    bits = _write(settings, likelihood, start, sent, None)
    size = sum(leaf.size for leaf in jax.tree.leaves(sent.params))
    print(f"{settings.out}: silo {settings.silo}, {int(sent.weight)} examples, {bits / 32 / size:.3f} × FedAvg's bits")


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
    rule = exchange_at(rule_of(settings.rule, apply, likelihood, offers), start.sent)
    key = run_keys(settings.seed)
    private = None
    if settings.epsilon is not None and settings.unit == "example":
        guarantee = of_examples = promise_of(settings, rule, len(x))
        rule = rule if only_parameters(rule) else example_noise.clipped(rule, of_examples)
    if isinstance(guarantee, dp_training.Promise):
        private, key = guarantee.private, key._replace(train=dp_training.secret_key())
    promised = jax.eval_shape(rule.measure, Update(start.params, start.sent, start.params), examples(x, y), key.measure)
    structures.name_of(promised.statistics)  # before training: what has no form in files, or no noise
    if isinstance(guarantee, noise.Guarantee):
        noise.require_defined(promised.statistics)
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), promised)._replace(weight=len(x))
    _plan(settings, empty, _about(settings, start.kind.likelihood, start.fingerprint, empty, guarantee))
    params, training = _how_to_train(settings, rule, start, likelihood, private)
    mine = silo_cohort(x, y, settings.silo, settings.batch_size)
    if isinstance(guarantee, Promise) and guarantee.trust == "distributed":
        sent = example_noise.exact(rule, start.sent, examples(x, y), key.measure)
    else:
        sent = train_and_measure(training, rule, start.sent, mine, key, params=params)
    if sent.params is not None:
        _tell(settings, start, sent, mine, rule.name)
    if settings.local is not None:
        own = jax.tree.map(np.asarray, sent.params)
        model_file.write(settings.local, start.kind, own, f"silo {settings.silo}", start.scaling, start.classes)
    if isinstance(guarantee, noise.Guarantee):
        print(f"for this silo only: {noise.losses(sent, start.params, guarantee)}")
        sent = noise.privatise(sent, start.params, guarantee)
    elif guarantee is not None and settings.trust == "local" and sent.statistics is not None:
        sent = example_noise.noisy(sent, guarantee)
    bits = _write(settings, start.kind.likelihood, start.fingerprint, sent, guarantee)
    size = sum(leaf.size for leaf in jax.tree.leaves(start.params))
    print(f"{settings.out}: silo {settings.silo}, {len(x)} examples, {bits / 32 / size:.3f} × FedAvg's bits")
    if settings.trust == "distributed":
        print("it has no noise yet: give it to fedfisher secure, and to nobody else")


def _how_to_train(
    settings: MeasureSettings, rule: Rule, start: model_file.Model, likelihood: Likelihood, private: Private | None
) -> tuple[PyTree, LocalTraining | None]:
    """The parameters of a checkpoint, or how this silo trains its own; neither for a rule that measures the start.

    Raises:
        ValueError: settings of a training that is not to be.
    """
    if not rule.trains:
        if given := changed(settings, (*TRAINING, "checkpoint", "local")):
            raise ValueError(f"{given}: {settings.rule} measures the start itself, and nothing is trained")
        return None, None
    if settings.checkpoint is not None:
        return model_file.read_checkpoint(settings.checkpoint, start.params), None
    return None, LocalTraining(
        start.network.apply,
        likelihood,
        optimizer_of("sgd", settings.learning_rate, settings.momentum),
        settings.epochs,
        settings.batch_size,
        crop_and_flip() if settings.augment else None,
        squares=rule.squares,
        private=private,
    )


def _require_near_one(settings: MeasureSettings, start: model_file.Model, x: np.ndarray) -> None:
    """Refuse inputs that our networks hardly learn from, unless asked for; of others say it."""
    far = far_from_one(x)
    if far is None:
        return
    if start.scaling is None and ":" not in start.kind.model and settings.checkpoint is None and not settings.unscaled:
        remedy = "let silos agree on a scaling (fedfisher describe, then init --standardise), or say --unscaled"
        raise ValueError(f"data: {settings.data}: {far}, which training hardly digests: {remedy}")
    say(f"{settings.data}: {far}")


def _tell(settings: MeasureSettings, start: model_file.Model, sent: Payload, mine: Cohort, rule: str) -> None:
    """Tell this silo how its model does on its own examples, before and after, and what is odd about it."""
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


def _guarantee(settings: MeasureSettings) -> Guarantee | None:
    if settings.epsilon is None:
        if given := changed(settings, PRIVATE):
            raise ValueError(f"{given}: needs epsilon; without it nothing is clipped and no noise added")
        return None
    if settings.unit == "example":
        return None  # it depends on the rule, and on the number of examples
    if given := changed(settings, ("clip_features", "clip_gradients", "share", "trust", "sharers")):
        raise ValueError(f"{given}: needs unit example")
    clips = {"clip_params": settings.clip_params, "clip_fisher": settings.clip_fisher}
    return noise.noise_for(settings.epsilon, settings.delta, rounds=settings.rounds, **clips)


def _about(
    settings: MeasureSettings, likelihood: str, start: str, sent: Payload, guarantee: Guarantee | None
) -> payload.About:
    """What the file says of itself."""
    return payload.About(
        rule=plain_name(settings.rule),  # options are the server's to say
        likelihood=likelihood,
        start=start,
        kind=None if sent.kind is None else sent.kind.name,
        silo=settings.silo,
        name=settings.name,
        privacy=None if guarantee is None else guarantee._asdict(),
        compression=settings.compression if settings.budget is None else f"budget {settings.budget:g}",
    )


def _plan(settings: MeasureSettings, sent: Payload, said: payload.About) -> dict[str, payload.Codec]:
    """How entries are encoded, by their shapes.

    Raises:
        ValueError: a budget that is too small, or a structure that the authors do not compress.
    """
    if settings.budget is not None:
        return plan.fit(sent, said, settings.budget, stochastic=settings.stochastic)
    return plan.authors(sent) if settings.compression == "authors" else plan.none(sent)


def _write(settings: MeasureSettings, likelihood: str, start: str, sent: Payload, guarantee: Guarantee | None) -> int:
    said = _about(settings, likelihood, start, sent, guarantee)
    chosen = _plan(settings, sent, said)
    random = np.random.default_rng([settings.seed, settings.silo])
    return payload.write(settings.out, sent, said, chosen, random=random)
