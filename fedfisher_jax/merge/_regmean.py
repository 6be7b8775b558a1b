"""RegMean (arXiv 2212.09849): each layer reproduces what the clients' layers make of the clients' own inputs.

Least squares, min_W Σ_i w_i |X_i W − X_i W_i|² / n_i, whose solution (Σ w_i A_i)⁻¹ Σ w_i A_i W_i needs of client i only
the second moment A_i = X_iᵀX_i / n_i of the layer's inputs. That is the aggregated objective with the curvature
A_i ⊗ I, and since I is common to all clients these curvatures add up: payloads fold by sums.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._examples import Batch, Examples, mean_over_batches
from .._likelihood import Likelihood
from .._trees import scaled, widened
from ..curvature import Capture, Gram, activations, capture
from ..curvature._cotangents import counted_activations
from ..curvature._reuse import input_moment
from ..curvature.structures._gram import of_inputs
from ..solve._conjugate_gradients import conjugate_gradients
from ..solve._least_squares import least_squares
from ..solve._objective import Solver
from ._fedfisher import lift_sums, summed
from ._measure import ALL_INPUTS, require_options
from ._rule import Kind, Merged, Payload, Rule, Takes, Update, weight_of

PyTree = Any
DENSE_INPUTS = "inputs of dense layers"  # without their biases
Compression = Callable[[jax.Array, int], jax.Array]  # (second moment, rank) → what is left of it


@dataclasses.dataclass(frozen=True)
class MeasureGrams:
    """Measures parameters and A = (1/n) Σ_x Σ_t a aᵀ, the mean over examples, of the layers' inputs a.

    Positions t that targets leave out are left out, as in `fisher(..., structure="gram")`.
    With `dense_only` it does so for the weights of dense layers alone, without biases; else for every captured layer.
    """

    apply: Callable
    likelihood: Likelihood
    dense_only: bool
    batch_size: int = 64
    captured: Capture | None = None

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Payload:
        """One client's payload, its curvature a `Gram`."""
        del key
        params = update.params
        captured = capture(self.apply, params, data.x) if self.captured is None else self.captured
        leaves, treedef = jax.tree.flatten(params)
        chosen = [n for n, site in enumerate(captured.sites) if not self.dense_only or _is_dense(captured, site)]
        if not chosen:
            raise ValueError(f"apply: got a model without a dense layer, expected one: {captured.fallback}")

        def of_example(x: Any, y: Any) -> list[Any]:
            return counted_activations(self.likelihood, y, activations(captured, leaves, x), captured.uses)[0]

        def sums(batch: Batch) -> list[Any]:
            kept = batch.zeroed(jax.vmap(of_example)(batch.x, batch.y))
            return [input_moment(a) for a in widened([kept[n] for n in chosen])]

        means = zip(chosen, mean_over_batches(sums, data, self.batch_size), strict=True)
        pairs = [pair for n, moment in means for pair in of_inputs(captured.layers[n], moment)]
        layers, total = [layer for layer, _ in pairs], [a for _, a in pairs]
        if self.dense_only:  # a bias is averaged, as the paper does
            total = [a if layer.bias is None else a[..., :-1, :-1] for layer, a in zip(layers, total, strict=True)]
            layers = [dataclasses.replace(layer, bias=None, bias_shape=()) for layer in layers]
        shapes = tuple(jnp.shape(leaf) for leaf in leaves)
        weight = weight_of(data)
        kind = Kind(DENSE_INPUTS if self.dense_only else ALL_INPUTS)
        return Payload(weight, params, Gram(tuple(total), tuple(layers), shapes, treedef), kind)


def regmean(
    apply: Callable,
    likelihood: Likelihood,
    *,
    off_diagonal: float = 0.9,
    uniform: bool = False,
    compression: Compression | None = None,
    solver: Solver | None = None,
    **options: Any,
) -> Rule:
    """Make RegMean's rule (arXiv 2212.09849): dense weights by their inputs' second moments, all else averaged.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what was fitted; it tells which positions count.
        off_diagonal: the factor of the off-diagonal entries of A, from 0 (a diagonal merge) to 1 (plain least squares).
        uniform: whether to average everything else over clients instead of over examples, as the released FedFisher
            code does.
        compression: what a client does to A (and, as that code, 15-bit quantisation to its parameters) before sending.
        solver: what finds the minimiser; default `least_squares()`.
        options: what else `MeasureGrams` takes: batch_size, captured.

    Raises:
        TypeError: an unknown option.
        ValueError: `off_diagonal` is not from 0 to 1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> clients = [(jnp.zeros((1, 1)), jnp.ones((1, 1))), (jnp.full((1, 1), 5.0), jnp.full((1, 1), 2.0))]  # (w, x)
        >>> rule = ff.merge.regmean(lambda w, x: x @ w, ff.gaussian())
        >>> payloads = [rule.measure(ff.Update(w), ff.examples(x), jax.random.key(0)) for w, x in clients]
        >>> print(f"{ff.merge_payloads(rule, payloads).params.item():.4f}")  # (1² · 0 + 2² · 5) / (1² + 2²)
        4.0000
    """
    _check_factor(off_diagonal)
    require_options(options, regmean, MeasureGrams)
    measure = MeasureGrams(apply, likelihood, True, **options)

    def lift(payload: Payload, start: PyTree) -> dict[str, Any]:
        sent = payload if compression is None else _compressed(payload, compression)
        gram = _shrunk(sent.statistics, off_diagonal)
        return lift_sums(sent._replace(statistics=gram)) | {"count": jnp.ones_like(sent.weight), "plain": sent.params}

    def solve(summary: dict[str, Any], start: PyTree) -> Merged:
        solution = (solver or least_squares())(summed(summary))
        if not uniform:
            return Merged(*solution)
        merged, treedef = jax.tree.flatten(solution.params)
        plain = jax.tree.leaves(scaled(1 / summary["count"], summary["plain"]))
        covered = {leaf for layer in summary["fisher"].layers for leaf in layer.leaves}
        leaves = [merged[leaf] if leaf in covered else plain[leaf] for leaf in range(len(merged))]
        return Merged(jax.tree.unflatten(treedef, leaves), solution.diagnostics)

    return Rule("regmean", measure, lift, solve, "add", takes=Takes((Gram,), (DENSE_INPUTS,)))


def released_regmean(apply: Callable, likelihood: Likelihood, **options: Any) -> Rule:
    """Make RegMean as the FedFisher authors run it, to compare with their numbers.

    It has their uniform average of convolutions, quantised parameters and low-rank, 8-bit second moments. Their
    off-diagonal factor is the better of 0.1 and 0.9 on 500 labelled examples at the server; here it is `off_diagonal`,
    by default 0.9, which is what their Fashion-MNIST run ends with. They measure at most 16,000 random examples of a
    client; here all are measured.
    """
    return regmean(apply, likelihood, uniform=True, compression=low_rank, **options)


def regmean_kron(
    apply: Callable,
    likelihood: Likelihood,
    *,
    off_diagonal: float = 1.0,
    solver: Solver | None = None,
    **options: Any,
) -> Rule:
    """Make our variant: A ⊗ I for every captured layer, convolutions and biases included, and any rule's solver.

    FedFisher's K-FAC with G = I; what it loses against it is what the gradients' factors know.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what was fitted; it tells which positions count.
        off_diagonal: as in `regmean`; the solver's damping does the same work here.
        solver: what finds the minimiser; default `conjugate_gradients()`.
        options: what else `MeasureGrams` takes: batch_size, captured.

    Raises:
        TypeError: an unknown option.
        ValueError: `off_diagonal` is not from 0 to 1.
    """
    _check_factor(off_diagonal)
    require_options(options, regmean_kron, MeasureGrams)

    def lift(payload: Payload, start: PyTree) -> dict[str, Any]:
        return lift_sums(payload._replace(statistics=_shrunk(payload.statistics, off_diagonal)))

    def solve(summary: dict[str, Any], start: PyTree) -> Merged:
        return Merged(*(solver or conjugate_gradients())(summed(summary)))

    measure, takes = MeasureGrams(apply, likelihood, False, **options), Takes((Gram,), (ALL_INPUTS,))
    return Rule("regmean-kron", measure, lift, solve, "add", takes=takes)


def low_rank(moment: jax.Array, rank: int) -> jax.Array:
    """Compress as released: drop singular vectors and values beyond `rank`, and keep the rest in 8 bits and sign."""
    u, s, v = jnp.linalg.svd(moment)
    return _quantised(u[..., :rank], 8) * _quantised(s[..., None, :rank], 8) @ _quantised(v[..., :rank, :], 8)


def _compressed(payload: Payload, compression: Compression) -> Payload:
    """Compress parameters to 16 bits each, moments to as many again: int(2d / Σ (2b + 1)) of b pairs, at least 1."""
    gram = payload.statistics
    size = sum(math.prod(shape) for shape in gram.shapes)
    rank = max(1, int(2 * size / sum(math.prod(a.shape[:-2]) * (2 * a.shape[-1] + 1) for a in gram.inputs)))
    params = jax.tree.map(lambda leaf: _quantised(leaf, 15), payload.params)
    inputs = tuple(compression(a, rank) for a in gram.inputs)
    return payload._replace(params=params, statistics=dataclasses.replace(gram, inputs=inputs))


def _quantised(array: jax.Array, bits: int) -> jax.Array:
    largest, levels = jnp.max(jnp.abs(array)), 2**bits - 1
    scale = jnp.where(largest > 0, largest, 1)
    return largest * jnp.round(levels * (array / scale)) / levels


def _shrunk(gram: Gram, factor: float) -> Gram:
    """Multiply off-diagonal entries by `factor`."""
    scaled = tuple(
        a if layer.lookup else jnp.where(jnp.eye(a.shape[-1], dtype=bool), a, factor * a)  # a table's is diagonal
        for layer, a in zip(gram.layers, gram.inputs, strict=True)
    )
    return dataclasses.replace(gram, inputs=scaled)


def _is_dense(captured: Capture, site: Any) -> bool:
    ways = {read.crossed for read in site.reads}  # one that is read both ways is in no `Gram`
    dense = captured.program.equations[site.product].name == "dot_general" and not site.layer.lookup
    return dense and len(ways) == 1


def _check_factor(off_diagonal: float) -> None:
    if not 0 <= off_diagonal <= 1:
        raise ValueError(f"off_diagonal: got {off_diagonal}, expected a number from 0 to 1")
