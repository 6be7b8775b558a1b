"""FIPA's step (arXiv 2601.13608), solved in the joint span of the clients' eigenvectors, and how long it may be.

The joint basis [U_1 … U_M] = Q R reduces (H + τ) d = … to R diag(w_m Λ_m) Rᵀ, of the size of the clients' ranks
together. With a bound, clients enter H one after the other and it is cut to its largest eigenpairs each time.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._trees import clipped, scaled, weighted_sum
from ..curvature.structures._low_rank import LowRank, joined, recompress, split
from ._rule import Payload

PyTree = Any
OFF_SPAN = ("stay", "fedavg")


@dataclasses.dataclass(frozen=True)
class FipaStep:
    """Damping and length of FIPA's step.

    Attributes:
        off_span: "stay" or "fedavg": what happens where no client's eigenvectors reach.
        tau: the damping τ ≥ 0, relative to the largest eigenvalue of H.
        relative: False takes τ as it is.
        clip: the longest step, in units of √Σ ‖Δ_m‖² over the round's clients, as `clip_to_clients` has it; None: any.
        rate: what the step is multiplied by after that.
        cutoff: directions whose eigenvalue in H is at most this share of the largest are outside of the span (the
            truncated pseudo-inverse); default 10 times the rounding error of the type times the joint rank.
        bound: most eigenpairs of H that the server keeps while it goes through the clients, at least the clients' rank;
            b stays exact. The diagnostic `dropped_trace` is then an upper bound of ‖H − kept‖. By default all.

    Raises:
        ValueError: unknown `off_span`, negative τ or cutoff, a clip or rate that is not positive.
    """

    off_span: str = "fedavg"
    tau: float = 0.01
    relative: bool = True
    clip: float | None = 1.0
    rate: float = 1.0
    cutoff: float | None = None
    bound: int | None = None

    def __post_init__(self) -> None:
        if self.off_span not in OFF_SPAN:
            raise ValueError(f"off_span: got {self.off_span!r}, expected one of {', '.join(OFF_SPAN)}")
        for name, value in (("tau", self.tau), ("cutoff", self.cutoff or 0.0)):
            if not value >= 0:
                raise ValueError(f"{name}: got {value}, expected a number of at least 0")
        for name, value in (("clip", 1.0 if self.clip is None else self.clip), ("rate", self.rate)):
            if not value > 0:
                raise ValueError(f"{name}: got {value}, expected a positive number")


PAPER_FIPA = FipaStep(off_span="stay", tau=0.0, clip=None)
"""The paper's step, H⁺ b."""


def joint_step(
    payloads: Payload, step: FipaStep = PAPER_FIPA, past: LowRank | None = None
) -> tuple[PyTree, dict[str, Any]]:
    """Compute the server's step, and diagnostics, from stacked payloads (steps Δ_m and `LowRank` Fishers).

    It costs a QR decomposition [d, M r] and matrices of size M r, or with a bound R one of [d, R + r] for each client.

    Args:
        payloads: the clients', with a leading axis.
        step: damping and length.
        past: what is added to H, and not to b.
    """
    fishers = payloads.statistics
    shares = payloads.weight / jnp.sum(payloads.weight)
    pull = weighted_sum(shares, jax.vmap(lambda fisher, moved: fisher.matvec(moved))(fishers, payloads.params))
    mean = weighted_sum(shares, payloads.params)
    covered, leaves = sorted(fishers.vectors), jax.tree.leaves(mean)
    if step.bound is None:
        pairs, dropped = together(fishers, shares), jnp.zeros((), fishers.values.dtype)
    else:
        pairs, dropped = _bounded(fishers, shares, step.bound)
    if past is not None:
        pairs = both(pairs, past)
    basis, triangle = jnp.linalg.qr(_rows(pairs, covered).T)
    sizes, turn = jnp.linalg.eigh((triangle * pairs.values) @ triangle.T)
    largest = jnp.maximum(sizes[-1], 0)
    limit = 10 * pairs.values.size * float(jnp.finfo(sizes.dtype).eps) if step.cutoff is None else step.cutoff
    inside, damping = sizes > limit * largest, step.tau * (largest if step.relative else 1)
    flat = _flat(mean, covered)
    mean_along, pull_along = (turn.T @ (basis.T @ one) for one in (flat, _flat(pull, covered)))
    averages = step.off_span == "fedavg"
    target = pull_along + (damping * mean_along if averages else 0)
    solved = target / jnp.where(inside, sizes + damping, 1)
    found = basis @ (turn @ jnp.where(inside, solved, mean_along if averages else 0))
    if averages:
        found = found + flat - basis @ (basis.T @ flat)
    parts = dict(zip(covered, split(found[None], [fishers.shapes[leaf] for leaf in covered]), strict=True))
    result = jax.tree.unflatten(
        jax.tree.structure(mean),
        [
            parts[number][0].astype(leaf.dtype) if number in parts else (leaf if averages else jnp.zeros_like(leaf))
            for number, leaf in enumerate(leaves)
        ],
    )
    shortened = jnp.ones((), sizes.dtype)
    if step.clip is not None:
        result, shortened = clipped(result, step.clip * optax.tree.norm(payloads.params))
    diagnostics = {
        "joint_rank": jnp.sum(inside),
        "largest_eigenvalue": largest,
        "dropped_trace": dropped,
        "share_in_span": jnp.linalg.norm(jnp.where(inside, mean_along, 0))
        / (jnp.linalg.norm(flat) + jnp.finfo(flat.dtype).tiny),
        "shortened": shortened,
    }
    return scaled(step.rate, result), diagnostics


def together(fishers: LowRank, shares: jax.Array) -> LowRank:
    """Write Σ w_m U_m Λ_m U_mᵀ as one list of M r pairs, whose vectors are not orthogonal to each other."""
    values = shares.astype(fishers.values.dtype)[:, None] * fishers.values
    vectors = {leaf: u.reshape(u.shape[0] * u.shape[1], *u.shape[2:]) for leaf, u in fishers.vectors.items()}
    return dataclasses.replace(fishers, values=values.reshape(-1), vectors=vectors)


def both(first: LowRank, second: LowRank) -> LowRank:
    """Write the sum of two as one list of pairs."""
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), first, second)


def cut(pairs: LowRank, rank: int) -> tuple[LowRank, jax.Array]:
    """Keep the largest eigenpairs of a list of pairs, and tell the trace of the dropped part."""
    alone = jax.tree.map(lambda leaf: leaf[None], pairs)
    return recompress(alone, jnp.ones(1, pairs.values.dtype), rank)


def zeros(rank: int, shapes: dict[int, tuple[int, ...]], like: LowRank) -> LowRank:
    """Make `rank` pairs of zeros over the leaves of `shapes`, in the type and tree of `like`."""
    dtype = like.values.dtype
    vectors = {leaf: jnp.zeros((rank, *shape), dtype) for leaf, shape in shapes.items()}
    return dataclasses.replace(like, values=jnp.zeros(rank, dtype), vectors=vectors)


def _bounded(fishers: LowRank, shares: jax.Array, bound: int) -> tuple[LowRank, jax.Array]:
    """Add the clients up one after the other, keep at most `bound` pairs each time, and tell the dropped trace."""
    shapes = {leaf: u.shape[2:] for leaf, u in fishers.vectors.items()}
    size = sum(u[0, 0].size for u in fishers.vectors.values())
    width = min(bound, size)

    def enter(carry: tuple[LowRank, jax.Array], client: Any) -> tuple[Any, None]:
        (kept, dropped), (fisher, share) = carry, client
        found = cut(both(kept, fisher.scale(share)), width)
        return (found[0], dropped + found[1]), None

    start = zeros(width, shapes, fishers), jnp.zeros((), fishers.values.dtype)
    return jax.lax.scan(enter, start, (fishers, shares.astype(fishers.values.dtype)))[0]


def _rows(fisher: LowRank, covered: list[int]) -> jax.Array:
    """Put the vectors' parts in all covered leaves side by side, [r, d]."""
    return joined([fisher.vectors[leaf] for leaf in covered])


def _flat(tree: PyTree, covered: list[int]) -> jax.Array:
    """Put the covered leaves of a tree side by side, [d]."""
    leaves = jax.tree.leaves(tree)
    return joined([leaves[leaf][None] for leaf in covered])[0]
