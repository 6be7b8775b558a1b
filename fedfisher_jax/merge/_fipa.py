"""FIPA (arXiv 2601.13608): Gauss–Newton steps in the span of the clients' top Fisher eigenvectors.

Each client sends its step Δ_m and the top eigenpairs (U_m, Λ_m) of its Fisher at the round's start; with
H = Σ w_m U_m Λ_m U_mᵀ, b = Σ w_m U_m Λ_m U_mᵀ Δ_m and w_m = N_m / N the server moves by

    H⁺ b, or with damping (H + τ)⁻¹ b,                    where nothing outside of the span moves ("stay"), or
    (H + τ)⁻¹ (b + τ Σ w_m Δ_m), outside of it Σ w_m Δ_m, which tends to FedAvg as τ grows ("fedavg").

The joint basis [U_1 … U_M] = Q R reduces it to K = R diag(w_m Λ_m) Rᵀ, of the size of the clients' ranks together. With
a bound, clients enter H one after the other and it is cut to its largest eigenpairs each time.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._likelihood import Likelihood
from ..curvature import Subspace
from ..curvature.structures._low_rank import LowRank, joined, recompress, split
from ._measure import MeasureFisher, require_options
from ._rule import Merged, Payload, Rule, moved

PyTree = Any
OFF_SPAN = ("stay", "fedavg")


def fipa(
    apply: Callable,
    likelihood: Likelihood,
    *,
    rank: int | None = None,
    off_span: str = "stay",
    tau: float = 0.0,
    cutoff: float | None = None,
    bound: int | None = None,
    subspace: Subspace | None = None,
    **options: Any,
) -> Rule:
    """FIPA; a client sends d + r (d + 1) numbers, d parameters and r eigenpairs of its Fisher.

    A few rounds of FedAvg should come first with "stay", since nothing moves outside of the span.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what is fitted; a physics-informed network's residual is Gaussian.
        rank: the number r of eigenpairs per client, in place of the subspace's.
        off_span: "stay" or "fedavg": what happens where no client's eigenvectors reach.
        tau: the damping τ ≥ 0, relative to the largest eigenvalue of H.
        cutoff: directions whose eigenvalue in H is at most this share of the largest are outside of the span (the
            truncated pseudo-inverse); default 10 times the rounding error of the type times the joint rank.
        bound: most eigenpairs of H that the server keeps while it goes through the clients, at least `rank`; b stays
            exact. The diagnostic `dropped_trace` is then an upper bound of ‖H − kept‖. By default all.
        subspace: rank and effort of the eigenpairs, and which parameters they cover; default `Subspace()`, over all.
        options: what else `MeasureFisher` takes: kind, samples, batch_size.

    Raises:
        TypeError: an unknown option.
        ValueError: unknown `off_span`, negative τ or cutoff, a bound below the rank.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> clients = [(jnp.zeros((1, 1)), jnp.ones((1, 1))), (jnp.full((1, 1), 5.0), jnp.full((1, 1), 2.0))]  # (w, x)
        >>> rule = ff.fipa(lambda w, x: x @ w, ff.gaussian(), rank=1)
        >>> start = jnp.zeros((1, 1))
        >>> payloads = [rule.measure(ff.Update(w, start), ff.examples(x), jax.random.key(0)) for w, x in clients]
        >>> print(f"{ff.merge_payloads(rule, payloads, start).params.item():.4f}")  # (1² · 0 + 2² · 5) / (1² + 2²)
        4.0000
    """
    if off_span not in OFF_SPAN:
        raise ValueError(f"off_span: got {off_span!r}, expected one of {', '.join(OFF_SPAN)}")
    for name, value in (("tau", tau), ("cutoff", cutoff or 0.0)):
        if not value >= 0:
            raise ValueError(f"{name}: got {value}, expected a number of at least 0")
    chosen = subspace or Subspace()
    if rank is not None:
        chosen = dataclasses.replace(chosen, rank=rank)
    if bound is not None and bound < chosen.rank:
        raise ValueError(f"bound: got {bound}, expected at least the rank, {chosen.rank}")
    require_options(options, fipa, MeasureFisher, "at")
    measure = MeasureFisher(apply, likelihood, "low_rank", subspace=chosen, at="start", **options)

    def solve(payloads: Payload, start: PyTree) -> Merged:
        steps = moved(payloads, start)
        step, diagnostics = joint_step(steps, off_span=off_span, tau=tau, cutoff=cutoff, bound=bound)
        return Merged(jax.tree.map(jnp.add, start, step), diagnostics)

    return Rule("fipa", measure, lambda payload, start: payload, solve, "stack", takes=measure.takes())


def joint_step(
    payloads: Payload,
    *,
    off_span: str = "stay",
    tau: float = 0.0,
    cutoff: float | None = None,
    bound: int | None = None,
) -> tuple[PyTree, dict[str, Any]]:
    """Compute the server's step, and diagnostics, from stacked payloads (steps Δ_m and `LowRank` Fishers).

    It costs a QR decomposition [d, M r] and matrices of size M r, or with a bound R one of [d, R + r] for each client.
    The arguments are those of `fipa`.
    """
    fishers, treedef = payloads.statistics, jax.tree.structure(payloads.params)
    shares = payloads.weight / jnp.sum(payloads.weight)
    leaves, covered = jax.tree.leaves(payloads.params), sorted(fishers.vectors)
    count, rank = fishers.values.shape
    shares = shares.astype(fishers.values.dtype)
    steps = joined([leaves[leaf] for leaf in covered])  # [M, covered d]
    if bound is None:
        basis, turn, sizes, pull = _whole_span(fishers, shares, steps)
        dropped = jnp.zeros((), sizes.dtype)
    else:
        basis, turn, sizes, pull, dropped = _bounded_span(fishers, shares, steps, bound)
    largest = jnp.maximum(sizes[-1], 0)
    limit = 10 * count * rank * float(jnp.finfo(sizes.dtype).eps) if cutoff is None else cutoff
    inside, damping = sizes > limit * largest, tau * largest
    mean = shares @ steps
    mean_along = turn.T @ (basis.T @ mean)
    target = pull + (damping * mean_along if off_span == "fedavg" else 0)
    solved = target / jnp.where(inside, sizes + damping, 1)
    found = jnp.where(inside, solved, mean_along if off_span == "fedavg" else 0)
    step = basis @ (turn @ found)
    if off_span == "fedavg":
        step = step + mean - basis @ (basis.T @ mean)
    parts = dict(zip(covered, split(step[None], [fishers.shapes[leaf] for leaf in covered]), strict=True))
    elsewhere = 1 if off_span == "fedavg" else 0
    result = [
        parts[number][0].astype(leaf.dtype)
        if number in parts
        else elsewhere * jnp.tensordot(shares.astype(leaf.dtype), leaf, axes=1)
        for number, leaf in enumerate(leaves)
    ]
    diagnostics = {
        "joint_rank": jnp.sum(inside),
        "largest_eigenvalue": largest,
        "dropped_trace": dropped,
        "share_in_span": jnp.linalg.norm(basis.T @ mean) / (jnp.linalg.norm(mean) + jnp.finfo(mean.dtype).tiny),
    }
    return jax.tree.unflatten(treedef, result), diagnostics


def _whole_span(fishers: LowRank, shares: jax.Array, steps: jax.Array) -> tuple[jax.Array, ...]:
    """Compute a basis [d, k] of the joint span, H's eigenvectors in it [k, k], its eigenvalues, and b along them."""
    count, rank = fishers.values.shape
    covered = sorted(fishers.vectors)
    basis, triangle = jnp.linalg.qr(joined([fishers.vectors[leaf].reshape(count * rank, -1) for leaf in covered]).T)
    inner = triangle.reshape(-1, count, rank)  # Qᵀ U_m
    weighted = shares[:, None] * fishers.values  # w_m Λ_m
    small = jnp.einsum("amr,mr,bmr->ab", inner, weighted, inner)
    along = basis.T @ steps.T  # Qᵀ Δ_m, [joint, M]; U_mᵀ Δ_m = (Qᵀ U_m)ᵀ Qᵀ Δ_m
    pull = jnp.einsum("amr,mr,bmr,bm->a", inner, weighted, inner, along)
    sizes, turn = jnp.linalg.eigh(small)
    return basis, turn, sizes, turn.T @ pull


def _bounded_span(fishers: LowRank, shares: jax.Array, steps: jax.Array, bound: int) -> tuple[jax.Array, ...]:
    """Do what `_whole_span` does for the part of H that is kept, and give the trace of the dropped part as well.

    Eigenvalues ascend here, too.
    """
    covered = sorted(fishers.vectors)
    width = min(bound, steps.shape[1])
    zeros = {leaf: jnp.zeros((width, *u.shape[2:]), u.dtype) for leaf, u in fishers.vectors.items()}
    empty = dataclasses.replace(fishers, values=jnp.zeros(width, fishers.values.dtype), vectors=zeros)

    def enter(carry: tuple[LowRank, jax.Array, jax.Array], client: Any) -> tuple[Any, None]:
        kept, b, dropped = carry
        fisher, share, step = client
        b = b + share * (_rows(fisher, covered).T @ (fisher.values * (_rows(fisher, covered) @ step)))
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y])[None], kept, fisher.scale(share))
        found = recompress(both, jnp.ones(1, dropped.dtype), width)
        return (found.fisher, b, dropped + found.dropped_trace), None

    start = (empty, jnp.zeros_like(steps[0]), jnp.zeros((), fishers.values.dtype))
    (kept, b, dropped), _ = jax.lax.scan(enter, start, (fishers, shares, steps))
    basis = _rows(kept, covered)[::-1].T
    return basis, jnp.eye(width, dtype=basis.dtype), kept.values[::-1], basis.T @ b, dropped


def _rows(fisher: LowRank, covered: list[int]) -> jax.Array:
    """Put the vectors' parts in all covered leaves side by side, [r, d]."""
    return joined([fisher.vectors[leaf] for leaf in covered])
