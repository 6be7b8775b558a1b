"""What is read off sums of rules without training: the attacks of `privacy.sums` on one view of one client."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.privacy import images, members
from experiments.privacy.world import Federation
from fedfisher_jax import Payload
from fedfisher_jax.curvature import activations
from fedfisher_jax.curvature._reuse import dense
from fedfisher_jax.curvature.structures._class_moments import ClassMoments
from fedfisher_jax.curvature.structures._gradient import Gradient
from fedfisher_jax.merge._pseudo_data import basis
from fedfisher_jax.privacy.attacks import measures, sums

MOST = 150.0  # dB, where a picture is exact


class People(NamedTuple):
    """Clients who have not trained, and the rows of each one's examples."""

    here: Federation
    rows: list[np.ndarray]


def attack(there: People, view: Payload, model: Any, number: int, noisy: bool) -> tuple[dict[str, float], Any]:
    """Everything that is read off one view of one client, and its class images, if any."""
    here, target, statistics = there.here, there.here.targets[number], view.statistics
    pixels, shape = here.public[0].size, here.public.shape[1:]
    if isinstance(statistics, Gradient):
        told = sums.of_gradient(statistics, model, here.captured.layers[-1])
        moments = [np.asarray(statistics.fisher.moment(here.captured.layers[0], 0))]
        mean, pictures, found = moments[0][-1, :-1], None, {"features": cosine(there, told, model, number)}
    else:
        if isinstance(statistics, ClassMoments):
            told, moments = sums.of_class_moments(statistics), list(np.asarray(statistics.second))
        else:
            told, read = sums.of_head(statistics), np.r_[:pixels, len(statistics.second) - 1]
            moments = [np.asarray(statistics.second)[np.ix_(read, read)]]
        means = np.asarray(told.means)[:, :pixels]
        mean = np.asarray(told.shares) @ means
        if noisy:  # features were scaled to one norm
            norm = np.linalg.norm(np.asarray(here.public).reshape(len(here.public), -1), axis=1).mean()
            unit = lambda a: a * norm / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-30)  # noqa: E731
            means, mean = unit(means), unit(mean)
        pictures = jnp.asarray(means, jnp.float32).reshape(-1, *shape)
        found = {"psnr_class_mean": images.judge(here, target, pictures)[0]["psnr_class_mean"]}
        alone = np.round(target.shares * len(there.rows[number])) == 1
        if alone.any():
            score = measures.psnr(images.unit(here, pictures), images.unit(here, target.class_means))
            found["single"] = float(np.minimum(np.asarray(score)[alone], MOST).mean())
    found["mean"] = images.like_mean(here, target, jnp.asarray(mean, jnp.float32).reshape(1, *shape))["psnr"]
    shares = jnp.asarray(target.shares, told.shares.dtype)
    found["distance"] = float(measures.total_variation_distance(told.shares, shares))
    scores = [leverages(moments, *scored) for scored in (target.scored_members, target.scored_others)]
    found["auc"] = float(measures.auc(*(jnp.asarray(one, jnp.float32) for one in scores)))
    return found, pictures


def leverages(moments: list[np.ndarray], x: Any, y: Any) -> np.ndarray:
    """Minus each image's leverage in the second moment of images with a one behind, or in that of its class."""
    rows = np.asarray(x).reshape(len(x), -1)
    if len(moments) == 1:
        return members.leverage(moments[0], np.concatenate([rows, np.ones((len(rows), 1))], axis=1))
    rows = rows @ np.asarray(basis(x.shape[1:], moments[0].shape[-1])).T
    return np.stack([members.leverage(one, rows) for one in moments])[np.asarray(y), np.arange(len(y))]


def cosine(there: People, told: sums.Classes, model: Any, number: int) -> float:
    """The cosine of the class means of the last layer's inputs that were told and those that are true, on average."""
    here, rows = there.here, there.rows[number]
    leaves, x = jax.tree.leaves(model), jnp.asarray(here.dataset.train_x[rows])
    features = np.asarray(jax.lax.map(lambda one: dense(activations(here.captured, leaves, one)[-1])[0, :-1], x))
    labels = here.dataset.train_y[rows]
    found = []
    for label in np.unique(labels):
        real, ours = features[labels == label].mean(0), np.asarray(told.means[label])
        found.append(real @ ours / max(np.linalg.norm(real) * np.linalg.norm(ours), 1e-30))
    return float(np.mean(found))


def guess(here: Federation) -> dict[str, float]:
    """What public images and equal shares of all classes give in the place of an attack."""
    labels, average = here.dataset.test_y[::2], jnp.mean(here.public, 0)
    pictures = jnp.stack([jnp.mean(here.public[labels == c], 0) for c in range(here.dataset.num_classes)])
    found = {"psnr_class_mean": [], "mean": [], "distance": []}
    for target in here.targets:
        found["psnr_class_mean"].append(images.judge(here, target, pictures)[0]["psnr_class_mean"])
        found["mean"].append(images.like_mean(here, target, average[None])["psnr"])
        found["distance"].append(np.abs(target.shares - 1 / len(target.shares)).sum() / 2)
    return {name: float(np.mean(values)) for name, values in found.items()}
