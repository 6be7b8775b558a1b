"""What a run works with: examples, their split, the network, how it is trained, and the rules."""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import data, models
from .._likelihood import Likelihood, categorical
from ..curvature import Capture, capture
from ..federate import LocalTraining, RunKeys, crop_and_flip, run_keys
from ..federate._one_shot import offers as offers_of
from ..merge import catalogue
from ..merge._rule import Rule
from ..silos import _model_file as model_file
from ..silos._network import network_of, template_of
from ..solve._conjugate_gradients import conjugate_gradients
from ._local_training import training_of
from ._settings import RunSettings


class World(NamedTuple):
    """A run's parts, made from its settings before any work."""

    dataset: data.Dataset
    data_seed: int
    parts: list[np.ndarray]  # each client's rows
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
        label=settings.label,
        silo=settings.silo,
    )
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
    shape = dataset.train_x.shape[1:]
    network = network_of(settings.model, shape, dataset.num_classes, settings.bias)
    if ":" in settings.model:
        template_of(network)
    likelihood, key = categorical(), run_keys(settings.seed)
    start = models.STARTS[settings.start](network.init(key.init))
    captured = capture(network.apply, start, dataset.train_x)
    training = training_of(settings, network.apply, likelihood, crop_and_flip() if dataset.augment else None)
    kind = model_file.Kind(settings.model, tuple(map(int, shape)), dataset.num_classes, settings.bias)
    return World(
        dataset,
        data_seed,
        list(parts),
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
    apply, likelihood = here.network.apply, here.likelihood
    fisher = {"kind": settings.kind, "samples": settings.samples}
    offers = offers_of(here.network.init, here.training, here.captured, settings.seed, **fisher)
    if settings.preset == "paper":
        picked = jax.random.randint(here.key.pick, (500,), 0, len(here.x))  # with replacement, as the authors do
        pick_x, pick_y = here.x[picked], here.y[picked]

        def validation(params: Any) -> Any:
            return jnp.mean(jnp.argmax(apply(params, pick_x), axis=-1) == pick_y)

        offers = offers | {"validation": validation}
    known = catalogue.RELEASED if settings.preset == "paper" else catalogue.RULES
    solved = {} if settings.damping is None else {"solver": conjugate_gradients(damping=settings.damping)}

    @cache
    def part(name: str) -> Rule:
        own = solved if name in catalogue.SOLVED else {}
        return catalogue.named_rule(name, apply, likelihood, offers=offers, rules=known, **own)

    return {name: catalogue.composed(name, part) for name in names}
