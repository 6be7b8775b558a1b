"""Training with privacy of every example: Poisson samples, clipped gradients, noise (DP-SGD, arXiv 1607.00133).

Gradients are clipped by optax, a few examples at a time, as many as stay in a processor's cache. What privacy this
gives is computed in `privacy.dp_training`; here is only what a step does.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._compat import vary, varying
from .._examples import Batch, Examples, take
from .._trees import wide, widened
from ..tracing._convolution import for_loops

PyTree = Any


AT_ONCE = 16  # examples whose gradients are held together


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


def train_privately(training: Any, params: PyTree, data: Examples, key: jax.Array) -> tuple[PyTree, jax.Array]:
    """Train by `training` with its `private`: an epoch has ⌈n / batch_size⌉ steps, as without privacy.

    Each step takes every example with probability batch_size / n by itself, clips its gradient, adds noise to the sum
    and divides by batch_size. Memory is that of `AT_ONCE` gradients.

    Args:
        training: a `LocalTraining`.
        params: the common start.
        data: the client's examples.
        key: random key; whoever knows it knows samples and noise.

    Returns:
        The parameters, and the last epoch's mean loss over what it sampled, in nats per example (NaN if there was no
        epoch): that is not private, and for the client's own eyes.
    """
    private, likelihood, augment = training.private, training.likelihood, training.augment
    apply, axes = for_loops(training.apply, training.convolutions), varying((params, data, key, training.epochs))
    length = data.indices.shape[0]
    chunk = min(AT_ONCE, length)
    places = -(-min(private.places, length) // chunk) * chunk  # more room than asked for loses less
    size = jnp.asarray(data.size, jnp.float32)
    mean_size = jnp.minimum(training.batch_size, size)
    noise_key, sample_key = jax.random.split(key)

    def loss(p: PyTree, x: Any, y: Any) -> jax.Array:
        return likelihood.nll(widened(apply(p, jax.tree.map(lambda leaf: leaf[None], x)))[0], y)

    def sample(draw: jax.Array) -> Batch:
        chances = jax.random.uniform(draw, (length,), jnp.float32)
        taken = (chances < mean_size / size) & (jnp.arange(length) < data.size)
        (first,) = jnp.nonzero(taken, size=places, fill_value=0)
        return take(data._replace(indices=data.indices[first], size=jnp.sum(taken)), 0, places)

    def clipped(p: PyTree, batch: Batch) -> tuple[PyTree, jax.Array]:
        """The sum of clipped gradients, and of losses."""

        def add(number: Any, sums: tuple) -> tuple:
            part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, number * chunk, chunk), batch)
            values, slopes = jax.vmap(jax.value_and_grad(loss), (None, 0, 0))(p, part.x, part.y)
            masked = lambda g: jnp.where(part.mask.reshape(-1, *[1] * (g.ndim - 1)), g, 0)  # noqa: E731
            leaves, treedef = jax.tree.flatten(jax.tree.map(masked, slopes))
            more, _ = optax.per_example_global_norm_clip(leaves, private.clip)
            found = treedef.unflatten(more), jnp.sum(masked(values))
            return jax.tree.map(lambda old, new: old + new.astype(old.dtype), sums, found)

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide(leaf.dtype)), (p, no_loss))
        return jax.lax.fori_loop(0, -(-jnp.sum(batch.mask) // chunk), add, vary(zeros, axes))

    def noisy(gradients: PyTree, draw: jax.Array) -> PyTree:
        leaves, treedef = jax.tree.flatten(gradients)
        std = private.clip * private.noise
        draws = zip(leaves, jax.random.split(draw, len(leaves)), strict=True)
        return treedef.unflatten([(g + std * jax.random.normal(k, g.shape, g.dtype)) / mean_size for g, k in draws])

    def step(index: Any, carry: tuple, keys: tuple[jax.Array, jax.Array]) -> tuple:
        p, state, total, count = carry
        noise_of = jax.random.fold_in(keys[0], index)
        draw, augment_key = jax.random.split(jax.random.fold_in(keys[1], index))
        batch = sample(draw)
        if augment is not None:
            batch = batch._replace(x=jax.vmap(augment)(jax.random.split(augment_key, places), batch.x))
        summed, lost = clipped(p, batch)
        gradients = jax.tree.map(lambda g, leaf: g.astype(leaf.dtype), noisy(summed, noise_of), p)
        updates, state = training.optimizer.update(gradients, state, p)
        return optax.apply_updates(p, updates), state, total + lost, count + jnp.sum(batch.mask).astype(count.dtype)

    def epoch(number: Any, carry: tuple) -> tuple:
        p, state, _ = carry
        keys = jax.random.fold_in(noise_key, number), jax.random.fold_in(sample_key, number)
        zero = vary((jnp.zeros((), wide(no_loss.dtype)), jnp.zeros((), wide(no_loss.dtype))), axes)
        steps = -(-data.size // training.batch_size)
        p, state, total, count = jax.lax.fori_loop(0, steps, lambda i, c: step(i, c, keys), (p, state, *zero))
        if training.on_epoch is not None:
            jax.debug.callback(lambda _, tell=training.on_epoch: tell(), total)
        return p, state, (total / jnp.maximum(count, 1)).astype(no_loss.dtype)

    one = take(data, 0, 1)
    shape = jax.eval_shape(loss, params, *jax.tree.map(lambda leaf: leaf[0], (one.x, one.y)))
    no_loss = jnp.zeros((), shape.dtype)
    start = vary((params, training.optimizer.init(params), no_loss), axes)
    trained, _, last = jax.lax.fori_loop(0, training.epochs, epoch, start)
    some = isinstance(training.epochs, int) and training.epochs > 0
    return trained, last if some else jnp.where(training.epochs > 0, last, jnp.nan)
