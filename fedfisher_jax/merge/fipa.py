"""FIPA (arXiv 2601.13608): Gauss–Newton steps in the span of the clients' top Fisher eigenvectors.

Each client sends its step Δ_m and the top eigenpairs (U_m, Λ_m) of its Fisher at the round's start; with
H = Σ w_m U_m Λ_m U_mᵀ, b = Σ w_m U_m Λ_m U_mᵀ Δ_m and w_m = N_m / N the server moves by

    H⁺ b, or with damping (H + τ)⁻¹ b,                    where nothing outside of the span moves ("stay"), or
    (H + τ)⁻¹ (b + τ Σ w_m Δ_m), outside of it Σ w_m Δ_m, which tends to FedAvg as τ grows ("fedavg").

The joint basis [U_1 … U_M] = Q R reduces it to K = R diag(w_m Λ_m) Rᵀ, of the size of the clients' ranks together.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..curvature import Subspace
from ..curvature.low_rank import joined, split
from ..examples import Examples
from ..likelihood import Likelihood
from .rule import Measure, Merged, Payload, RoundRule, Update

PyTree = Any
OFF_SPAN = ("stay", "fedavg")


@dataclasses.dataclass(frozen=True)
class MeasureStart:
    """Measures how far the client moved, and its Fisher information where it began."""

    fisher: Measure

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Payload:
        """One client's payload; its parameters are the difference to the round's start."""
        payload = self.fisher(update.start, data, key)
        return payload._replace(params=jax.tree.map(jnp.subtract, update.params, update.start))


def fipa(
    apply: Callable,
    likelihood: Likelihood,
    *,
    rank: int = 10,
    off_span: str = "stay",
    tau: float = 0.0,
    cutoff: float | None = None,
    subspace: Subspace | None = None,
    **options: Any,
) -> RoundRule:
    """FIPA. Uplink: d + r (d + 1) numbers.

    A few rounds of FedAvg should come first with "stay", since nothing moves outside of the span.

    Args:
        apply: the model.
        likelihood: what is fitted; a physics-informed network's residual is Gaussian.
        rank: r, eigenpairs per client.
        off_span: "stay" or "fedavg": what happens where no client's eigenvectors reach.
        tau: τ ≥ 0, relative to the largest eigenvalue of H.
        cutoff: directions whose eigenvalue in H is at most this share of the largest are outside of the span (the
            truncated pseudo-inverse); default 10 times the rounding error of the type times the joint rank.
        subspace: effort of the eigenpairs and which parameters they cover; default that of rank r over all.
        options: of `Measure`: kind, batch_size.

    Raises:
        ValueError: unknown `off_span`, negative τ or cutoff.
    """
    if off_span not in OFF_SPAN:
        raise ValueError(f"off_span: got {off_span!r}, expected one of {', '.join(OFF_SPAN)}")
    for name, value in (("tau", tau), ("cutoff", cutoff or 0.0)):
        if not value >= 0:
            raise ValueError(f"{name}: got {value}, expected a number of at least 0")
    chosen = Subspace(rank) if subspace is None else dataclasses.replace(subspace, rank=rank)
    measure = MeasureStart(Measure(apply, likelihood, "low_rank", subspace=chosen, **options))

    def solve(payloads: Payload, start: PyTree) -> Merged:
        moved, diagnostics = joint_step(payloads, off_span=off_span, tau=tau, cutoff=cutoff)
        return Merged(jax.tree.map(jnp.add, start, moved), diagnostics)

    return RoundRule("fipa", measure, lambda payload: payload, solve, "stack")


def joint_step(
    payloads: Payload, *, off_span: str = "stay", tau: float = 0.0, cutoff: float | None = None
) -> tuple[PyTree, dict[str, Any]]:
    """The server's step from stacked payloads (steps Δ_m, `LowRank` Fishers), and its size in and out of the span.

    Costs a QR decomposition [d, M r] and matrices of size M r; arguments as in `fipa`.
    """
    fishers, treedef = payloads.fisher, jax.tree.structure(payloads.params)
    shares = payloads.weight / jnp.sum(payloads.weight)
    leaves, covered = jax.tree.leaves(payloads.params), sorted(fishers.vectors)
    count, rank = fishers.values.shape
    shares = shares.astype(fishers.values.dtype)
    steps = joined([leaves[leaf] for leaf in covered])  # [M, covered d]
    basis, triangle = jnp.linalg.qr(joined([fishers.vectors[leaf].reshape(count * rank, -1) for leaf in covered]).T)
    inner = triangle.reshape(-1, count, rank)  # Qᵀ U_m
    weighted = shares[:, None] * fishers.values  # w_m Λ_m
    small = jnp.einsum("amr,mr,bmr->ab", inner, weighted, inner)
    along = basis.T @ steps.T  # Qᵀ Δ_m, [joint, M]; U_mᵀ Δ_m = (Qᵀ U_m)ᵀ Qᵀ Δ_m
    pull = jnp.einsum("amr,mr,bmr,bm->a", inner, weighted, inner, along)
    sizes, turn = jnp.linalg.eigh(small)
    largest = jnp.maximum(sizes[-1], 0)
    limit = 10 * count * rank * float(jnp.finfo(small.dtype).eps) if cutoff is None else cutoff
    inside, damping = sizes > limit * largest, tau * largest
    mean = shares @ steps
    mean_along = turn.T @ (basis.T @ mean)
    target = turn.T @ pull + (damping * mean_along if off_span == "fedavg" else 0)
    solved = target / jnp.where(inside, sizes + damping, 1)
    found = jnp.where(inside, solved, mean_along if off_span == "fedavg" else 0)
    moved = basis @ (turn @ found)
    if off_span == "fedavg":
        moved = moved + mean - basis @ (basis.T @ mean)
    parts = dict(zip(covered, split(moved[None], [fishers.shapes[leaf] for leaf in covered]), strict=True))
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
        "share_in_span": jnp.linalg.norm(basis.T @ mean) / (jnp.linalg.norm(mean) + jnp.finfo(mean.dtype).tiny),
    }
    return jax.tree.unflatten(treedef, result), diagnostics
