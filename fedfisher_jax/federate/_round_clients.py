"""The clients' part of a round: train, measure and lift; measure again; score what the server made of it."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._ensemble import wide_outputs
from .._examples import Examples, mean_over_batches
from .._likelihood import Likelihood
from .._trees import difference
from ..merge import Rule, Update, exchanges, lift
from ..tracing import for_training
from ._cohort import Client, with_examples
from ._federation import Federation
from ._simulate import MeasureClient, Shared, TrainClient, merge_clients, payload_bits

PyTree = Any
MEASURE = 2**31 - 1  # what a client's key is folded with for its measures; epochs are folded with 0, 1, …


class Everyone(NamedTuple):
    """What the sampled clients read."""

    shared: Shared
    common: PyTree


@dataclasses.dataclass(frozen=True)
class TrainAndMeasure:
    """One client's part of a round's first exchange: train, measure, lift."""

    federation: Federation

    def __call__(self, everyone: Everyone, client: tuple[Client, PyTree, Any]) -> tuple[PyTree, dict[str, Any]]:
        """Return the contribution to the sum, and what is kept of the client."""
        federation, (who, own, epochs), shared = self.federation, client, everyone.shared
        rule = exchanges(federation.rule)[0]
        epochs = federation.training.epochs if epochs is None else epochs
        training = dataclasses.replace(federation.training, epochs=epochs, squares=rule.squares)
        if federation.variant is not None:
            optimizer = federation.variant.optimizer(training.optimizer, shared.start, own, everyone.common)
            training = dataclasses.replace(training, optimizer=optimizer)
        trained = TrainClient(training)(shared, who)
        update = Update(trained.params, shared.start, trained.squares, training.steps(who.size))
        key = jax.random.fold_in(jax.random.fold_in(shared.key, who.number), MEASURE)
        payload = with_examples(shared.cohort, who, lambda data: rule.measure(update, data, key))
        contribution = lift(rule, payload, shared.start)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.params)]).all()
        length = optax.tree.norm(difference(trained.params, shared.start))
        kept: dict[str, Any] = {"loss": trained.loss, "finite": jnp.where(finite, 1.0, jnp.nan), "length": length}
        if federation.variant is not None:
            kept["own"], kept["sent"] = federation.variant.after(update, own, everyone.common)
        if federation.barrier:
            kept["score"] = _client_scores(federation, shared, who, trained.params)
        if rule.combine == "add":
            return contribution, kept
        return None, kept | {"stacked": contribution}


@dataclasses.dataclass(frozen=True)
class Remeasure:
    """One client's part of a further exchange: measure the model merged so far, lift."""

    rule: Rule
    number: int  # of the exchange, which its random draws depend on

    def __call__(self, shared: Shared, who: Client) -> tuple[PyTree, PyTree]:
        """Return the contribution to the sum, or to the stack."""
        apart = shared._replace(key=jax.random.fold_in(shared.key, MEASURE - self.number))
        payload = MeasureClient(self.rule.measure)(apart, (who, Update(None)))
        contribution = lift(self.rule, payload, shared.start)
        return (contribution, None) if self.rule.combine == "add" else (None, contribution)


@dataclasses.dataclass(frozen=True)
class Gap:
    """The merged model on one client's data, against what the client's own one scored there."""

    federation: Federation

    def __call__(self, everyone: Everyone, client: tuple[Client, jax.Array]) -> tuple[jax.Array, None]:
        """Return the gaps [loss, accuracy], positive where the merged model is worse."""
        who, own = client
        merged = _client_scores(self.federation, everyone.shared, who, everyone.shared.start)
        return (merged - own) * jnp.array([1, -1], own.dtype), None


class Line(NamedTuple):
    """The models start + length · step, of which a line search takes one."""

    start: PyTree
    step: PyTree

    def at(self, length: Any) -> PyTree:
        """The model at one length."""
        return jax.tree.map(lambda leaf, by: leaf + jnp.asarray(length, leaf.dtype) * by, self.start, self.step)


@dataclasses.dataclass(frozen=True)
class Trials:
    """One client's losses at the lengths of a server's step that are tried."""

    federation: Federation

    def __call__(self, shared: Shared, who: Client) -> tuple[dict[str, jax.Array], None]:
        """Return the sums over its examples: their number, and their loss in nats at each length [k]."""
        line, lengths = shared.start, jnp.asarray(self.federation.lengths)
        losses = jax.lax.map(lambda one: _client_scores(self.federation, shared, who, line.at(one))[0], lengths)
        weight = jnp.asarray(who.size, losses.dtype)
        return {"weight": weight, "loss": weight * losses}, None


def _client_scores(federation: Federation, shared: Shared, who: Client, params: PyTree) -> jax.Array:
    training = federation.training
    return with_examples(
        shared.cohort, who, lambda data: client_scores(training.apply, training.likelihood, params, data)
    )


def client_scores(
    apply: Callable, likelihood: Likelihood, params: PyTree, data: Examples, batch_size: int = 256
) -> jax.Array:
    """Score a model on one client's examples: mean [loss in nats, accuracy]; accuracy is NaN where there is none."""
    model = for_training(apply)

    def sums(batch: Any) -> jax.Array:
        outputs = wide_outputs(model, params, batch.x)
        rows = [jax.vmap(likelihood.nll)(outputs, batch.y)]
        if likelihood.correct:
            rows.append(jax.vmap(likelihood.correct)(outputs, batch.y).astype(rows[0].dtype))
        totals = jnp.stack([jnp.sum(jnp.where(batch.mask, row, 0)) for row in rows])
        return totals if len(rows) == 2 else jnp.append(totals, jnp.nan)

    return mean_over_batches(sums, data, batch_size)


def bits_up(federation: Federation, params: PyTree, data: Examples) -> int:
    """Count the bits that one client sends in a round: payloads, what a variant sends, a loss for each length tried.

    Args:
        federation: the settings.
        params: the parameters, for their shapes.
        data: any examples of the clients' shapes; nothing is computed of them.

    Example:
        >>> import jax.numpy as jnp, optax, fedfisher_jax as ff
        >>> linear, likelihood = (lambda params, x: x @ params), ff.categorical()
        >>> training, start = ff.LocalTraining(linear, likelihood, optax.sgd(1.0), 1, 3), jnp.zeros((6, 2))
        >>> federation = ff.Federation(training, ff.fedavg(linear, likelihood), sampled=2, lengths=(0.5, 1.0))
        >>> data = ff.examples(jnp.eye(6), jnp.arange(6) % 2)
        >>> ff.rounds.bits_up(federation, start, data) // (8 * start.dtype.itemsize)
        14
    """
    start, total, parts = params, 0, exchanges(federation.rule)
    for part in parts:
        update = Update(params, params, params if part.squares else None, 1)
        payload = jax.eval_shape(part.measure, update, data, jax.random.key(0))
        stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), payload)
        total += payload_bits(stacked)
        if part.jit and part is not parts[-1]:  # what the next exchange is sent may be more than a model
            params = jax.eval_shape(lambda *given, part=part: merge_clients(part, *given).params, stacked, params)
    sent = None if federation.variant is None else federation.variant.own(start)
    total += sum(8 * leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(sent))
    return total + len(federation.lengths) * 8 * jnp.result_type(float).itemsize
