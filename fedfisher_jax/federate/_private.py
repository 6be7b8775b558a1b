"""Training with privacy of every example: Poisson samples, clipped gradients, noise (DP-SGD, arXiv 1607.00133).

What privacy this gives is computed in `privacy.dp_training`; here is only what a step does. An example's gradient in a
layer is Σ_t a_t g_tᵀ over positions t, of activations and output gradients. Where positions are few, its norm is had
from their inner products, and the clipped sum over examples is one product of matrices, so that no gradient of a single
example is written out ("ghost clipping": Goodfellow 2015, arXiv 1510.01799; Li et al. 2021, arXiv 2110.05679; mixed
with plain gradients where positions are many, as in convolutions: Bu et al. 2022, arXiv 2205.10683).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._compat import vary, varying
from .._examples import Batch, Examples, mean_over_batches
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
    private, likelihood, augment = training.private, training.likelihood, training.augment
    axes = varying((params, data, key, training.epochs))
    length = data.indices.shape[0]
    places = min(private.places, length)
    size = jnp.asarray(data.size, jnp.float32)
    mean_size = jnp.minimum(training.batch_size, size)
    noise_key, sample_key = jax.random.split(key)
    leaves, treedef = jax.tree.flatten(params)
    captured = capture(training.apply, params, data.x)

    def sample(draw: jax.Array) -> Examples:
        """Take every example by itself: the gaps between those that are taken are geometric, and few to draw."""
        chances = 1 - jax.random.uniform(draw, (places,), jnp.float32)  # above zero
        gaps = jnp.minimum(jnp.log(chances) / jnp.log1p(-mean_size / size), length).astype(jnp.int32)
        ends = jax.lax.associative_scan(lambda a, b: jnp.minimum(a + b, length + 1), gaps + 1)
        return data._replace(indices=data.indices[ends - 1], size=jnp.sum(ends <= data.size))

    def slope(outputs: jax.Array, y: Any, _: Any) -> jax.Array:
        return jax.grad(likelihood.nll)(outputs, y)[None]

    at_once, _ = fitting({"layers": captured}, params, data, slope, None, split=False)

    def clipped(p: PyTree, sampled: Examples, key: jax.Array) -> tuple[PyTree, jax.Array]:
        """The sum of clipped gradients, and of losses."""

        def sums(batch: Batch) -> tuple[list[jax.Array], jax.Array]:
            if augment is not None:
                keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(batch.position)
                batch = batch._replace(x=jax.vmap(augment)(keys, batch.x))
            outputs, rows = rows_of_batch(captured, jax.tree.leaves(p), batch, slope, few_positions)
            squares = sum(one.squares() for one in rows)  # [n, 1]; of masked examples zero
            norms = jnp.sqrt(jnp.maximum(squares, 0))  # sums of inner products may fall below zero by rounding
            shares = private.clip / jnp.maximum(norms, private.clip)
            losses = jax.vmap(likelihood.nll)(widened(outputs), batch.y)
            return [one.back(shares[..., None]) for one in rows], jnp.sum(jnp.where(batch.mask, losses, 0))

        total, lost = mean_over_batches(sums, sampled, at_once, count=jnp.ones((), jnp.int32))
        found = as_leaves(captured, [jnp.moveaxis(part, -1, 0) for part in total])
        return treedef.unflatten([found[n][0] for n in range(len(leaves))]), lost

    def noisy(gradients: PyTree, draw: jax.Array) -> PyTree:
        leaves, treedef = jax.tree.flatten(gradients)
        std = private.clip * private.noise
        draws = zip(leaves, jax.random.split(draw, len(leaves)), strict=True)
        return treedef.unflatten([(g + std * jax.random.normal(k, g.shape, g.dtype)) / mean_size for g, k in draws])

    def step(index: Any, carry: tuple, keys: tuple[jax.Array, jax.Array]) -> tuple:
        p, state, total, count = carry
        noise_of = jax.random.fold_in(keys[0], index)
        draw, augment_key = jax.random.split(jax.random.fold_in(keys[1], index))
        sampled = sample(draw)
        summed, lost = clipped(p, sampled, augment_key)
        gradients = jax.tree.map(lambda g, leaf: g.astype(leaf.dtype), noisy(summed, noise_of), p)
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


def few_positions(a: jax.Array, g: jax.Array) -> bool:
    """Whether a norm by inner products of positions costs less than the gradient (Bu et al. 2022, section 3)."""
    return 2 * a.shape[-2] ** 2 < a.shape[-1] * g.shape[-1]
