"""Low-rank Fisher information across parameters, and many of them as one (arXiv 2601.13608)."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..._doors import require_weights
from .._leaves import Leaf
from ._protocol import Blocks, Spectral, Structure, require_static, shaped
from ._signs import Sign

PyTree = Any
MAX_RANK = 4096  # of files


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank(Structure):
    """Σ_j values_j u_j u_jᵀ with orthonormal u_j over some leaves of the parameters; zero on the others.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> params = {"w": jnp.asarray([5.0, 7.0])}
        >>> f = ff.LowRank(jnp.asarray([2.0]), {0: jnp.asarray([[1.0, 0.0]])}, ((2,),), jax.tree.structure(params))
        >>> f.matvec(params)["w"].tolist()
        [10.0, 0.0]
    """

    name: ClassVar[str] = "low_rank"
    signs: ClassVar[Mapping[str, Sign]] = {"values": "nonnegative", "vectors": "any"}
    additive: ClassVar[bool] = False

    values: Any  # [r], descending, not negative
    vectors: dict[int, Any]  # leaf number → [r, *leaf]
    shapes: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})  # of all leaves
    treedef: Any = dataclasses.field(metadata={"static": True})

    def matvec(self, v: PyTree) -> PyTree:
        """F v, by two products with the vectors."""
        leaves = jax.tree.leaves(v)
        products = [dot(u, leaves[leaf].astype(u.dtype)) for leaf, u in self.vectors.items()]
        along = self.values * sum(products, jnp.zeros_like(self.values))
        result = [jnp.zeros_like(leaf) for leaf in leaves]
        for leaf, u in self.vectors.items():
            result[leaf] = jnp.tensordot(along, u, axes=1).astype(leaves[leaf].dtype)
        return jax.tree.unflatten(self.treedef, result)

    def diagonal(self) -> PyTree:
        """The diagonal of F, Σ_j values_j u_j²."""
        result = [jnp.zeros(shape, self.values.dtype) for shape in self.shapes]
        for leaf, u in self.vectors.items():
            result[leaf] = jnp.tensordot(self.values, u**2, axes=1)
        return jax.tree.unflatten(self.treedef, result)

    def scale(self, factor: Any) -> "LowRank":
        """F times a factor."""
        return dataclasses.replace(self, values=factor * self.values)

    def blocks(self) -> Blocks:
        """The leaves that the vectors cover are one block; every other leaf is one alone."""
        others = (leaf for leaf in range(len(self.shapes)) if leaf not in self.vectors)
        return (tuple(sorted(self.vectors)), *((leaf,) for leaf in others))

    def to_dense(self) -> jax.Array:
        """F as a matrix [d, d] in the order of `ravel_pytree`."""
        zeros = [jnp.zeros((self.values.size, math.prod(shape)), self.values.dtype) for shape in self.shapes]
        for leaf, u in self.vectors.items():
            zeros[leaf] = u.reshape(self.values.size, -1)
        rows = jnp.concatenate(zeros, axis=1)
        return rows.T @ (self.values[:, None] * rows)

    def spectral(self, function: Spectral, cutoff: float | None = None) -> Callable[[PyTree], PyTree]:
        """Apply the function to the eigenvalues in the vectors' span, and to zero outside of it."""
        del cutoff
        zero = jnp.zeros((), self.values.dtype)
        others = [leaf for leaf in range(len(self.shapes)) if leaf not in self.vectors]
        outside = dict.fromkeys(self.vectors, function(zero, 0, 0))
        inside = function(self.values, 0, 0) - function(zero, 0, 0)
        outside |= {leaf: function(zero, 0, number) for number, leaf in enumerate(others, start=1)}

        def apply(v: PyTree) -> PyTree:
            along = dataclasses.replace(self, values=inside).matvec(v)
            leaves = enumerate(jax.tree.leaves(v))
            around = [(outside[n] * leaf.astype(zero.dtype)).astype(leaf.dtype) for n, leaf in leaves]
            return jax.tree.map(jnp.add, along, jax.tree.unflatten(self.treedef, around))

        return apply

    def names(self, leaves: Sequence[Leaf]) -> tuple[str, ...]:
        """The names of the eigenvalues and of the vectors' parts in each leaf that they cover."""
        return "values", *(f"vectors/{leaves[leaf].path}" for leaf in sorted(self.vectors))

    def static(self) -> dict[str, Any]:
        """The rank and the numbers of the leaves that the vectors cover."""
        return {"rank": int(self.values.shape[0]), "covered": sorted(map(int, self.vectors))}

    @classmethod
    def outline(cls, static: Any, leaves: Sequence[Leaf], treedef: Any) -> "LowRank":
        """The outline of eigenvalues, and of a part of every vector for each covered leaf."""
        require_static(static, {"rank", "covered"}, cls.name)
        rank, covered = static["rank"], static["covered"]
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            raise ValueError(f"rank: got {str(rank)[:40]!r}, expected 1 to {MAX_RANK}")
        numbers = isinstance(covered, list) and all(type(n) is int and 0 <= n < len(leaves) for n in covered)
        if not numbers or not covered or covered != sorted(set(covered)):
            raise ValueError(
                f"covered: got {str(covered)[:40]!r}, expected numbers of parameters, at least one, in order"
            )
        vectors = {n: shaped(rank, *leaves[n].shape) for n in covered}
        return cls(shaped(rank), vectors, tuple(leaf.shape for leaf in leaves), treedef)

    @classmethod
    def estimate(cls, *args: Any, **options: Any) -> "LowRank":
        """Estimate by passes of its own over the data: `top_eigenpairs`, with its arguments."""
        from .._eigenpairs import top_eigenpairs  # which makes this structure

        return top_eigenpairs(*args, **options).fisher

    def moment(self, layer: Any, side: int) -> jax.Array:
        """The layer's moment, as a sum over the eigenvectors."""
        if any(leaf not in self.vectors for leaf in layer.leaves):
            raise ValueError(f"fisher: got vectors that do not cover leaf {layer.weight}, expected ones that do")
        stack = jax.vmap(lambda u: layer.to_matrix([u.get(n) for n in range(len(self.shapes))]))(self.vectors)
        return jnp.einsum("r,rio,rjo->ij" if side == 0 else "r,rio,rip->op", self.values, stack, stack)


class Recompressed(NamedTuple):
    """One low-rank matrix for many, and the trace of what was dropped, which is positive semi-definite.

    The dropped trace is an upper bound of the error in spectral norm.
    """

    fisher: LowRank
    dropped_trace: jax.Array


def recompress(fishers: LowRank, weights: Any, rank: int) -> Recompressed:
    """Compute Σ_i w_i F_i of stacked clients in their joint subspace, and keep its `rank` largest eigenpairs.

    With a = √(w λ) u as columns of A = Q R (a QR decomposition of the joint basis), Σ w F = Q R Rᵀ Qᵀ, and the singular
    values of R squared are its eigenvalues. It costs O(d · (M r)²); jit it.

    Args:
        fishers: the clients' Fishers with a leading client axis: values [M, r].
        weights: [M], not negative; not normalised here.
        rank: eigenpairs kept, at most; there are no more than min(d, M r).

    Raises:
        ValueError: a rank below 1, another number of weights, or weights that are negative or none of them positive.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> vectors = jnp.asarray([[[1.0, 0.0]], [[0.0, 1.0]]])  # two clients know one direction each
        >>> treedef = jax.tree.structure(0)
        >>> clients = ff.LowRank(jnp.asarray([[3.0], [1.0]]), {0: vectors}, ((2,),), treedef)
        >>> found = ff.curvature.recompress(clients, jnp.ones(2), rank=1)
        >>> print(f"{found.fisher.values[0]:.3f} kept, {found.dropped_trace:.3f} dropped")
        3.000 kept, 1.000 dropped
    """
    count = fishers.values.shape[0]
    if rank < 1:
        raise ValueError(f"rank: got {rank}, expected at least 1")
    if jnp.shape(weights) != (count,):
        raise ValueError(f"weights: got shape {jnp.shape(weights)}, expected ({count},), one for each client")
    require_weights(weights)
    dtype = fishers.values.dtype
    sizes = jnp.sqrt(jnp.asarray(weights, dtype)[:, None] * jnp.maximum(fishers.values, 0)).reshape(-1)
    covered = sorted(fishers.vectors)
    stacked = [fishers.vectors[leaf].reshape(sizes.size, -1) for leaf in covered]
    basis, triangle = jnp.linalg.qr((sizes[:, None] * jnp.concatenate(stacked, axis=1)).T)
    turns, roots, _ = jnp.linalg.svd(triangle, full_matrices=False)
    vectors = (basis @ turns[:, :rank]).T
    parts = dict(zip(covered, split(vectors, [fishers.shapes[leaf] for leaf in covered]), strict=True))
    kept = dataclasses.replace(fishers, values=roots[:rank] ** 2, vectors=parts)
    return Recompressed(kept, jnp.sum(roots[rank:] ** 2))


def dot(rows: jax.Array, one: jax.Array) -> jax.Array:
    """Multiply each of k rows [k, *shape] with one [*shape] and add up: [k]."""
    return jnp.tensordot(rows, one, axes=one.ndim)


def joined(parts: Sequence[jax.Array]) -> jax.Array:
    """Put leaves [k, *leaf] side by side: [k, d]."""
    return jnp.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1)


def split(rows: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Undo `joined`."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    pieces = jnp.split(rows, ends[:-1], axis=1)
    return [piece.reshape(rows.shape[0], *shape) for piece, shape in zip(pieces, shapes, strict=True)]
