"""Moments of each class's inputs beside a Fisher: what training at the server on draws of them needs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax

from .._layers import MAX_SIZE
from .._leaves import Leaf
from ._kronecker import Kronecker
from ._moments import example_from_json, example_to_json, is_one_array
from ._protocol import Statistic, require_static, shaped
from ._signs import Sign


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassMoments(Statistic):
    """A client's Fisher, and moments of the coefficients u [K] of its inputs as means over all of its examples.

    Attributes:
        fisher: Kronecker factors at the client's model.
        share: [C], each class's share of the examples.
        first: [C, K], u where the class is c, else 0.
        second: [C, K, K], the same of uuᵀ.
        bounds: [2], the smallest and the largest input.
        example: static; shape and type of one example.
    """

    name: ClassVar[str] = "class-moments"
    signs: ClassVar[Mapping[str, Sign]] = {
        **Kronecker.signs,
        "share": "nonnegative",
        "first": "any",
        "second": "semidefinite",
        "bounds": "any",
    }
    additive: ClassVar[bool] = False

    fisher: Kronecker
    share: Any
    first: Any
    second: Any
    bounds: Any
    example: tuple[tuple[int, ...], str] = dataclasses.field(metadata={"static": True})

    @property
    def layers(self) -> tuple[Any, ...]:
        """The Fisher's layers."""
        return self.fisher.layers

    def names(self, leaves: Sequence[Leaf]) -> tuple[str, ...]:
        """The Fisher's arrays, and the four of the inputs."""
        return (*self.fisher.names(leaves), "share", "first", "second", "bounds")

    def static(self) -> dict[str, Any]:
        """The Fisher's layers and what the moments are of, as JSON."""
        classes, coefficients = (int(size) for size in self.first.shape[-2:])
        sizes = {"classes": classes, "coefficients": coefficients}
        return {**self.fisher.static(), **sizes, "example": example_to_json(self.example)}

    @classmethod
    def outline(cls, static: Any, leaves: Sequence[Leaf], treedef: Any) -> "ClassMoments":
        """The outline of a Fisher beside as many classes and coefficients as are announced."""
        require_static(static, {"layers", "classes", "coefficients", "example"}, cls.name)
        sizes = static["classes"], static["coefficients"]
        for size in sizes:
            if type(size) is not int or not 0 < size < MAX_SIZE:
                raise ValueError(f"classes, coefficients: got {str(size)[:40]!r}, expected numbers from 1")
        classes, width = sizes
        arrays = shaped(classes), shaped(classes, width), shaped(classes, width, width), shaped(2)
        fisher = Kronecker.outline({"layers": static["layers"]}, leaves, treedef)
        example = example_from_json(static["example"])
        if not is_one_array(example):
            raise ValueError(f"example: got {str(example)[:80]}, expected one array's shape and type")
        return cls(fisher, *arrays, example)
