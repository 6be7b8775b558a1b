"""The memory of past rounds' Fishers: a running mean in low rank, cut with a stated error.

After round k, H̄ = Σ_i (1 − β) β^(k − i) H_i / (1 − β^k) over the rounds i ≤ k, H_i = Σ w_m U_m Λ_m U_mᵀ of its clients.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._trees import wide
from ..curvature import Subspace
from ..curvature.structures._low_rank import LowRank
from ._joint_step import both, cut, together, zeros
from ._rule import Payload

PyTree = Any


@dataclasses.dataclass(frozen=True)
class PastFishers:
    """How past rounds' Fishers are remembered, and how much they count.

    Attributes:
        rho: the factor ρ ≥ 0 of the running mean H̄, which is added to a round's own H.
        decay: the running mean's β, at least 0 and below 1.
        rank: eigenpairs of H̄ that are kept, at least 1.

    Raises:
        ValueError: a number out of range.
    """

    rho: float = 5.0
    decay: float = 0.9
    rank: int = 100

    def __post_init__(self) -> None:
        if not self.rho >= 0:
            raise ValueError(f"rho: got {self.rho}, expected a number of at least 0")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay: got {self.decay}, expected a number of at least 0, below 1")
        if self.rank < 1:
            raise ValueError(f"rank: got {self.rank}, expected at least 1")


class Remembered(NamedTuple):
    """What is kept between rounds: (1 − β^k) H̄, the factor 1 − β^k, and a bound of its error's norm."""

    fisher: LowRank
    mass: jax.Array
    dropped: jax.Array


def no_past(past: PastFishers, params: PyTree, subspace: Subspace) -> Remembered:
    """Make the memory before the first round."""
    leaves, tree = jax.tree.flatten(params)
    shapes = {n: leaves[n].shape for n in subspace.covered(params)}
    size = sum(leaves[n].size for n in shapes)
    dtype = wide(jnp.result_type(*[leaves[n] for n in shapes]))
    nothing = LowRank(jnp.zeros(0, dtype), {}, tuple(leaf.shape for leaf in leaves), tree)
    zero = jnp.zeros((), dtype)
    return Remembered(zeros(min(past.rank, size), shapes, nothing), zero, zero)


def weighed(past: PastFishers, kept: Remembered) -> LowRank:
    """Compute ρ H̄, which is zero before the first round."""
    return kept.fisher.scale(past.rho / jnp.where(kept.mass > 0, kept.mass, 1))


def remembered(past: PastFishers, kept: Remembered, payloads: Payload) -> Remembered:
    """Add a round's H to the running mean."""
    new = together(payloads.statistics, payloads.weight / jnp.sum(payloads.weight))
    fresh = 1 - past.decay
    fisher, dropped = cut(both(kept.fisher.scale(past.decay), new.scale(fresh)), kept.fisher.values.size)
    return Remembered(fisher, past.decay * kept.mass + fresh, past.decay * kept.dropped + dropped)
