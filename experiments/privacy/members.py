"""Attacks that tell who and what was among a client's examples, measured: membership and label shares.

As those of `images`: (world, network, seed, kind of payload, protection) → means over the attacked clients.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.privacy.images import layer_inputs, sees_images
from experiments.privacy.world import Federation, federation, loaded, seen
from fedfisher_jax import categorical
from fedfisher_jax.merge import Payload
from fedfisher_jax.privacy import attacks
from fedfisher_jax.privacy.attacks import labels, measures


def _membership(scores: Callable[[Any, Payload, Any, Any], Any], *cell: Any) -> dict[str, float]:
    here, views = federation(*cell[:3]), seen(*cell)
    found = []
    for target, view in zip(here.targets, views, strict=False):
        members, others = (scores(here, view, *examples) for examples in (target.scored_members, target.scored_others))
        found.append(float(measures.auc(members, others)))
    return {"auc": float(np.mean(found))}


def membership_loss(*cell: Any) -> dict[str, float]:
    """By the loss."""
    return _membership(lambda h, v, x, y: attacks.loss_scores(h.network.apply, categorical(), v.params, x, y), *cell)


def membership_fisher(*cell: Any) -> dict[str, float]:
    """By the gradient in the metric of the inverse Fisher."""
    score = attacks.fisher_scores
    return _membership(lambda h, v, x, y: score(h.network.apply, categorical(), v.params, v.statistics, x, y), *cell)


def membership_leverage(*cell: Any) -> dict[str, float]:
    """By the leverage in the first layer's second moment, which needs no label."""

    def scores(here: Federation, view: Payload, x: Any, y: Any) -> jax.Array:
        del y
        layers = (0,) if sees_images(here) else tuple(range(len(here.captured.layers)))
        moments = [attacks.input_moment(view.statistics, here.captured.layers[n]) for n in layers]
        return attacks.leverage_scores(here.captured, layers, view.params, moments, x)

    return _membership(scores, *cell)


def _labels(guess: Callable[[Federation, Payload], Any], *cell: Any) -> dict[str, float]:
    here, views = federation(*cell[:3]), seen(*cell)
    pairs = zip(here.targets, views, strict=False)
    distances = [measures.total_variation_distance(guess(here, v), jnp.asarray(t.shares)) for t, v in pairs]
    return {"distance": float(np.mean([float(one) for one in distances]))}


def labels_update(*cell: Any) -> dict[str, float]:
    """From the move of the last layer."""
    return _labels(lambda h, v: labels.of_update(h.start, v.params, h.captured.layers[-1]), *cell)


def labels_output(*cell: Any) -> dict[str, float]:
    """From the last layer's gradients."""

    def guess(here: Federation, view: Payload) -> jax.Array:
        return labels.of_output_moment(attacks.output_moment(view.statistics, here.captured.layers[-1]))

    return _labels(guess, *cell)


def labels_input(*cell: Any) -> dict[str, float]:
    """From the last layer's inputs and weights."""

    def guess(here: Federation, view: Payload) -> jax.Array:
        inputs, key = layer_inputs(here, view)[-1], jax.random.key(0)
        return labels.of_last_inputs(categorical().mean, view.params, here.captured.layers[-1], inputs, key)

    return _labels(guess, *cell)


def leverage_by_size(dataset: str, size: int, seed: int) -> dict[str, float]:
    """AUC by leverage where A is that of `size` raw images, one client's: no network is needed."""
    full = loaded(dataset)
    order = np.random.default_rng(seed).permutation(len(full.train_y))
    x = full.train_x.reshape(len(full.train_y), -1).astype(np.float64)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    mine, others = x[order[:size]], x[order[-500:]]
    scores = [leverage(mine.T @ mine / size, rows) for rows in (mine[:500], others)]
    return {"auc": float(measures.auc(jnp.asarray(scores[0], jnp.float32), jnp.asarray(scores[1], jnp.float32)))}


def leverage(moment: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Minus the leverage of rows [n, i] in a second moment [i, i], damped as in `attacks.leverage_scores`."""
    values, vectors = np.linalg.eigh(moment.astype(np.float64))
    inverse = (vectors / np.maximum(np.maximum(values, 0) + 1e-3 * values.mean(), 1e-300)) @ vectors.T
    return -np.einsum("ni,ni->n", rows @ inverse, rows)


ATTACKS: dict[str, Callable[..., dict[str, Any]]] = {
    "membership by loss": membership_loss,
    "membership by Fisher score": membership_fisher,
    "membership by leverage": membership_leverage,
    "labels from the update": labels_update,
    "labels from gradients": labels_output,
    "labels from inputs": labels_input,
}
