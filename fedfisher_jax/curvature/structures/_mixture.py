"""The curvature of the aggregated objective: a weighted sum of clients' Fishers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..._trees import pick, weighted_sum
from ._protocol import Blocks, Spectral

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mixture:
    """Σ_i w_i F_i over Fishers stacked on a leading client axis: the curvature of the aggregated objective."""

    fishers: Any
    weights: Any  # [M]

    def matvec(self, v: PyTree) -> PyTree:
        """H v, by all clients' Fishers in one batched product."""
        return self._mean(jax.vmap(lambda fisher: fisher.matvec(v))(self.fishers))

    def diagonal(self) -> PyTree:
        """The diagonal of H, which is the mixture of the clients' diagonals."""
        return self._mean(jax.vmap(lambda fisher: fisher.diagonal())(self.fishers))

    def scale(self, factor: Any) -> "Mixture":
        """H times a factor, which the weights take."""
        return Mixture(self.fishers, factor * self.weights)

    def blocks(self) -> Blocks:
        """The blocks of the clients' Fishers."""
        return self.fishers.blocks()

    def to_dense(self) -> jax.Array:
        """H as a matrix [d, d], which is the mixture of the clients' dense matrices."""
        count = self.weights.shape[0]
        each = [pick(self.fishers, i).to_dense() for i in range(count)]
        return jnp.tensordot(self.weights, jnp.stack(each), axes=1)

    def spectral(self, function: Spectral, cutoff: float | None = None) -> Callable[[PyTree], PyTree]:
        """The spectrum of the sum, where the structure's arrays add up.

        Raises:
            TypeError: the arrays do not add up: eigenvalues of such a sum are known from its dense matrix alone.
        """
        if not self.fishers.additive:
            raise TypeError(
                f"curvature: got a sum of {self.fishers.name} Fishers, whose spectrum is not known, "
                "expected arrays that add up"
            )
        return self._mean(self.fishers).spectral(function, cutoff)

    def nearest(self) -> Any:
        """One Fisher near H whose spectrum is cheap, or None: see `Structure.nearest_sum`."""
        return self.fishers.nearest_sum(self.weights)

    def _mean(self, stacked: PyTree) -> PyTree:
        return weighted_sum(self.weights, stacked)
