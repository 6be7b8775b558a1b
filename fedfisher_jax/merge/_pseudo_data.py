"""Pseudo-data: training at the server on draws from Gaussians of each class's inputs, held by the clients' curvature.

Beside a K-FAC payload a client sends for each class the count, sum and second moment of its inputs' u = D x, the first
cosine coefficients of an image or a row of features as it is. The server minimises, from the K-FAC merge,

    E_{c, u ~ N(μ_c, S_c)} CE(f_θ(clip(Dᵀu)), c) + (λ/2) Σ p_i (θ − θ_i)ᵀ F_i (θ − θ_i).

GH-OFL (arXiv 2602.01186) and FedCGS (arXiv 2503.06962) send such moments of pre-trained features and train on draws
alone; here the clients' Laplace posteriors are the second term. Both terms are means over examples, in nats, so λ = 1
counts a draw and a client's example alike. No labels are needed at the server: λ is a setting and not fitted there.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._doors import require_targets
from .._examples import Batch, Examples, mean_over_batches
from .._likelihood import Likelihood
from .._trees import widened
from ..curvature.structures._class_moments import ClassMoments
from ..curvature.structures._moments import example_of
from ..models._starts import by_frequency, cosines
from ..solve._conjugate_gradients import conjugate_gradients
from ..solve._objective import Solver
from ..tracing._convolution import for_loops
from ._fedfisher import DAMPING, stacked
from ._measure import MeasureFisher, require_options
from ._outline import one_input
from ._rule import Kind, Merged, Payload, Rule, Takes, Update

PyTree = Any
INPUTS = "kronecker, class moments of inputs"  # kind of what is measured


@dataclasses.dataclass(frozen=True)
class Draws:
    """How the server trains.

    Attributes:
        weight: λ.
        steps: steps of Adam; its rate falls to zero along a cosine.
        learning_rate: Adam's rate at the start.
        batch_size: draws a step.
        seed: the draws' seed.
    """

    weight: float = 3.0
    steps: int = 600
    learning_rate: float = 1e-3
    batch_size: int = 256
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class MeasureInputs:
    """Measures a Fisher and the moments of each class's inputs."""

    fisher: MeasureFisher
    coefficients: int
    low: float | None = None  # the smallest and the largest input, where they are public
    high: float | None = None

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Payload:
        """One client's payload."""
        inputs = one_input(data)
        require_targets(self.fisher.likelihood, self.fisher.apply, update.params, data, empty=True)
        payload = self.fisher(update, data, key)
        one = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
        shape = jax.eval_shape(self.fisher.apply, update.params, one)
        if len(shape.shape) != 2 or not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise ValueError(f"apply: got outputs {shape.shape} and inputs {inputs.dtype}, expected classes and floats")
        matrix = basis(inputs.shape[1:], self.coefficients)

        def sums(batch: Batch) -> list[jax.Array]:
            real = batch.mask[:, None]
            flat = widened(jnp.where(real, batch.x.reshape(len(batch.x), -1), 0))
            u = flat @ jnp.asarray(matrix, flat.dtype).T
            chosen = jnp.where(real, jax.nn.one_hot(batch.y, shape.shape[-1], dtype=flat.dtype), 0)
            return [chosen.sum(0), chosen.T @ u, jnp.einsum("nc,ni,nj->cij", chosen, u, u, optimize=True)]

        counts, totals, seconds = mean_over_batches(sums, data, 256)
        dtype = jnp.result_type(*jax.tree.leaves(payload.statistics))  # files hold one type beside parameters
        bounds = self.bounds(inputs, data)
        share, first, second, bounds = (a.astype(dtype) for a in (counts, totals, seconds, bounds))
        measured = ClassMoments(payload.statistics, share, first, second, bounds, example_of(inputs))
        return payload._replace(statistics=measured, kind=Kind(INPUTS))

    def bounds(self, inputs: Any, data: Examples) -> jax.Array:
        """The smallest and the largest input [2], as the client has them unless they were given."""
        x = inputs[data.indices[jnp.clip(jnp.arange(data.indices.shape[0]), 0, data.size - 1)]]
        low = jnp.min(x) if self.low is None else jnp.asarray(self.low, x.dtype)
        return jnp.stack([low, jnp.max(x) if self.high is None else jnp.asarray(self.high, x.dtype)])


def pseudo_data(
    apply: Callable,
    likelihood: Likelihood,
    *,
    draws: Draws = Draws(),
    coefficients: int = 100,
    low: float | None = None,
    high: float | None = None,
    solver: Solver | None = None,
    **options: Any,
) -> Rule:
    """Merge by K-FAC, then train on draws from each class's Gaussian, with the clients' curvature as a prior.

    A client's payload shows its class means: use it where a server may see those.

    Args:
        apply: (params, x [n, ...]) → outputs [n, C]; inputs are arrays of floats.
        likelihood: what was fitted; only categorical will do.
        draws: how the server trains.
        coefficients: the most coefficients of an input. Rows of more features than that are refused.
        low: the smallest input that there can be, where it is public; by default clients send their own.
        high: the largest one.
        solver: what finds the K-FAC merge that training starts from; as in `fedfisher`.
        options: what else `MeasureFisher` takes: kind, samples, batch_size, skip, captured.

    Raises:
        TypeError: an unknown option.
        ValueError: another likelihood, settings that do not work, or inputs with too many features.
    """
    require_options(options, pseudo_data, MeasureFisher, "at", "subspace")
    if likelihood.name != "categorical":
        raise ValueError(f"likelihood: got {likelihood.name}, expected categorical: examples are drawn for classes")
    if not draws.weight >= 0 or draws.steps < 1 or draws.batch_size < 1 or coefficients < 1:
        raise ValueError(f"draws, coefficients: got {draws} and {coefficients}, expected positive numbers")
    if low is not None and high is not None and not low < high:
        raise ValueError(f"low, high: got {low}, {high}, expected a range")
    measure = MeasureInputs(MeasureFisher(apply, likelihood, "kronecker", **options), coefficients, low, high)
    chosen = conjugate_gradients(damping=DAMPING["kronecker"]) if solver is None else solver
    model = for_loops(apply)

    def loss_on_draws(params: PyTree, x: Any, y: Any) -> jax.Array:
        return jnp.mean(jax.vmap(likelihood.nll)(model(params, x), y))

    def solve(payloads: Payload, start: PyTree) -> Merged:
        require_inputs(apply, payloads, coefficients)
        problem = stacked(payloads._replace(statistics=payloads.statistics.fisher))
        merged, diagnostics = chosen(problem)
        shares = payloads.weight / jnp.sum(payloads.weight)
        source = gaussians(payloads.statistics, shares, coefficients)
        params, loss = train_on_draws(loss_on_draws, problem.half_gradient, source, draws, merged)
        return Merged(params, {**diagnostics, "loss_on_draws": loss})

    takes = Takes((ClassMoments,), (INPUTS,))
    return Rule("pseudo-data", measure, lambda payload, start: payload, solve, "stack", takes=takes)


class Gaussians(NamedTuple):
    """Each class's Gaussian of coefficients, and the way from these to inputs."""

    logits: Any  # [C], log of a class's share
    mean: Any  # [C, K]
    root: Any  # [C, K, K], of the covariance
    matrix: Any  # [K, inputs], D
    low: Any
    high: Any
    example: tuple[tuple[int, ...], str]  # shape and type


def require_inputs(apply: Callable, payloads: Payload, coefficients: int) -> None:
    """Refuse stacked payloads whose moments are not of the model's inputs and classes.

    Raises:
        ValueError: what was measured.
    """
    shape, dtype = payloads.statistics.example
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), payloads.params)
    try:
        outputs = jax.eval_shape(apply, params, jax.ShapeDtypeStruct((1, *shape), dtype)).shape
    except Exception as error:  # whatever a model raises
        raise ValueError(f"payloads: got examples {shape} of {dtype}, which the model does not take") from error
    wanted = (*outputs[1:], len(basis(shape, coefficients)))
    if payloads.statistics.first.shape[1:] != wanted:
        raise ValueError(f"payloads: got moments {payloads.statistics.first.shape[1:]}, expected {wanted}")


def gaussians(inputs: ClassMoments, shares: Any, coefficients: int) -> Gaussians:
    """Pool the clients' moments, stacked, by the clients' shares [M]."""
    pooled = [jnp.tensordot(shares, leaf, 1) for leaf in (inputs.share, inputs.first, inputs.second)]
    share = jnp.maximum(pooled[0], jnp.finfo(pooled[0].dtype).tiny)
    mean = pooled[1] / share[:, None]
    covariance = pooled[2] / share[:, None, None] - mean[:, :, None] * mean[:, None, :]
    values, vectors = jnp.linalg.eigh(covariance)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None, :]
    matrix = jnp.asarray(basis(inputs.example[0], coefficients), mean.dtype)
    logits = jnp.where(pooled[0] > 0, jnp.log(share), -jnp.inf)  # a class that nobody has is never drawn
    low, high = jnp.min(inputs.bounds[:, 0]), jnp.max(inputs.bounds[:, 1])
    return Gaussians(logits, mean, root, matrix, low, high, inputs.example)


def draw(source: Gaussians, count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draw inputs [count, ...] and their classes [count]."""
    class_key, key = jax.random.split(key)
    classes = jax.random.categorical(class_key, source.logits, shape=(count,))
    noise = jax.random.normal(key, (count, source.mean.shape[1]), source.mean.dtype)
    u = source.mean[classes] + jnp.einsum("nij,nj->ni", source.root[classes], noise)
    x = jnp.clip(u @ source.matrix, source.low, source.high)
    shape, dtype = source.example
    return x.reshape(count, *shape).astype(dtype), classes


def train_on_draws(
    loss: Callable[[PyTree, Any, Any], jax.Array],
    prior: Callable[[PyTree], PyTree],
    source: Gaussians,
    settings: Draws,
    params: PyTree,
) -> tuple[PyTree, jax.Array]:
    """Minimise a loss on fresh draws plus λ times a prior from `params`; also the last step's loss on draws.

    Args:
        loss: (params, drawn inputs [n, ...], their classes [n]) → the mean loss.
        prior: params → the prior's gradient, λ times which is added to the loss's.
        source: what is drawn from.
        settings: λ, steps, rate and the number of draws a step.
        params: where to begin.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.steps))
    key = jax.random.key(settings.seed)

    def step(number: Any, carry: tuple) -> tuple:
        p, inner, _ = carry
        x, y = draw(source, settings.batch_size, jax.random.fold_in(key, number))
        fitted, slope = jax.value_and_grad(loss)(p, x, y)
        slope = jax.tree.map(lambda a, b: a + settings.weight * b, slope, prior(p))
        updates, inner = optimizer.update(slope, inner, p)
        return optax.apply_updates(p, updates), inner, fitted

    dtype = jax.eval_shape(lambda: loss(params, *draw(source, 1, key))).dtype
    carry = params, optimizer.init(params), jnp.zeros((), dtype)
    params, _, fitted = jax.lax.fori_loop(0, settings.steps, step, carry)
    return params, fitted


def basis(shape: Sequence[int], coefficients: int) -> np.ndarray:
    """Make D [K, inputs] with orthonormal rows: an image's first cosines by frequency, or the identity.

    Args:
        shape: the shape of one example; [H, W, channels] is an image, every channel of which gets as many cosines.
        coefficients: the most rows.

    Raises:
        ValueError: more features than that, and no image.
    """
    size = math.prod(shape)
    if len(shape) != 3:
        if size > coefficients:
            raise ValueError(f"coefficients: got {coefficients}, expected at least the inputs' {size}")
        return np.eye(size)
    height, width, channels = shape
    kept = by_frequency(height, width)[: max(1, coefficients // channels)]
    rows, columns = cosines(height), cosines(width)
    flat = np.stack([np.outer(rows[i], columns[j]).ravel() for i, j in kept])
    return np.einsum("kp,cd->ckpd", flat, np.eye(channels)).reshape(-1, size)
