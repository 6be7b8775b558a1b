"""What natural-gradient steps are made of, in payloads: a gradient with a Fisher, and a quadratic model along a few."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax

from .._layers import MAX_SIZE
from .._leaves import Leaf
from ._kronecker import Kronecker
from ._protocol import Statistic, require_static, shaped
from ._signs import Sign

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gradient(Statistic):
    """Means over examples of the loss and its gradient at the model that was sent, and a Fisher there.

    Weighted by numbers of examples all arrays add up to those of the pooled data, the Kronecker factors too, but for
    those of tied heads and of chosen experts, which are quotients of sums.

    Attributes:
        loss: [], in nats, or half the squared error.
        gradient: a tree like the parameters.
        fisher: Kronecker factors.
        leaves: static; the model's parameters.
    """

    name: ClassVar[str] = "gradient"
    signs: ClassVar[Mapping[str, Sign]] = {"loss": "any", "gradient": "any", **Kronecker.signs}
    additive: ClassVar[bool] = True
    alone: ClassVar[bool] = True

    loss: Any
    gradient: PyTree
    fisher: Kronecker
    leaves: tuple[Leaf, ...] = dataclasses.field(metadata={"static": True})

    @property
    def layers(self) -> tuple[Any, ...]:
        """The Fisher's layers."""
        return self.fisher.layers

    def names(self, leaves: Sequence[Leaf]) -> tuple[str, ...]:
        """The loss, the gradient by the parameters' paths, and the Fisher's arrays."""
        return ("loss", *(f"gradient/{leaf.path}" for leaf in leaves), *self.fisher.names(leaves))

    def static(self) -> dict[str, Any]:
        """The Fisher's layers as JSON."""
        return self.fisher.static()

    @classmethod
    def outline(cls, static: Any, leaves: Sequence[Leaf], treedef: Any) -> "Gradient":
        """The outline of a gradient like the parameters beside that of a Fisher."""
        fisher = Kronecker.outline(static, leaves, treedef)
        return cls(shaped(), treedef.unflatten([shaped(*leaf.shape) for leaf in leaves]), fisher, tuple(leaves))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quadratic(Statistic):
    """Means over examples of the loss's slopes gᵀd_k and curvatures d_kᵀFd_l along m directions that were sent.

    Attributes:
        slopes: [m].
        curvatures: [m, m].
        leaves: static; the model's parameters.
    """

    name: ClassVar[str] = "quadratic"
    signs: ClassVar[Mapping[str, Sign]] = {"slopes": "any", "curvatures": "semidefinite"}
    additive: ClassVar[bool] = True
    alone: ClassVar[bool] = True

    slopes: Any
    curvatures: Any
    leaves: tuple[Leaf, ...] = dataclasses.field(metadata={"static": True})

    def names(self, leaves: Sequence[Leaf]) -> tuple[str, ...]:
        """The two arrays."""
        del leaves
        return ("slopes", "curvatures")

    def static(self) -> dict[str, Any]:
        """How many directions there are, as JSON."""
        return {"directions": int(self.slopes.shape[-1])}

    @classmethod
    def outline(cls, static: Any, leaves: Sequence[Leaf], treedef: Any) -> "Quadratic":
        """The outline for as many directions as are announced."""
        del treedef
        require_static(static, {"directions"}, cls.name)
        count = static["directions"]
        if type(count) is not int or not 0 < count < MAX_SIZE:
            raise ValueError(f"directions: got {str(count)[:40]!r}, expected a number from 1")
        return cls(shaped(count), shaped(count, count), tuple(leaves))
