"""The Fisher structures by their names; `register` adds a user's own."""

from typing import Any, TypeVar

from ._class_moments import ClassMoments
from ._diagonal import Diagonal
from ._full import Full
from ._gradient import Gradient, Quadratic
from ._gram import Gram
from ._kronecker import Kronecker
from ._low_rank import LowRank
from ._moments import Moments, NoisyMoments
from ._protocol import Statistic, Structure

STRUCTURES: dict[str, type[Structure]] = {
    structure.name: structure for structure in (Diagonal, Full, Kronecker, Gram, LowRank)
}
OTHERS: dict[str, type[Statistic]] = {  # no Fisher, but in payloads
    one.name: one for one in (Moments, NoisyMoments, ClassMoments, Gradient, Quadratic)
}
T = TypeVar("T", bound=type[Structure])


def register(structure: T) -> T:
    """Make a structure known by its name to estimates, files, compression, noise and attacks; a class decorator.

    Args:
        structure: a frozen dataclass, registered as a pytree, that inherits from `Structure`.

    Raises:
        ValueError: another structure has its name.

    Example:
        >>> import dataclasses
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> @ff.curvature.register
        ... @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class Isotropic(ff.Diagonal):
        ...     name = "isotropic"
        ...
        ...     @classmethod
        ...     def from_sums(cls, mean, inputs, captured, params):
        ...         exact = ff.Diagonal.from_sums(mean, inputs, captured, params).values
        ...         return cls(jax.tree.map(lambda v: jnp.full_like(v, v.mean()), exact))
        >>> x = jnp.asarray([[1.0, 0.0], [0.0, 2.0]])
        >>> f = ff.fisher(lambda w, x: x @ w, ff.gaussian(), jnp.zeros((2, 1)), ff.examples(x), structure="isotropic")
        >>> f.values.ravel().tolist()
        [1.25, 1.25]
    """
    taken = OTHERS.get(structure.name) or STRUCTURES.setdefault(structure.name, structure)
    if taken is not structure:
        raise ValueError(f"name: got {structure.name!r}, which is that of {taken.__name__}, expected another one")
    return structure


def by_name(name: str) -> type[Structure]:
    """Look up a structure by its name.

    Raises:
        ValueError: there is none; the known ones are named.
    """
    if name not in STRUCTURES:
        raise ValueError(f"structure: got {name!r}, expected one of {', '.join(STRUCTURES)}")
    return STRUCTURES[name]


def is_known(fisher: Any) -> bool:
    """Tell whether a Fisher's structure is registered."""
    return STRUCTURES.get(getattr(type(fisher), "name", "")) is type(fisher)


def statistics() -> dict[str, type[Statistic]]:
    """List by name all that files may hold beside parameters: every Fisher structure, moments, gradients."""
    return STRUCTURES | OTHERS


def require_known(fisher: Any) -> Structure:
    """Return the Fisher itself, if its structure is registered.

    Raises:
        ValueError: it is not.
    """
    if not is_known(fisher):
        raise ValueError(f"fisher: got {type(fisher).__name__}, expected one of {', '.join(STRUCTURES)}")
    return fisher
