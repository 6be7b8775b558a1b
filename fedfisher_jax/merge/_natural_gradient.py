"""Natural-gradient steps on all clients' loss at a merged model, by sums that clients send; nothing is trained.

A step is two exchanges. In the first a client sends the gradient of its mean loss at the model and K-FAC's factors
(arXiv 1503.05671); these are means over its examples, so weighted by numbers of examples they add up to those of the
pooled data, of which the server makes (A ⊗ G + λ)⁻¹ g for some λ. Every layer's part of each, and of the last step, is
a direction d_k of its own. In the second exchange a client sends the quadratic model of its loss along these,

    b_k = gᵀ d_k,    M_kl = d_kᵀ F d_l,    F = (1/n) Σ_x J_xᵀ S_x S_xᵀ J_x, not its approximation by K-FAC,

and the server moves by −Σ c_k d_k, (M + ε diag M) c = b; section 7 of that paper has this for two directions. So no
length is a setting, no labelled example is needed at the server, and the result is the same for every split of the
data.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from .._doors import require_targets
from .._examples import Batch, Examples, mean_over_batches
from .._likelihood import Likelihood, gaussian
from .._trees import scaled, stack, widened
from ..curvature._cotangents import counted
from ..curvature._leaves import leaves as leaves_of
from ..curvature.structures._gradient import Gradient, Quadratic
from ..curvature.structures._protocol import Blocks, damped_inverse, mean_diagonals
from ..tracing._convolution import for_loops
from ._heads import regressed
from ._measure import MeasureFisher, require_options
from ._rule import Kind, Merged, Payload, Rule, Takes, Update, exchanges, require_start, then, weight_of
from ._sent import Along, Stepped, model_of

PyTree = Any
DAMPINGS = (0.003, 0.03, 0.3)  # λ
SHRINK = 0.01  # ε
KINDS = {True: "least squares", False: "the likelihood's loss"}  # what is minimised, as a payload's kind


@dataclasses.dataclass(frozen=True)
class Fit:
    """What is minimised: a likelihood's loss, or least squares of its targets (one-hot classes), as heads have it."""

    apply: Callable
    likelihood: Likelihood
    squares: bool
    batch_size: int

    def loss(self, outputs: Any, target: Any) -> jax.Array:
        """One example's loss."""
        if not self.squares:
            return self.likelihood.nll(outputs, target)
        wanted = regressed(self.likelihood, outputs.shape, target).reshape(outputs.shape)
        return jnp.sum(counted(self.likelihood, target, outputs - wanted.astype(outputs.dtype)) ** 2) / 2

    def factor(self, outputs: Any, target: Any) -> jax.Array:
        """Rows s_k whose sum of s_k s_kᵀ is the loss's curvature in one example's outputs."""
        fitted = gaussian() if self.squares else self.likelihood
        return counted(self.likelihood, target, fitted.fisher_factor(outputs))

    def payload(self, data: Examples, measured: Gradient | Quadratic) -> Payload:
        """What is sent of the means over these examples."""
        weight = weight_of(data)
        return Payload(weight, None, measured, Kind(KINDS[self.squares]))


@dataclasses.dataclass(frozen=True)
class MeasureGradient:
    """Measures the gradient and a Fisher at the model that was sent."""

    fit: Fit
    fisher: MeasureFisher

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Payload:
        """One client's payload; it holds no parameters."""
        params, apply = model_of(require_start(update.start)), for_loops(self.fit.apply)
        require_targets(self.fit.likelihood, self.fit.apply, params, data, empty=True)
        curvature = self.fisher(Update(params, params), data, key).statistics

        def sums(batch: Batch) -> tuple[jax.Array, PyTree]:
            def total(p: PyTree) -> jax.Array:
                losses = jax.vmap(self.fit.loss)(apply(p, batch.x), batch.y)
                return jnp.sum(jnp.where(batch.mask, losses, 0))

            return jax.value_and_grad(total)(params)

        loss, gradient = mean_over_batches(sums, data, self.fit.batch_size)
        loss, gradient, curvature = widened((loss, gradient, curvature))
        return self.fit.payload(data, Gradient(loss, gradient, curvature, leaves_of(params)))


@dataclasses.dataclass(frozen=True)
class MeasureQuadratic:
    """Measures the loss's quadratic model along every layer's part of the directions that were sent."""

    fit: Fit

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Payload:
        """One client's payload; it holds no parameters."""
        del key
        sent, apply = update.start, for_loops(self.fit.apply)
        if not isinstance(sent, Along):
            raise ValueError("start: got a model alone, expected directions, which a step's first exchange finds")
        model = widened(sent.model)
        places, masks = (jnp.asarray(column) for column in zip(*sent.parts(), strict=True))

        def sums(batch: Batch) -> tuple[jax.Array, jax.Array]:
            outputs, along = jax.linearize(lambda p: apply(p, batch.x), model)
            moved = jax.lax.map(lambda one: along(sent.part(*one)), (places, masks))  # [m, n, ...]
            slopes = jax.vmap(jax.grad(self.fit.loss))(outputs, batch.y)
            rows = jax.vmap(self.fit.factor)(outputs, batch.y)
            slopes, rows = batch.zeroed((slopes, rows))
            turned = jnp.einsum("nk...,mn...->mnk", rows, moved)
            return jnp.einsum("n...,mn...->m", slopes, moved), jnp.einsum("ink,jnk->ij", turned, turned)

        slopes, curvatures = mean_over_batches(sums, data, self.fit.batch_size)
        return self.fit.payload(data, Quadratic(slopes, curvatures, leaves_of(sent.model)))


def natural_gradient(
    apply: Callable,
    likelihood: Likelihood,
    *,
    steps: int = 1,
    dampings: Sequence[float] = DAMPINGS,
    shrink: float = SHRINK,
    squares: bool = True,
    **options: Any,
) -> Rule:
    """Natural-gradient steps from a merged model, two exchanges each, as "analytic+natural-gradient,steps=2".

    A client sends sums alone: a gradient and Kronecker factors, then m + m² numbers for m directions. The gradient of
    few examples shows them, so sum it securely.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what is fitted; its targets are.
        steps: how many.
        dampings: λ, relative to the mean diagonal entry of a layer's block; each gives directions of its own.
        shrink: ε, relative to each direction's own curvature.
        squares: minimise least squares of the targets, which heads of `analytic` and `recalibrate` minimise in the
            last layer; False minimises the likelihood's loss, for models that were trained by it.
        options: what else `MeasureFisher` takes: kind ("monte_carlo" is much faster, and lengths do not depend on it),
            samples, batch_size, skip, captured.

    Raises:
        TypeError: an unknown option.
        ValueError: a number that is not positive.

    Example:
        >>> import jax, jax.numpy as jnp, fedfisher_jax as ff
        >>> x, y = jnp.asarray([[1.0], [2.0], [3.0]]), jnp.asarray([[2.0], [4.0], [6.0]])
        >>> rule = ff.merge.natural_gradient(lambda w, x: x @ w, ff.gaussian(), shrink=1e-6)
        >>> sent, clients = jnp.zeros((1, 1)), [ff.examples(x[:1], y[:1]), ff.examples(x[1:], y[1:])]
        >>> for part in ff.merge.exchanges(rule):
        ...     payloads = [part.measure(ff.Update(None, sent), one, jax.random.key(0)) for one in clients]
        ...     sent = ff.merge_payloads(part, payloads, sent).params
        >>> print(f"{sent.item():.3f}")
        2.000
    """
    require_options(options, natural_gradient, MeasureFisher, "at", "subspace")
    if not len(dampings):
        raise ValueError("dampings: got none, expected at least one positive number")
    numbers = {"steps": steps, "shrink": shrink} | {f"dampings[{n}]": value for n, value in enumerate(dampings)}
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}: got {value}, expected a positive number")
    fit = Fit(apply, likelihood, squares, options.get("batch_size") or 256)
    fitted = dataclasses.replace(gaussian(), counts=likelihood.counts) if squares else likelihood
    fisher = MeasureFisher(apply, fitted, "kronecker", at="start", **options)
    parts = []
    for step in range(1, steps + 1):
        name, measure = f"natural-gradient-{step}", MeasureGradient(fit, fisher)
        parts.append(_additive(name, measure, partial(_directions, tuple(dampings)), Gradient))
        solve = partial(_moved, shrink, step == steps)
        parts.append(_additive(f"{name}-length", MeasureQuadratic(fit), solve, Quadratic))
    return reduce(then, parts)._replace(name="natural-gradient")


def exchange_at(rule: Rule, sent: PyTree) -> Rule:
    """Choose the exchange that begins with what clients were sent, for who has no more than a file of that.

    Args:
        rule: one exchange, or natural-gradient steps. Of these it is an exchange of the first step: where it is not the
            last one, its model goes along with the step, for another one.
        sent: a model, or what steps give between their exchanges.

    Raises:
        ValueError: the rule does not begin there, or is several other exchanges.
    """
    parts = exchanges(rule)
    if all(isinstance(part.measure, MeasureGradient | MeasureQuadratic) for part in parts):
        return parts[isinstance(sent, Along)]
    if len(parts) > 1:
        raise ValueError(f"rule: got {rule.name}, which is {len(parts)} exchanges, expected one of them, by its name")
    if isinstance(sent, Along | Stepped):
        raise ValueError(f"start: got a model within steps of natural-gradient, which {rule.name} does not take")
    return rule


def lengths_of(slopes: jax.Array, curvatures: jax.Array, shrink: float) -> jax.Array:
    """Solve (M + ε diag M) c = b; a direction without curvature has no length.

    Args:
        slopes: [m], b.
        curvatures: [m, m], M.
        shrink: ε.
    """
    sizes = jnp.sqrt(jnp.diagonal(curvatures))
    known = sizes > 0
    unit = jnp.where(known, 1 / jnp.where(known, sizes, 1), 0)
    system = unit[:, None] * curvatures * unit + jnp.diag(jnp.where(known, shrink, 1).astype(unit.dtype))
    return unit * jnp.linalg.solve(system, unit * slopes)


def _additive(name: str, measure: Callable, solve: Callable[[Any, PyTree], Merged], sent: type) -> Rule:
    """Make an exchange of means over examples, of which `solve` is given those of all clients' examples."""

    def lift(payload: Payload, start: PyTree) -> dict[str, Any]:
        return {"weight": payload.weight, "sums": scaled(payload.weight, payload.statistics)}

    def of_all(summary: dict[str, Any], start: PyTree) -> Merged:
        return solve(scaled(1 / summary["weight"], summary["sums"]), require_start(start))

    return Rule(name, measure, lift, of_all, "add", trains=False, takes=Takes((sent,), tuple(KINDS.values())))


def _directions(dampings: tuple[float, ...], means: Gradient, start: PyTree) -> Merged:
    """Do the server's part of the first exchange: a direction for each damping; and the last step, if any."""
    sizes = mean_diagonals(means.fisher)
    found = [damped_inverse(means.fisher, [damping * size for size in sizes])(means.gradient) for damping in dampings]
    found += [start.step] if isinstance(start, Stepped) else []
    directions, model = stack(found), model_of(start)
    return Merged(Along(model, directions, _masks(means.fisher.blocks(), model)), {"loss": means.loss})


def _masks(blocks: Blocks, model: PyTree) -> jax.Array:
    leaves = jax.tree.leaves(model)
    rows = [[float(leaf in block) for leaf in range(len(leaves))] for block in blocks]
    return jnp.asarray(rows, jnp.result_type(*leaves))


def _moved(shrink: float, last: bool, means: Quadratic, start: Along) -> Merged:
    """Do the server's part of the second exchange; but for the last step, that step goes along with the model."""
    lengths = lengths_of(means.slopes, means.curvatures, shrink)
    steps = [scaled(-lengths[n], start.part(*part)) for n, part in enumerate(start.parts())]
    step = jax.tree.map(lambda *leaves: sum(leaves), *steps)
    params = jax.tree.map(jnp.add, start.model, step)
    fall = means.slopes @ lengths - lengths @ means.curvatures @ lengths / 2
    return Merged(params if last else Stepped(params, step), {"expected_fall": fall})
