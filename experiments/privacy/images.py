"""Attacks that reconstruct images, measured: (world, network, seed, kind of payload, protection) → numbers.

Means over the attacked clients (and the classes that they have); `pictures` holds the reconstructions of one client.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.privacy.steps import RATE, step_seen
from experiments.privacy.world import COMPONENTS, Federation, Target, World, federation, seen
from fedfisher_jax import categorical
from fedfisher_jax.curvature import activations
from fedfisher_jax.merge import Payload
from fedfisher_jax.privacy import attacks
from fedfisher_jax.privacy.attacks import measures

STEPS, GRADIENT_STEPS, PIXEL_STEPS = 300, 1500, 600
INVERT = optax.adam(optax.cosine_decay_schedule(0.1, STEPS))
MATCH = optax.adam(optax.cosine_decay_schedule(1.0, GRADIENT_STEPS))  # coordinates in a span
MATCH_PIXELS = optax.adam(optax.cosine_decay_schedule(0.1, PIXEL_STEPS))


def unit(here: Federation, images: Any) -> jax.Array:
    """Pixels between 0 and 1."""
    low, high = here.bounds
    return (jnp.clip(images, low, high) - low) / (high - low)


def judge(here: Federation, target: Target, images: Any) -> tuple[dict[str, float], np.ndarray]:
    """Class-wise reconstructions [C, …] against the client: and each one's nearest member."""
    ours = unit(here, images)
    members, others = unit(here, target.members), unit(here, target.others)
    near = measures.nearest(ours, members, target.allowed)
    member = measures.likeness(ours, members[near])
    other = measures.likeness(ours, others[measures.nearest(ours, others, target.allowed)])
    mean = measures.likeness(ours, unit(here, target.class_means))
    found = {
        "psnr": member.psnr,
        "psnr_other": other.psnr,
        "gap": member.psnr - other.psnr,
        "ssim": member.ssim,
        "ssim_other": other.ssim,
        "mse": member.mse,
        "psnr_class_mean": mean.psnr,
        "ssim_class_mean": mean.ssim,
    }
    return {name: float(np.mean(np.asarray(v)[target.present])) for name, v in found.items()}, np.asarray(members[near])


def mean_of(results: list[dict[str, float]]) -> dict[str, float]:
    """Over clients."""
    return {name: float(np.mean([one[name] for one in results])) for name in results[0]}


def inverted(here: Federation, found: list[Any]) -> dict[str, Any]:
    """The measures of all clients' reconstructions, and the pictures of the client that has most classes."""
    judged = [judge(here, target, images) for target, images in zip(here.targets, found, strict=True)]
    shown = int(np.argmax([target.present.sum() for target in here.targets]))
    picture = {
        "images": np.asarray(unit(here, found[shown])),
        "neighbours": judged[shown][1],
        "present": here.targets[shown].present,
        "class_means": np.asarray(unit(here, here.targets[shown].class_means)),
    }
    return {**mean_of([one for one, _ in judged]), "pictures": picture}


def classes_of(here: Federation) -> jax.Array:
    """Every class once."""
    return jnp.arange(here.dataset.num_classes)


# ---- images ----------------------------------------------------------------------------------------------------------


def model_inversion(*cell: Any) -> dict[str, Any]:
    """Class by class from the parameters, with total variation and norm as priors."""
    here, views = federation(*cell[:3]), seen(*cell)
    loss = attacks.ModelInversion(here.network.apply, categorical())
    shape, targets = here.public.shape[1:], classes_of(here)
    found = []
    for number in range(len(here.targets)):
        state = attacks.begin(INVERT, attacks.grey(jax.random.key(number), len(targets), shape, here.bounds))
        given = (views[number].params, targets)
        found.append(attacks.descend(loss, INVERT, state, given, steps=STEPS, bounds=here.bounds)[0].inputs)
    return inverted(here, found)


@cache
def _averages(captured: Any) -> Callable:
    """(parameters' leaves, images) → every layer's inputs on average, without the 1 of a bias."""

    def average(leaves: list[Any], x: Any) -> list[jax.Array]:
        rows = jax.lax.map(lambda one: activations(captured, leaves, one), x, batch_size=100)
        pairs = zip(rows, captured.layers, strict=True)
        return [jnp.mean(a.reshape(-1, a.shape[-1]), 0)[: a.shape[-1] - (s.bias is not None)] for a, s in pairs]

    return jax.jit(average)


def layer_inputs(here: Federation, view: Payload) -> list[attacks.Inputs]:
    """What the view's Fisher tells of each layer's inputs; signs that it leaves open are those of public images."""
    likes = _averages(here.captured)(jax.tree.leaves(view.params), here.public[:500])
    pairs = zip(here.captured.layers, likes, strict=True)
    return [attacks.inputs_of(view.statistics, layer, like) for layer, like in pairs]


def sees_images(here: Federation) -> bool:
    """Whether the first layer's inputs are whole images."""
    layer = here.captured.layers[0]
    return layer.shape[0] == here.public[0].size


def fisher_inversion(*cell: Any) -> dict[str, Any]:
    """Class by class, near the inputs that the Fisher tells of."""
    here, views = federation(*cell[:3]), seen(*cell)
    shape, targets = here.public.shape[1:], classes_of(here)
    everything = here.captured.layers
    layers = tuple(n for n, layer in enumerate(everything) if sees_images(here) or len(layer.shape) == 2)
    priors = attacks.Weights(1e-3, 0.0) if sees_images(here) else attacks.Weights()  # patches do not make an image
    model = here.network.apply, categorical(), here.captured
    loss = attacks.FisherInversion(*model, layers, shape, weights=priors)
    found = []
    for number in range(len(here.targets)):
        if sees_images(here):
            inputs = layer_inputs(here, views[number])
        else:  # about zero: the strongest eigenvector of features is too bad a mean (measured: 9 against 14 dB)
            moments = [attacks.input_moment(views[number].statistics, everything[n]) for n in layers]
            inputs = [attacks.Inputs(jnp.zeros_like(a[0]), a) for a in moments]
        given = attacks.Given(views[number].params, targets, [attacks.whitener(one) for one in inputs])
        if sees_images(here):
            parts = attacks.principal(inputs[0], inputs[0].mean.size)
            roots = jnp.sqrt(jnp.maximum(parts.variances, 0))
            given = given._replace(mean=inputs[0].mean, basis=roots[:, None] * parts.directions)
            begin, bounds = jnp.zeros((len(targets), len(roots)), roots.dtype), None
        else:
            begin, bounds = attacks.grey(jax.random.key(number), len(targets), shape, here.bounds), here.bounds
        state = attacks.begin(INVERT, begin)
        state, _ = attacks.descend(loss, INVERT, state, given, steps=STEPS, bounds=bounds)
        found.append(attacks.images_of(state.inputs, given, shape))
    return inverted(here, found)


def mean_image(*cell: Any) -> dict[str, float]:
    """The client's mean image, read off the first layer's block."""
    here, views = federation(*cell[:3]), seen(*cell)
    found = []
    for number, target in enumerate(here.targets):
        image = layer_inputs(here, views[number])[0].mean.reshape(1, *here.public.shape[1:])
        found.append(like_mean(here, target, image))
    return mean_of(found)


def components(*cell: Any) -> dict[str, Any]:
    """The client's first principal components, read off the first layer's block: their share in those found."""
    here, views = federation(*cell[:3]), seen(*cell)
    overlaps, pictures = [], []
    for number, target in enumerate(here.targets):
        inputs = layer_inputs(here, views[number])[0]
        found = np.asarray(attacks.principal(inputs, COMPONENTS).directions)
        overlaps.append(float(np.sum((target.components @ found.T) ** 2) / COMPONENTS))
        signs = np.sign(np.sum(found * target.components, axis=1, keepdims=True))
        pairs = ((inputs.mean, signs * found), (target.mean, target.components))
        pictures.append([_as_picture(here, mean, rows) for mean, rows in pairs])
    shown = int(np.argmax([target.present.sum() for target in here.targets]))
    images, real = pictures[shown]
    picture = {"images": images, "neighbours": real, "present": np.ones(len(images), bool)}
    return {"overlap": float(np.mean(overlaps)), "pictures": picture}


def _as_picture(here: Federation, mean: Any, directions: np.ndarray) -> np.ndarray:
    """A mean image, and directions with zero as middle grey."""
    shape = here.public.shape[1:]
    grey = 0.5 + directions / (2 * np.max(np.abs(directions), axis=1, keepdims=True))
    first = np.asarray(unit(here, jnp.reshape(mean, (1, *shape))))
    return np.concatenate([first, grey.reshape(-1, *shape)])


def like_mean(here: Federation, target: Target, image: Any) -> dict[str, float]:
    """An image [1, …] against the client's mean image."""
    score = measures.likeness(unit(here, image), unit(here, target.mean[None]))
    return {"psnr": float(score.psnr[0]), "ssim": float(score.ssim[0]), "mse": float(score.mse[0])}


def gradient_inversion(*cell: Any) -> dict[str, Any]:
    """A client with one example per class sends one step of a network that was trained on them.

    Where sums are secure, the server sees the mean step of all clients' batches; it then looks for all of their images,
    and those of the first client are compared with the nearest found of their class.
    """
    world, name, seed, _, protection = cell
    here = federation(world, name, seed)
    return inverted_step(here, seed, step_seen(here, world, seed, protection))


def inverted_step(here: Federation, seed: int, step: tuple[Any, Any, jax.Array, jax.Array]) -> dict[str, Any]:
    """The first client's images out of what `step_seen` gave."""
    before, after, truth, targets = step
    gradient = attacks.gradient_of_step(before, after, RATE)
    shape, count = here.public.shape[1:], len(targets)
    loss = attacks.GradientInversion(here.network.apply, categorical(), shape, here.bounds)
    begin = attacks.grey(jax.random.key(seed), count, shape, here.bounds)
    layer = here.captured.layers[0]
    if sees_images(here) and count <= layer.shape[1]:
        directions = attacks.span(gradient, layer, count)
        given = (before, gradient, targets, directions)
        state = attacks.begin(MATCH, attacks.mixtures(directions, begin))
        state, _ = attacks.descend(loss, MATCH, state, given, steps=GRADIENT_STEPS)
        images = attacks.unmixed(directions, state.inputs, shape)
    else:
        state, given = attacks.begin(MATCH_PIXELS, begin), (before, gradient, targets, None)
        options = {"steps": PIXEL_STEPS, "bounds": here.bounds}
        images = attacks.descend(loss, MATCH_PIXELS, state, given, **options)[0].inputs
    found, classes = unit(here, images), classes_of(here)
    real = unit(here, truth)
    images = found[measures.nearest(real, found, targets[None] == classes[:, None])]
    score = measures.likeness(images, real)
    picture = {"images": np.asarray(images), "neighbours": np.asarray(real), "present": np.ones(len(real), bool)}
    return {**{k: float(jnp.mean(v)) for k, v in score._asdict().items()}, "pictures": picture}


# ---- what guessing gives ---------------------------------------------------------------------------------------------


def guess_images(world: World, name: str, seed: int, guess: str) -> dict[str, Any]:
    """Random pixels, the average of public images, or that of public images of the class, in place of an attack."""
    here = federation(world, name, seed)
    shape, classes = here.public.shape[1:], here.dataset.num_classes
    labels_of_public = here.dataset.test_y[::2]
    average = jnp.mean(here.public, 0)
    if guess == "random":
        low, high = here.bounds
        images = jax.random.uniform(jax.random.key(seed), (classes, *shape), jnp.float32, low, high)
    elif guess == "public":
        images = jnp.broadcast_to(average, (classes, *shape))
    else:
        images = jnp.stack([jnp.mean(here.public[labels_of_public == c], 0) for c in range(classes)])
    found = inverted(here, [images] * len(here.targets))
    whole = [like_mean(here, target, images[:1] if guess == "random" else average[None]) for target in here.targets]
    uniform = jnp.full(classes, 1 / classes)
    distances = [float(measures.total_variation_distance(uniform, jnp.asarray(t.shares))) for t in here.targets]
    whole_image = mean_of(whole)
    return {
        **found,
        "psnr_whole": whole_image["psnr"],
        "ssim_whole": whole_image["ssim"],
        "distance": float(np.mean(distances)),
    }


IMAGES = {"model inversion": model_inversion, "Fisher-aware inversion": fisher_inversion}
ATTACKS: dict[str, Callable[..., dict[str, Any]]] = {
    **IMAGES,
    "mean image": mean_image,
    "components": components,
    "gradient inversion": gradient_inversion,
}
