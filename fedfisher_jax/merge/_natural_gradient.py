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

from .._examples import Batch, Examples, mean_over_batches
from .._likelihood import Likelihood, gaussian
from .._trees import pick, scaled, stack
from ..curvature.structures._protocol import Blocks, damped_inverse, mean_diagonals
from ..tracing._convolution import for_loops
from ._heads import regressed
from ._measure import MeasureFisher, require_options
from ._rule import Kind, Merged, Payload, Rule, Takes, Update, require_start, then

PyTree = Any
DAMPINGS = (0.003, 0.03, 0.3)  # λ
SHRINK = 0.01  # ε
GRADIENT, QUADRATIC = "gradient, kronecker", "quadratic model"  # kinds of what is measured


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sent:
    """What clients are sent between two exchanges of these steps.

    Attributes:
        model: the parameters.
        directions: a tree like them, with a leading axis of directions.
        blocks: static; numbers of the leaves of which a layer's part of a direction consists.
    """

    model: PyTree
    directions: PyTree
    blocks: Blocks = dataclasses.field(metadata={"static": True})

    def parts(self) -> list[tuple[int, Any]]:
        """List pairs of a direction's place and a mask over leaves: the directions d_k, m of them."""
        count, leaves = jax.tree.leaves(self.directions)[0].shape[0], len(jax.tree.leaves(self.model))
        masks = [[float(leaf in block) for leaf in range(leaves)] for block in self.blocks]
        return [(place, mask) for place in range(count) for mask in masks]

    def part(self, place: Any, mask: Any) -> PyTree:
        """Take one d_k, zero outside of its layer."""
        leaves, treedef = jax.tree.flatten(pick(self.directions, place))
        return treedef.unflatten([jnp.asarray(mask[n], leaf.dtype) * leaf for n, leaf in enumerate(leaves)])


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
        return jnp.sum((outputs - wanted.astype(outputs.dtype)) ** 2) / 2

    def factor(self, outputs: Any) -> jax.Array:
        """Rows s_k whose sum of s_k s_kᵀ is the loss's curvature in one example's outputs."""
        return (gaussian() if self.squares else self.likelihood).fisher_factor(outputs)


@dataclasses.dataclass(frozen=True)
class MeasureGradient:
    """Measures the gradient and a Fisher at the model that was sent."""

    fit: Fit
    fisher: MeasureFisher

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Payload:
        """One client's payload; it holds no parameters."""
        params, apply = _model(update.start), for_loops(self.fit.apply)
        curvature = self.fisher(Update(params, params), data, key).statistics

        def sums(batch: Batch) -> tuple[jax.Array, PyTree]:
            def total(p: PyTree) -> jax.Array:
                losses = jax.vmap(self.fit.loss)(apply(p, batch.x), batch.y)
                return jnp.sum(jnp.where(batch.mask, losses, 0))

            return jax.value_and_grad(total)(params)

        loss, gradient = mean_over_batches(sums, data, self.fit.batch_size)
        sent = {"loss": loss, "gradient": gradient, "fisher": curvature}
        return Payload(jnp.asarray(data.size, jnp.result_type(float)), None, sent, Kind(GRADIENT))


@dataclasses.dataclass(frozen=True)
class MeasureQuadratic:
    """Measures the loss's quadratic model along every layer's part of the directions that were sent."""

    fit: Fit

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Payload:
        """One client's payload; it holds no parameters."""
        del key
        sent, apply = update.start, for_loops(self.fit.apply)
        places, masks = (jnp.asarray(column) for column in zip(*sent.parts(), strict=True))

        def sums(batch: Batch) -> dict[str, jax.Array]:
            outputs, along = jax.linearize(lambda p: apply(p, batch.x), sent.model)
            moved = jax.lax.map(lambda one: along(sent.part(*one)), (places, masks))  # [m, n, ...]
            slopes = jax.vmap(jax.grad(self.fit.loss))(outputs, batch.y)
            rows = jax.vmap(self.fit.factor)(outputs)
            slopes, rows = (
                jnp.where(batch.mask.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0) for leaf in (slopes, rows)
            )
            turned = jnp.einsum("nk...,mn...->mnk", rows, moved)
            return {
                "slopes": jnp.einsum("n...,mn...->m", slopes, moved),
                "curvatures": jnp.einsum("ink,jnk->ij", turned, turned),
            }

        found = mean_over_batches(sums, data, self.fit.batch_size)
        return Payload(jnp.asarray(data.size, jnp.result_type(float)), None, found, Kind(QUADRATIC))


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
    numbers = {"steps": steps, "shrink": shrink} | {f"dampings[{n}]": value for n, value in enumerate(dampings)}
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}: got {value}, expected a positive number")
    fit = Fit(apply, likelihood, squares, options.get("batch_size") or 256)
    fisher = MeasureFisher(apply, gaussian() if squares else likelihood, "kronecker", at="start", **options)
    parts = []
    for step in range(1, steps + 1):
        name, measure = f"natural-gradient-{step}", MeasureGradient(fit, fisher)
        parts.append(_additive(name, measure, partial(_directions, tuple(dampings)), GRADIENT))
        solve = partial(_moved, shrink, step == steps)
        parts.append(_additive(f"{name}-length", MeasureQuadratic(fit), solve, QUADRATIC))
    return reduce(then, parts)._replace(name="natural-gradient")


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


def _additive(name: str, measure: Callable, solve: Callable[[dict[str, Any], PyTree], Merged], kind: str) -> Rule:
    """Make an exchange of means over examples, of which `solve` is given those of all clients' examples."""

    def lift(payload: Payload, start: PyTree) -> dict[str, Any]:
        return {"weight": payload.weight, "sums": scaled(payload.weight, payload.statistics)}

    def of_all(summary: dict[str, Any], start: PyTree) -> Merged:
        return solve(scaled(1 / summary["weight"], summary["sums"]), require_start(start))

    return Rule(name, measure, lift, of_all, "add", trains=False, takes=Takes((dict,), (kind,)))


def _directions(dampings: tuple[float, ...], means: dict[str, Any], start: PyTree) -> Merged:
    """Do the server's part of the first exchange: a direction for each damping; and the last step, if any."""
    fisher = means["fisher"]
    sizes = mean_diagonals(fisher)
    found = [damped_inverse(fisher, [damping * size for size in sizes])(means["gradient"]) for damping in dampings]
    directions = stack(found)
    if isinstance(start, Sent):
        directions = jax.tree.map(lambda new, old: jnp.concatenate([new, old]), directions, start.directions)
    return Merged(Sent(_model(start), directions, fisher.blocks()), {"loss": means["loss"]})


def _moved(shrink: float, last: bool, means: dict[str, Any], start: Sent) -> Merged:
    """Do the server's part of the second exchange; but for the last step, that step goes along with the model."""
    lengths = lengths_of(means["slopes"], means["curvatures"], shrink)
    steps = [scaled(-lengths[n], start.part(*part)) for n, part in enumerate(start.parts())]
    step = jax.tree.map(lambda *leaves: sum(leaves), *steps)
    params = jax.tree.map(jnp.add, start.model, step)
    fall = means["slopes"] @ lengths - lengths @ means["curvatures"] @ lengths / 2
    again = Sent(params, jax.tree.map(lambda leaf: leaf[None], step), start.blocks)
    return Merged(params if last else again, {"expected_fall": fall})


def _model(start: PyTree) -> PyTree:
    start = require_start(start)
    return start.model if isinstance(start, Sent) else start
