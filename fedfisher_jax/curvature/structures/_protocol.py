"""What every Fisher structure offers: an algebra, named arrays, a spectrum and how it is estimated."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from ..._trees import from_numbered, wide
from .._layers import Layer
from .._leaves import Leaf
from .._pull_back import Capture, Pulled
from ._signs import Sign

PyTree = Any
Blocks = tuple[tuple[int, ...], ...]
Spectral = Callable[[jax.Array, Any, int], Any]  # (eigenvalues, size of their rounding errors, block) → new eigenvalues


@runtime_checkable
class Fisher(Protocol):
    """The algebra of a Fisher; v and the result of `matvec` are trees like the parameters."""

    @abc.abstractmethod
    def matvec(self, v: PyTree) -> PyTree:
        """F times a tree v like the parameters."""
        ...

    @abc.abstractmethod
    def diagonal(self) -> PyTree:
        """The diagonal of F as a tree like the parameters."""
        ...

    @abc.abstractmethod
    def scale(self, factor: Any) -> "Fisher":
        """F times a factor."""
        ...

    @abc.abstractmethod
    def blocks(self) -> Blocks:
        """Numbers of the parameter leaves that F couples with each other; F is block-diagonal between them."""
        ...

    @abc.abstractmethod
    def to_dense(self) -> jax.Array:
        """F as [d, d] in the order of `ravel_pytree`, for small models."""
        ...

    @abc.abstractmethod
    def spectral(self, function: Spectral, cutoff: float | None = None) -> Callable[[PyTree], PyTree]:
        """The map v → f(F) v: every eigenvalue replaced, the eigenvectors kept. F is decomposed once, here.

        Args:
            function: (eigenvalues of a block, below which size they are rounding errors, the block's number in
                `blocks()`) → what to put in their place, elementwise. Eigenvalues are not negative.
            cutoff: eigenvalues of a decomposed matrix count as rounding errors below this multiple of its largest; by
                default n times the relative precision of its numbers, for [n, n]. Stored eigenvalues have no errors.
        """
        ...


class Statistic(abc.ABC):
    """Named arrays that clients measure and files hold: to be inherited by frozen dataclasses that are pytrees.

    The arrays are the pytree's leaves, which `names` names, so whoever stores or changes arrays needs to know no more.
    """

    name: ClassVar[str]
    signs: ClassVar[Mapping[str, Sign]]  # first part of an array's name → what its entries may be
    additive: ClassVar[bool]  # whether clients' statistics add up array by array
    alone: ClassVar[bool] = False  # whether payloads hold it without parameters; it then has `leaves`, the model's

    @abc.abstractmethod
    def names(self, leaves: Sequence[Leaf]) -> tuple[str, ...]:
        """The names of the arrays in the order of the pytree's leaves: "kind" or "kind/path of a parameter"."""
        ...

    def static(self) -> dict[str, Any]:
        """What the structure is beside its arrays, as JSON."""
        return {}

    @classmethod
    @abc.abstractmethod
    def outline(cls, static: Any, leaves: Sequence[Leaf], treedef: Any) -> Any:
        """The structure with `jax.ShapeDtypeStruct` in the place of arrays: all that a file has to agree with.

        Args:
            static: what `static` gave, or anything: it may come from a file that nobody vouches for.
            leaves: the parameters' leaves.
            treedef: the structure of the parameters' tree.

        Raises:
            ValueError: `static` does not fit the parameters; why.
        """
        ...


class Structure(Fisher, Statistic):
    """What a Fisher structure offers to estimates, files, noise and attacks: to be inherited by frozen dataclasses.

    It is additive where F is linear in its arrays. `registry.register` makes it known by its name everywhere.
    """

    reads: ClassVar[Literal["layers", "gradients"]] = "layers"  # what `sums` is given

    @classmethod
    def require(cls, params: PyTree) -> None:
        """Refuse to estimate this structure for these parameters, by a ValueError, before any work."""
        del params

    @classmethod
    def sums(cls, pulled: Pulled) -> PyTree:
        """What a batch of n examples adds to the estimate, as sums over its examples and output cotangents.

        Args:
            pulled: what was pulled back, with two leading axes [n, K] (activations: [n]), zero where an example is
                padding. Where `reads` is "layers": the captured layers' activations and output gradients, and the
                gradients of the other leaves; where it is "gradients": the gradients of all leaves, [n, K, *leaf] each,
                as `pulled.leaves`.
        """
        raise NotImplementedError(f"{cls.__name__}: has no sums over batches")

    @classmethod
    def input_sums(cls, activations: Sequence[Any]) -> PyTree:
        """What a batch adds that depends on activations alone, [n, (groups,) T, inputs] of each captured layer.

        A table's are a `Lookup`, and other kinds of layers have their own; `input_moment` takes any.

        It is asked of structures that read layers.
        """
        del activations
        return ()

    @classmethod
    def from_sums(cls, mean: PyTree, inputs: PyTree, captured: Capture, params: PyTree) -> Any:
        """The structure from the means over examples of `sums` and `input_sums`."""
        raise NotImplementedError(f"{cls.__name__}: has no sums over batches")

    def nearest_sum(self, weights: Any, floor: float = 0.01) -> Any:
        """One Fisher near Σ_i w_i F_i of these Fishers, stacked on a leading axis, whose spectrum is cheap.

        Solvers are preconditioned with it. None, the default, means that the sum's diagonal is the best that is known.
        Without a floor, the nearest of several groups' nearest is that of all clients: so it is found a few at a time.

        Args:
            weights: [M], the w_i.
            floor: how much is added to the diagonal, relative to its mean, for directions that the nearest one lacks.
        """
        del weights, floor

    def balanced(self) -> Any:
        """The same F in arrays whose norms do not depend on how F is written: these are clipped before noise."""
        return self

    def preconditioner(self, damping: float) -> Callable[[PyTree], PyTree]:
        """The map v → (F + ε)⁻¹ v, ε being `damping` times the mean diagonal entry of F, of the blocks that it knows.

        Blocks where F is zero, of which it knows nothing, give zero. A structure of factors may damp each on its own.
        """
        means, leaves = jnp.stack(mean_diagonals(self)), jax.tree.leaves(self.diagonal())
        sizes = jnp.array([sum(leaves[n].size for n in block) for block in self.blocks()], means.dtype)
        known = means > 0
        floor = damping * jnp.sum(sizes * means) / jnp.maximum(jnp.sum(jnp.where(known, sizes, 0)), 1)
        return damped_inverse(self, jnp.where(known, jnp.maximum(floor, jnp.finfo(floor.dtype).tiny), 0))

    def moment(self, layer: Layer, side: int) -> jax.Array:
        """A layer's block summed over its outputs (side 0: [inputs, inputs]) or over its inputs (side 1).

        This is the second moment of its inputs, or of its output gradients, in some weights. This slow general form
        takes a product with F for every parameter of the layer.

        Raises:
            ValueError: the structure has no such moment.
        """
        zeros = [jnp.zeros_like(leaf) for leaf in jax.tree.leaves(self.diagonal())]
        treedef = jax.tree.structure(self.diagonal())

        def column(number: jax.Array) -> jax.Array:
            unit = jnp.zeros(layer.matrix_shape, zeros[layer.weight].dtype).ravel().at[number].set(1)
            leaves = dict(enumerate(zeros)) | layer.from_matrix(unit.reshape(layer.matrix_shape))
            product = self.matvec(from_numbered(treedef, leaves))
            rows, columns = layer.matrix_shape
            matrix = layer.to_matrix(jax.tree.leaves(product))
            return matrix[:, number % columns] if side == 0 else matrix[number // columns]

        shape = layer.matrix_shape
        found = jax.lax.map(column, jnp.arange(shape[0] * shape[1]), batch_size=64).reshape(*shape, -1)
        return jnp.sum(found, axis=1 - side)


def named(fisher: Statistic, leaves: Sequence[Leaf]) -> dict[str, Any]:
    """Give a structure's arrays by their names."""
    return dict(zip(fisher.names(leaves), jax.tree.leaves(fisher), strict=True))


def with_arrays(fisher: Any, arrays: Sequence[Any]) -> Any:
    """Put other arrays in the place of a structure's (or of its outline's) own, in the order of `names`."""
    return jax.tree.unflatten(jax.tree.structure(fisher), arrays)


def sign_of(structure: type[Statistic], name: str) -> Sign:
    """Tell what the entries of an array of this name may be."""
    return structure.signs[name.split("/")[0]]


def shaped(*shape: int) -> jax.ShapeDtypeStruct:
    """Stand for an array in an outline; its type says nothing."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def require_static(static: Any, keys: set[str], name: str) -> None:
    """Refuse static JSON that has not these keys.

    Raises:
        ValueError: it is no object, lacks a key or has another one.
    """
    if not isinstance(static, Mapping) or set(static) != keys:
        raise ValueError(
            f"static: got {str(static)[:80]!r}, expected {', '.join(sorted(keys)) or 'nothing'} for {name}"
        )


def quadratic(fisher: Fisher, v: PyTree) -> jax.Array:
    """Compute vᵀ F v, a scalar, for a tree v like the parameters."""
    return jnp.asarray(optax.tree.vdot(v, fisher.matvec(v)))


def trace(fisher: Fisher) -> jax.Array:
    """Compute the trace of F, a scalar."""
    return jnp.asarray(optax.tree.sum(fisher.diagonal()))


def num_bytes(fisher: Fisher) -> int:
    """Count the bytes of the arrays that represent F."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(fisher))


def mean_diagonals(fisher: Fisher) -> list[jax.Array]:
    """Compute the mean diagonal entry of each of F's blocks; zero of a block without entries."""
    leaves = jax.tree.leaves(fisher.diagonal())
    sums = [sum(jnp.sum(leaves[leaf]) for leaf in block) for block in fisher.blocks()]
    sizes = [sum(leaves[leaf].size for leaf in block) for block in fisher.blocks()]
    return [jnp.asarray(total / max(size, 1)) for total, size in zip(sums, sizes, strict=True)]


def damped_inverse(fisher: Fisher, shifts: Any) -> Callable[[PyTree], PyTree]:
    """Make the map v → (F + λ)⁻¹ v, which is exact.

    Args:
        fisher: the Fisher F.
        shifts: [blocks], the λ of each of F's `blocks()`, not negative. Where it is zero the pseudo-inverse is taken.
    """

    def invert(values: jax.Array, noise: Any, block: int) -> jax.Array:
        shift = jnp.asarray(shifts[block], values.dtype)
        kept = values > jnp.where(shift > 0, -1, noise)
        return jnp.where(kept, 1 / jnp.where(kept, values + shift, 1), 0)

    return fisher.spectral(invert)


def eigenpairs(matrix: jax.Array, cutoff: float | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Eigenvalues [..., n], not negative, eigenvectors, and the size [..., 1] of the eigenvalues' rounding errors."""
    # Near one, since LAPACK's steps depend on the size of numbers; a power of two rounds nothing.
    unit = power_near(jnp.trace(matrix, axis1=-2, axis2=-1))
    values, vectors = jnp.linalg.eigh(unit[..., None, None] * matrix)
    values = values / unit[..., None]
    relative = values.shape[-1] * jnp.finfo(values.dtype).eps if cutoff is None else cutoff
    return jnp.maximum(values, 0), vectors, jnp.maximum(relative * values[..., -1:], 0)


def power_near(size: jax.Array) -> jax.Array:
    """Choose the power of two that brings a positive size near one; 1 for zero."""
    most = 3 * jnp.finfo(size.dtype).maxexp // 4
    near = size.astype(wide(size.dtype))
    exponent = jnp.clip(jnp.frexp(near)[1], -most, most)
    return jnp.where(size > 0, jnp.ldexp(jnp.ones_like(near), -exponent), 1).astype(size.dtype)
