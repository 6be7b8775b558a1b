"""What a run works with: examples, their split, the network, how it is trained, and the rules."""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import data, models
from .._further import rmse_of
from .._likelihood import Likelihood
from ..curvature import Capture
from ..federate import LocalTraining, RunKeys, crop_and_flip, run_keys
from ..federate._one_shot import offers as offers_of
from ..merge import catalogue
from ..merge._options import named
from ..merge._rule import Rule
from ..silos import _model_file as model_file
from ..silos._network import likelihood_of, template_of
from ._clients import Pair, split_of
from ._once import layers_of, network_of, optimizer_of, rule_of
from ._servers import without_server
from ._settings import RunSettings


class World(NamedTuple):
    """A run's parts, made from its settings before any work."""

    dataset: data.Dataset
    data_seed: int
    strata: data.Strata  # of the training examples
    parts: list[np.ndarray]  # each client's rows
    held_out: list[Pair]  # those of clients that take part in no round
    network: models.Network
    likelihood: Likelihood
    training: LocalTraining
    start: Any  # parameters
    captured: Capture
    key: RunKeys
    x: jax.Array  # training examples on the device
    y: jax.Array
    kind: model_file.Kind  # of the models that it writes
    scaling: data.Scaling | None  # of raw inputs; named data sets come scaled and have none


def world(settings: RunSettings) -> World:
    """Load, split and build.

    Raises:
        ValueError: what does not work, named.
    """
    dataset = data.load(
        settings.dataset,
        data_dir=settings.data_dir,
        inputs=settings.inputs,
        columns=data.Columns(settings.label, settings.silo_column, settings.ignore),
        likelihood=settings.likelihood,
    )
    strata = data.strata(settings.likelihood, dataset.train_y)
    data_seed = settings.seed if settings.data_seed is None else settings.data_seed
    split = split_of(settings, dataset, strata.labels, data_seed)
    shape = dataset.train_x.shape[1:]
    network = network_of(settings.model, shape, dataset.num_classes, settings.bias)
    captured = layers_of(network.apply, template_of(network), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    likelihood, key = likelihood_of(settings.likelihood), run_keys(settings.seed)
    start = models.STARTS[settings.start](network.init(key.init))
    step = optimizer_of(settings.optimizer, settings.learning_rate, settings.momentum, settings.schedule)
    augment = crop_and_flip() if dataset.augment else None
    training = LocalTraining(network.apply, likelihood, step, settings.epochs, settings.batch_size, augment)
    kind = model_file.Kind(
        settings.model, tuple(map(int, shape)), dataset.num_classes, settings.bias, settings.likelihood
    )
    return World(
        dataset,
        data_seed,
        strata,
        split.parts,
        split.held_out,
        network,
        likelihood,
        training,
        start,
        captured,
        key,
        jnp.asarray(dataset.train_x),
        jnp.asarray(dataset.train_y),
        kind,
        dataset.scaling if data.is_own(settings.dataset) else None,
    )


def rules_of(settings: RunSettings, here: World, names: tuple[str, ...]) -> Mapping[str, Rule]:
    """Make the rules; parts that two of them share are one object, so that they share their work, too."""
    if settings.preset == "paper":
        return _released(settings, here, names)
    apply, options = here.network.apply, {"kind": settings.kind, "samples": settings.samples}
    offers = offers_of(here.network.init, here.training, here.captured, settings.seed, **options)

    def part(name: str) -> Rule:
        if settings.damping is not None and named(name).name in catalogue.SOLVED:
            name = catalogue.with_option(name, "damping", settings.damping)
        taken = catalogue.takes(name)  # rules that take no fresh starts are the same for all seeds
        return rule_of(name, apply, here.likelihood, tuple(one for one in offers.items() if one[0] in taken))

    return {name: catalogue.composed(without_server(name), part) for name in names}


def _released(settings: RunSettings, here: World, names: tuple[str, ...]) -> Mapping[str, Rule]:
    """The authors' rules, whose server picks by labelled examples of these data."""
    apply, likelihood = here.network.apply, here.likelihood
    picked = jax.random.randint(here.key.pick, (500,), 0, len(here.x))  # with replacement, as the authors do
    pick_x, pick_y = here.x[picked], here.y[picked]

    def validation(params: Any) -> Any:
        return jnp.mean(jnp.argmax(apply(params, pick_x), axis=-1) == pick_y)

    fisher = {"kind": settings.kind, "samples": settings.samples, "validation": validation}
    offers = offers_of(here.network.init, here.training, here.captured, settings.seed, **fisher)

    @cache
    def part(name: str) -> Rule:
        return catalogue.named_rule(name, apply, likelihood, offers=offers, rules=catalogue.RELEASED)

    return {name: catalogue.composed(without_server(name), part) for name in names}


def with_rmse(here: World, scores: dict[str, Any]) -> dict[str, Any]:
    """Scores of test examples with the root mean square error where targets are numbers."""
    if here.likelihood.name != "gaussian" or "loss" not in scores:
        return scores
    return scores | {"rmse": rmse_of(scores["loss"], here.dataset.num_classes)}
