"""Training with privacy of every example: Poisson samples, clipped gradients, noise (DP-SGD, arXiv 1607.00133).

What privacy this gives is computed in `privacy.dp_training`; here is only what a step does. An example's gradient in a
layer is Σ_t a_t g_tᵀ over positions t, of activations and output gradients. Where positions are few, its norm is had
from their inner products, and the clipped sum over examples is one product of matrices, so that no gradient of a single
example is written out ("ghost clipping": Goodfellow 2015, arXiv 1510.01799; Li et al. 2021, arXiv 2110.05679; mixed
with plain gradients where positions are many, as in convolutions: Bu et al. 2022, arXiv 2205.10683).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._compat import Tracer, vary, varying
from .._examples import Batch, Examples, mean_over_batches, require_whole
from .._trees import wide, widened
from ..curvature import capture
from ..curvature._estimate import fitting
from ..curvature._rows import as_leaves, rows_of_batch

PyTree = Any


class Private(NamedTuple):
    """What private training adds to a step; `privacy.dp_training.promise` finds it for an ε.

    Attributes:
        clip: largest Euclidean norm of one example's gradient.
        noise: standard deviation of the noise in a step's summed gradient, as a multiple of `clip`.
        places: room for a step's sample. A larger one would lose what is beyond, which the promise accounts for.
    """

    clip: float
    noise: float
    places: int


def require_private(private: Any) -> None:
    """Refuse settings that clip nothing off, or everything, or that are none; what is traced is not looked at.

    Raises:
        TypeError: no `Private`.
        ValueError: the first number out of range, by its name.
    """
    if not isinstance(private, Private):
        raise TypeError(f"private: got {type(private).__name__}, expected a Private, which a promise has as `private`")
    clip, noise, places = private
    if not isinstance(clip, Tracer) and not 0 < float(clip) < math.inf:
        raise ValueError(f"private.clip: got {clip}, expected a positive number")
    if not isinstance(noise, Tracer) and not 0 <= float(noise) < math.inf:
        raise ValueError(f"private.noise: got {noise}, expected a number of at least 0")
    require_whole("private.places", places, 1)


def train_privately(training: Any, params: PyTree, data: Examples, key: jax.Array) -> tuple[PyTree, jax.Array]:
    """Train by `training` with its `private`: an epoch has ⌈n / batch_size⌉ steps, as without privacy.

    Each step takes every example with probability batch_size / n by itself, clips its gradient, adds noise to the sum
    and divides by batch_size. Memory is at most that of 32 gradients.

    Args:
        training: a `LocalTraining`.
        params: the common start.
        data: the client's examples.
        key: random key; whoever knows it knows samples and noise.

    Returns:
        The parameters, and the last epoch's mean loss over what it sampled, in nats per example (NaN if there was no
        epoch): that is not private, and for the client's own eyes.
    """
    private, axes = training.private, varying((params, data, key, training.epochs))
    places = min(private.places, data.indices.shape[0])
    mean_size = jnp.minimum(training.batch_size, jnp.asarray(data.size, jnp.float32))
    noise_key, sample_key = jax.random.split(key)
    clipped = clipped_sum(training, params, data)

    def step(index: Any, carry: tuple, keys: tuple[jax.Array, jax.Array]) -> tuple:
        p, state, total, count = carry
        noise_of = jax.random.fold_in(keys[0], index)
        draw, augment_key = jax.random.split(jax.random.fold_in(keys[1], index))
        sampled = poisson_sample(data, mean_size, places, draw)
        summed, lost = clipped(p, sampled, augment_key)
        noisy = optax.tree.scale(1 / mean_size, with_noise(summed, private.clip * private.noise, noise_of))
        gradients = jax.tree.map(lambda g, leaf: g.astype(leaf.dtype), noisy, p)
        updates, state = training.optimizer.update(gradients, state, p)
        return optax.apply_updates(p, updates), state, total + lost, count + sampled.size.astype(count.dtype)

    def epoch(number: Any, carry: tuple) -> tuple:
        p, state, _ = carry
        keys = jax.random.fold_in(noise_key, number), jax.random.fold_in(sample_key, number)
        zero = vary((jnp.zeros((), wide(no_loss.dtype)), jnp.zeros((), wide(no_loss.dtype))), axes)
        steps = -(-data.size // training.batch_size)
        p, state, total, count = jax.lax.fori_loop(0, steps, lambda i, c: step(i, c, keys), (p, state, *zero))
        if training.on_epoch is not None:
            jax.debug.callback(lambda _, tell=training.on_epoch: tell(), total)
        return p, state, (total / jnp.maximum(count, 1)).astype(no_loss.dtype)

    no_loss = jnp.zeros((), jax.eval_shape(lambda: clipped(params, data, key))[1].dtype)
    start = vary((params, training.optimizer.init(params), no_loss), axes)
    trained, _, last = jax.lax.fori_loop(0, training.epochs, epoch, start)
    some = isinstance(training.epochs, int) and training.epochs > 0
    return trained, last if some else jnp.where(training.epochs > 0, last, jnp.nan)


def poisson_sample(data: Examples, mean_size: Any, places: int, key: jax.Array) -> Examples:
    """Take every example with probability mean_size / n by itself.

    Gaps between those that are taken are geometric, and few to draw.

    Args:
        data: n examples.
        mean_size: how many are taken on average, at most n.
        places: the most that are taken; what is beyond them is left out.
        key: random key.
    """
    length = data.indices.shape[0]
    chances = 1 - jax.random.uniform(key, (places,), jnp.float32)  # above zero
    share = mean_size / jnp.asarray(data.size, jnp.float32)
    gaps = jnp.minimum(jnp.log(chances) / jnp.log1p(-share), length).astype(jnp.int32)
    ends = jax.lax.associative_scan(lambda a, b: jnp.minimum(a + b, length + 1), gaps + 1)
    return data._replace(indices=data.indices[ends - 1], size=jnp.sum(ends <= data.size))


def clipped_sum(
    training: Any, params: PyTree, data: Examples
) -> Callable[[PyTree, Examples, jax.Array], tuple[PyTree, jax.Array]]:
    """Make (parameters, sampled examples, key of augmentation) → the sum of clipped gradients, and of losses in nats.

    Args:
        training: a `LocalTraining` with its `private`.
        params: parameters of the shapes that are to come.
        data: the client's examples.
    """
    likelihood, augment, clip = training.likelihood, training.augment, training.private.clip
    treedef = jax.tree.structure(params)
    captured = capture(training.apply, params, data.x)

    def slope(outputs: jax.Array, y: Any, _: Any) -> jax.Array:
        return jax.grad(likelihood.nll)(outputs, y)[None]

    at_once, _ = fitting({"layers": captured}, params, data, slope, None, split=False)

    def clipped(p: PyTree, sampled: Examples, key: jax.Array) -> tuple[PyTree, jax.Array]:
        def sums(batch: Batch) -> tuple[list[jax.Array], jax.Array]:
            if augment is not None:
                keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(batch.position)
                batch = batch._replace(x=jax.vmap(augment)(keys, batch.x))
            outputs, rows = rows_of_batch(captured, jax.tree.leaves(p), batch, slope, few_positions)
            squares = sum(one.squares() for one in rows)  # [n, 1]; of masked examples zero
            norms = jnp.sqrt(jnp.maximum(squares, 0))  # sums of inner products may fall below zero by rounding
            shares = clip / jnp.maximum(norms, clip)
            losses = jax.vmap(likelihood.nll)(widened(outputs), batch.y)
            return [one.back(shares[..., None]) for one in rows], jnp.sum(jnp.where(batch.mask, losses, 0))

        total, lost = mean_over_batches(sums, sampled, at_once, count=jnp.ones((), jnp.int32))
        found = as_leaves(captured, [jnp.moveaxis(part, -1, 0) for part in total])
        return treedef.unflatten([found[n][0] for n in range(treedef.num_leaves)]), lost

    return clipped


def with_noise(tree: PyTree, std: Any, key: jax.Array) -> PyTree:
    """Add Gaussian noise of standard deviation `std` to every number of a tree."""
    leaves, treedef = jax.tree.flatten(tree)
    draws = zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    return treedef.unflatten([leaf + std * jax.random.normal(k, leaf.shape, leaf.dtype) for leaf, k in draws])


def few_positions(a: jax.Array, g: jax.Array) -> bool:
    """Whether a norm by inner products of positions costs less than the gradient (Bu et al. 2022, section 3)."""
    return 2 * a.shape[-2] ** 2 < a.shape[-1] * g.shape[-1]
