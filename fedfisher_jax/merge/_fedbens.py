"""FedBEns-style (arXiv 2503.15367): mixtures of Laplace posteriors, their product's modes, and the ensemble of those.

A client sends several local models, each with its Kronecker Fisher; they make a mixture of normal distributions that
stands for its posterior. The server looks for modes of the product over clients from as many starts and averages the
modes' predictions.

Taken from the paper: the mixture with equal weights and exact log-determinants; the prior, which every client's
posterior holds once and which is divided out; starts at the clients' median; clipped Adam; an ensemble of
probabilities. Changed: the prior is centred at the start, not at zero. Where no client knows anything, the quotient of
M posteriors by M − 1 zero-centred priors has its mode at the *sum* of the clients' parameters, which the paper's few
small steps do not reach; here it is at the start plus the sum of their gaps to it, for a mean the start itself. Left
out: several replicas of each start by perturbation, and choosing iterates by labelled data.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._ensemble import ensemble_apply
from .._examples import Examples
from .._likelihood import Likelihood
from .._trees import stack
from ..curvature import Kronecker
from ._measure import MeasureFisher, require_options
from ._rule import Kind, Merged, Payload, Rule, Takes, Update

PyTree = Any
MODES = "modes, "  # before the kind of their Fishers
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
OtherModes = Callable[[Examples, jax.Array], tuple[PyTree, ...]]  # (data, key) → further local models


@dataclasses.dataclass(frozen=True)
class MeasureModes:
    """Measures several local models: parameters and Fisher are tuples, one entry for each."""

    one: MeasureFisher
    others: OtherModes | None = None

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Payload:
        """One client's payload, of the model that it has and of those that `others` gives."""
        more = () if self.others is None else self.others(data, key)
        return self.of((update.params, *more), data, key)

    def of(self, modes: tuple[PyTree, ...], data: Examples, key: jax.Array) -> Payload:
        """The payload of given local models."""
        sent = [self.one(Update(params), data, jax.random.fold_in(key, n)) for n, params in enumerate(modes)]
        models, fishers = tuple(p.params for p in sent), tuple(p.statistics for p in sent)
        return Payload(sent[0].weight, models, fishers, Kind(MODES + self.one.kind))


def fedbens(
    apply: Callable,
    likelihood: Likelihood,
    *,
    others: OtherModes | None = None,
    precision: float = 10.0,
    temperature: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 300,
    **options: Any,
) -> Rule:
    """Make FedBEns's rule (arXiv 2503.15367): with one model a client, one mode of a product of normal posteriors.

    With several, `Merged.params` is a tuple of the merged modes and `Merged.apply` their ensemble.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what was fitted.
        others: how a client gets its further local models, from starts that all clients share; see `from_starts` and
            `FreshModes`. With None a client has one model.
        precision: the prior's λ.
        temperature: what divides the number of examples; above one, posteriors are wider.
        optimizer: the optax optimiser; default Adam(0.001) on gradients clipped to norm 1, as in the released code.
        steps: updates from each start; the best iterate, the start among them, is kept.
        options: what else `MeasureFisher` takes: kind, samples, batch_size, captured.

    Raises:
        TypeError: an unknown option.
        ValueError: precision or temperature not positive, steps below 1.
    """
    for name, value in (("precision", precision), ("temperature", temperature), ("steps", steps)):
        if not value > 0:
            raise ValueError(f"{name}: got {value}, expected a positive number")
    require_options(options, fedbens, MeasureFisher)
    measure = MeasureModes(MeasureFisher(apply, likelihood, "kronecker", **options), others)

    joint = ensemble_apply(apply, likelihood)

    def predict(modes: tuple[PyTree, ...], x: Any) -> jax.Array:
        return joint(stack(list(modes)), jnp.asarray(x))

    def solve(payloads: Payload, start: PyTree) -> Merged:
        # A program of its own: with the eigenvalues in the program of the search, XLA:CPU waits for ever (jax 0.10.2).
        constants = jax.block_until_ready(_log_determinants(payloads, precision, temperature))
        modes, first, last = _modes(payloads, constants, precision, temperature, optimizer or ADAM, steps)
        diagnostics = {"log_density_start": -first, "log_density_end": -last, "modes": jnp.asarray(len(modes))}
        if len(modes) == 1:
            return Merged(modes[0], diagnostics)
        return Merged(modes, diagnostics, predict)

    takes = Takes((tuple,), tuple(MODES + kind for kind in measure.one.takes().kinds))
    return Rule("fedbens", measure, lambda payload, start: payload, solve, "stack", jit=False, takes=takes)


def from_starts(starts: tuple[PyTree, ...], train: Callable[[PyTree, Examples, jax.Array], PyTree]) -> OtherModes:
    """Train further local models from other starts.

    Args:
        starts: initial parameters, the same for all clients: the server's mode k starts between models of start k.
        train: (params, data, key) → trained parameters, say `local.train(...).params` with its settings.
    """
    return lambda data, key: tuple(train(p, data, jax.random.fold_in(key, n)) for n, p in enumerate(starts, start=1))


FRESH = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class FreshModes:
    """Further local models from fresh starts, which one seed draws for all clients; equal ones are traced once.

    Attributes:
        init: key → initial parameters.
        train: (params, data, key) → trained parameters.
        seed: what the starts follow from; what `jax.random.key(seed)` and its splits draw is not drawn again.
        count: how many further models there are.
    """

    init: Callable[[jax.Array], PyTree]
    train: Callable[[PyTree, Examples, jax.Array], PyTree]
    seed: int
    count: int = 1

    def __call__(self, data: Examples, key: jax.Array) -> tuple[PyTree, ...]:
        """One client's further local models."""
        apart = jax.random.fold_in(jax.random.key(self.seed), FRESH)  # fold_in(key, 0) is split(key)[0]: a run's start
        keys = [jax.random.fold_in(apart, number) for number in range(self.count)]
        return from_starts(tuple(self.init(k) for k in keys), self.train)(data, key)


def _square(params: PyTree, precision: Any, fisher: Kronecker, mean: PyTree, weight: Any) -> jax.Array:
    """Compute xᵀ (`weight` · F + `precision`) x for x, the parameters less their mean."""
    gap = jax.tree.map(jnp.subtract, params, mean)
    return weight * optax.tree.vdot(gap, fisher.matvec(gap)) + precision * optax.tree.vdot(gap, gap)


def _log_determinant(fisher: Kronecker, weight: Any, precision: Any) -> jax.Array:
    """Compute log |weight · F + precision| from the factors' eigenvalues."""
    total = sum((jnp.sum(jnp.log(weight * value + precision)) for value in fisher.rest.values()), jnp.zeros(()))
    for layer, a, g in zip(fisher.layers, fisher.inputs, fisher.outputs, strict=True):
        left = a if layer.lookup else jnp.linalg.eigvalsh(a)
        left, right = jnp.maximum(left, 0), jnp.maximum(jnp.linalg.eigvalsh(g), 0)
        total += jnp.sum(jnp.log(weight * left[..., :, None] * right[..., None, :] + precision))
    return total


@jax.jit
def _log_determinants(payloads: Payload, precision: Any, temperature: Any) -> list[jax.Array]:
    """Compute the log-determinants of all clients, for each local mode."""
    weights = payloads.weight / temperature
    return [jax.vmap(lambda f, w: _log_determinant(f, w, precision))(fisher, weights) for fisher in payloads.statistics]


@partial(jax.jit, static_argnames=("optimizer", "steps"))
def _modes(
    payloads: Payload,
    constants: list[jax.Array],
    precision: Any,
    temperature: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> tuple[tuple[PyTree, ...], jax.Array, jax.Array]:
    """Find one merged mode for each local mode, and the best objective at starts and at modes."""
    count, weights = payloads.weight.shape[0], payloads.weight / temperature

    def objective(params: PyTree, center: PyTree) -> jax.Array:
        """−Σ_i log Σ_k N(θ; θ_ik, (n_i F_ik + λ)⁻¹) + (M − 1) log prior(θ), up to a constant."""
        squares = jax.vmap(partial(_square, params, precision))
        each = [
            (constant - squares(fisher, means, weights)) / 2
            for constant, fisher, means in zip(constants, payloads.statistics, payloads.params, strict=True)
        ]
        away = jax.tree.map(jnp.subtract, params, center)
        prior = -precision * optax.tree.vdot(away, away) / 2
        return (count - 1) * prior - jnp.sum(jax.nn.logsumexp(jnp.stack(each), axis=0))

    def search(center: PyTree) -> tuple[PyTree, jax.Array, jax.Array]:
        def step(_: Any, carry: tuple) -> tuple:
            params, state, best, least = carry
            value, slope = jax.value_and_grad(objective)(params, center)
            best = jax.tree.map(lambda old, new: jnp.where(value < least, new, old), best, params)
            updates, state = optimizer.update(slope, state, params)
            return optax.apply_updates(params, updates), state, best, jnp.minimum(value, least)

        start = objective(center, center)
        carry = (center, optimizer.init(center), center, start)
        params, _, best, least = jax.lax.fori_loop(0, steps, step, carry)
        last = objective(params, center)
        best = jax.tree.map(lambda old, new: jnp.where(last < least, new, old), best, params)
        return best, start, jnp.minimum(last, least)

    found = [search(jax.tree.map(lambda leaf: jnp.median(leaf, axis=0), means)) for means in payloads.params]
    modes, starts, ends = zip(*found, strict=True)
    return tuple(modes), jnp.min(jnp.stack(starts)), jnp.min(jnp.stack(ends))
