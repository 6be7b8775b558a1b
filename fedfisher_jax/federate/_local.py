"""One client's training and its settings: a pure optax loop over its own examples."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._augment import Augment
from .._compat import standard_promotion, vary, varying
from .._doors import require_examples, require_likelihood, require_optimizer, require_params, require_targets
from .._examples import Batch, Examples, require_whole, take
from .._likelihood import Likelihood
from .._trees import wide, widened
from ..tracing._convolution import for_loops
from ..tracing._training_form import for_training
from ._private import Private, require_private, train_privately

PyTree = Any


class Trained(NamedTuple):
    """A client's model after training.

    Attributes:
        params: like the start.
        loss: mean over the last epoch, while it trained, in nats per example; NaN if there was no epoch.
        squares: mean over the last epoch's steps of the squared minibatch gradients, entry by entry (zero if there was
            no epoch), where asked for.
    """

    params: PyTree
    loss: jax.Array
    squares: PyTree = None


@dataclasses.dataclass(frozen=True)
class LocalTraining:
    """How a client trains; equal to another one with equal settings (so it is traced once).

    Attributes:
        apply: (params, x [b, ...]) → outputs [b, ...].
        likelihood: the likelihood whose mean `nll` over a batch is minimised.
        optimizer: the local optimiser; its state starts afresh.
        epochs: passes over the data, perhaps traced (under `vmap` each client has its own); 0 returns the start.
        batch_size: largest number of examples in a step; a client with fewer examples has one batch an epoch.
        augment: applied to every drawn example with its own key.
        on_epoch: called on the host after each epoch, for progress; its order is not guaranteed.
        squares: gather the last epoch's squared minibatch gradients: a rough Fisher at no extra pass.
        convolutions: "auto", or how convolutions in loops are computed, see `tracing._convolution.for_loops`.
        private: clip each example's gradient and add noise, see `Private`; `batch_size` is then a batch's mean size.

    Raises:
        TypeError: a likelihood, an optimiser or a `private` that is none.
        ValueError: epochs or a batch size that are no whole numbers of at least 0 and 1, private training with a clip,
            noise or places out of range, or with squared gradients, which tell what it hides; numbers that are traced
            are not looked at.
    """

    apply: Callable
    likelihood: Likelihood
    optimizer: optax.GradientTransformation
    epochs: Any
    batch_size: int
    augment: Augment | None = None
    on_epoch: Callable[[], None] | None = None
    squares: bool = False
    convolutions: str = "auto"
    private: Private | None = None

    def __post_init__(self) -> None:
        require_likelihood(self.likelihood)
        require_optimizer(self.optimizer)
        require_whole("batch_size", self.batch_size, 1)
        require_whole("epochs", self.epochs, 0)
        if self.private is not None:
            require_private(self.private)
        if self.private is not None and self.squares:
            raise ValueError("squares: got private training, expected none: squared gradients tell what it hides")

    def steps(self, size: Any) -> Any:
        """Number of optimiser steps of a client with `size` examples."""
        return self.epochs * -(-size // self.batch_size)


@standard_promotion
def train(training: LocalTraining, params: PyTree, data: Examples, key: jax.Array) -> Trained:
    """Train from `params` on minibatches drawn without replacement, the last partial batch of an epoch included.

    Pure; jit it, vmap it over clients. The result does not depend on padding in `data`: step counts follow `data.size`,
    and random draws follow places: the order of an epoch those in the client's row, augmentation those in that order.
    The network gets no key and keeps no state: dropout and running averages need a loop of yours (docs/your-model.md).

    Args:
        training: the settings.
        params: the common starting point.
        data: the client's examples, at least one.
        key: random key of this client and round; where training is private, a secret.

    Raises:
        TypeError: parameters or data that are none.
        ValueError: targets do not fit the outputs.

    Example:
        >>> import jax, jax.numpy as jnp, optax, fedfisher_jax as ff
        >>> data = ff.examples(jnp.eye(4), jnp.arange(4) % 2)
        >>> linear, start = (lambda params, x: x @ params), jnp.zeros((4, 2))
        >>> training = ff.LocalTraining(linear, ff.categorical(), optax.sgd(1.0), epochs=20, batch_size=2)
        >>> trained = ff.train(training, start, data, jax.random.key(0))
        >>> trained.params.shape, bool(trained.loss < jnp.log(2.0))
        ((4, 2), True)
    """
    apply, likelihood, optimizer = training.apply, training.likelihood, training.optimizer
    augment, squares, on_epoch = training.augment, training.squares, training.on_epoch
    require_params(params)
    require_examples(data)
    require_targets(likelihood, apply, params, data)
    data = data._replace(size=jnp.asarray(data.size))
    if training.private is not None:
        return Trained(*train_privately(training, params, data, key))
    axes = varying((params, data, key, training.epochs))
    apply, smooth = for_training(apply, training.convolutions), for_loops(apply, training.convolutions)
    update = optax.with_extra_args_support(optimizer).update
    length = data.indices.shape[0]
    batch_size = min(training.batch_size, length)

    def loss(p: PyTree, batch: Batch, apply: Callable = apply) -> jax.Array:
        losses = jax.vmap(likelihood.nll)(widened(apply(p, batch.x)), batch.y)
        return jnp.sum(jnp.where(batch.mask, losses, 0)) / jnp.maximum(jnp.sum(batch.mask), 1)

    def epoch(number: Any, carry: tuple) -> tuple:
        p, state, *_ = carry
        shuffle_key, augment_key = jax.random.split(jax.random.fold_in(key, number))
        # Element i of these draws does not depend on the array's length, so neither does the order on padding.
        draws = jax.random.uniform(shuffle_key, (length,), jnp.float32)
        order = jnp.where(jnp.arange(length) < data.size, draws, jnp.inf)
        shuffled = data._replace(indices=data.indices[jnp.argsort(order)])

        def step(index: Any, inner: tuple) -> tuple:
            p, state, total, gathered = inner
            batch = take(shuffled, index * batch_size, batch_size)
            if augment is not None:
                keys = jax.vmap(lambda place: jax.random.fold_in(augment_key, place))(batch.position)
                batch = batch._replace(x=jax.vmap(augment)(keys, batch.x))
            value, slope = jax.value_and_grad(loss)(p, batch)
            value_of = partial(loss, batch=batch, apply=smooth)  # which an optimiser may differentiate as it likes
            updates, state = update(slope, state, p, value=value, grad=slope, value_fn=value_of)
            gathered = jax.tree.map(lambda old, g: old + g.astype(old.dtype) ** 2, gathered, slope) if squares else None
            total = total + value.astype(total.dtype) * jnp.sum(batch.mask)
            return optax.apply_updates(p, updates), state, total, gathered

        steps = -(-data.size // batch_size)
        sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide(leaf.dtype)), (no_loss, no_squares))
        sums = vary(sums, axes)
        p, state, total, gathered = jax.lax.fori_loop(0, steps, step, (p, state, *sums))
        if on_epoch is not None:
            jax.debug.callback(lambda _, tell=on_epoch: tell(), total)
        mean = jax.tree.map(
            lambda total, leaf: (total / steps.astype(total.dtype)).astype(leaf.dtype), gathered, no_squares
        )
        return p, state, (total / data.size.astype(total.dtype)).astype(no_loss.dtype), mean

    no_loss = jnp.zeros((), jax.eval_shape(loss, params, take(data, 0, batch_size)).dtype)
    no_squares = jax.tree.map(jnp.zeros_like, params) if squares else None
    start = vary((params, optimizer.init(params), no_loss, no_squares), axes)
    trained, _, last, gathered = jax.lax.fori_loop(0, training.epochs, epoch, start)
    some = (
        isinstance(training.epochs, int) and training.epochs > 0
    )  # and so no NaN, which a debugging switch would catch
    return Trained(trained, last if some else jnp.where(training.epochs > 0, last, jnp.nan), gathered)
