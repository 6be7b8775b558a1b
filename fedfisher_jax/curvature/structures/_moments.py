"""Second moments of activations and their products with targets: all that least squares on them needs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax

from .._layers import MAX_AXES, MAX_SIZE
from .._leaves import Leaf
from ._protocol import Statistic, require_static, shaped
from ._signs import Sign

KEYS = {"features", "constant", "outputs", "example"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments(Statistic):
    """Means over examples of φφᵀ, φyᵀ and y, for activations φ [D] of a model that all clients have, and targets y [C].

    They were measured at the model that was sent, so a payload holds them without parameters. Weighted by numbers of
    examples they add up to those of the pooled data, however these are split (AFL, arXiv 2405.16240).

    Attributes:
        second: [D, D], φφᵀ.
        cross: [D, C], φyᵀ.
        totals: [C], y: for classes, the share of each.
        features: static; pairs of a weight's leaf number and how many inputs of its layer are among φ, one after the
            other.
        constant: static; whether a last feature is constantly one.
        example: static; see `example_of`.
        leaves: static; the model's parameters.
    """

    name: ClassVar[str] = "moments"
    signs: ClassVar[Mapping[str, Sign]] = {"second": "semidefinite", "cross": "any", "totals": "any"}
    additive: ClassVar[bool] = True
    alone: ClassVar[bool] = True

    second: Any
    cross: Any
    totals: Any
    features: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})
    constant: bool = dataclasses.field(metadata={"static": True})
    example: tuple = dataclasses.field(metadata={"static": True})
    leaves: tuple[Leaf, ...] = dataclasses.field(metadata={"static": True})

    def names(self, leaves: Sequence[Leaf]) -> tuple[str, ...]:
        """The three arrays."""
        del leaves
        return ("second", "cross", "totals")

    def static(self) -> dict[str, Any]:
        """Which activations these are, as JSON."""
        return {
            "features": [[int(leaf), int(units)] for leaf, units in self.features],
            "constant": self.constant,
            "outputs": int(self.totals.shape[-1]),
            "example": example_to_json(self.example),
        }

    @classmethod
    def outline(cls, static: Any, leaves: Sequence[Leaf], treedef: Any) -> "Moments":
        """The outline of as many features as are announced."""
        del treedef
        require_static(static, KEYS, cls.name)
        features, constant, outputs = (static[key] for key in ("features", "constant", "outputs"))
        pairs = isinstance(features, list) and all(isinstance(p, list) and len(p) == 2 for p in features)
        if not pairs or not 1 <= len(features) <= len(leaves):
            raise ValueError("features: expected pairs of a parameter's number and a number of inputs, at least one")
        for leaf, units in features:
            if type(leaf) is not int or not 0 <= leaf < len(leaves):
                raise ValueError(f"features: got {str(leaf)[:40]!r}, expected a number from 0 to {len(leaves) - 1}")
            if not _is_size(units) or units > leaves[leaf].size:
                raise ValueError(f"features: got {str(units)[:40]!r} inputs, expected 1 to {leaves[leaf].size}")
        if type(constant) is not bool or not _is_size(outputs):
            raise ValueError("constant, outputs: expected a truth value and a number from 1")
        width = sum(units for _, units in features) + constant
        arrays = shaped(width, width), shaped(width, outputs), shaped(outputs)
        kept = tuple((leaf, units) for leaf, units in features)
        return cls(*arrays, kept, constant, example_from_json(static["example"]), tuple(leaves))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoisyMoments(Moments):
    """`Moments` with Gaussian noise, by which examples are hidden; `second` stays symmetric and may be indefinite.

    Attributes:
        variances: [3], of the noise in the sums over examples of `second`, `cross` and `totals`, each divided by the
            number of examples: weighted by numbers of examples they add up to the variances in the sum of all clients.
            An entry of `cross` or `totals` has that variance, `second` has it on its diagonal and half of it elsewhere.
    """

    name: ClassVar[str] = "noisy-moments"
    signs: ClassVar[Mapping[str, Sign]] = {
        "second": "any",
        "cross": "any",
        "totals": "any",
        "variances": "nonnegative",
    }

    variances: Any

    def names(self, leaves: Sequence[Leaf]) -> tuple[str, ...]:
        """The four arrays."""
        del leaves
        return ("second", "cross", "totals", "variances")

    @classmethod
    def outline(cls, static: Any, leaves: Sequence[Leaf], treedef: Any) -> "NoisyMoments":
        """The outline of as many features as are announced."""
        return cls(**vars(Moments.outline(static, leaves, treedef)), variances=shaped(3))


TYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float64", "float32", "float16", "bfloat16")


def example_of(x: Any) -> tuple:
    """Tell shape and type of one example of inputs x [n, ...]; of a dictionary or a tuple of such, (key, these) pairs.

    Raises:
        ValueError: another tree of inputs.
    """
    if isinstance(x, Mapping):
        return tuple((name, example_of(x[name])) for name in sorted(x))
    if isinstance(x, tuple):
        return tuple(enumerate(map(example_of, x)))
    if not hasattr(x, "dtype"):
        raise ValueError(f"data: got inputs of type {type(x).__name__}, expected arrays, in a dictionary or a tuple")
    return tuple(x.shape[1:]), x.dtype.name


def inputs_like(example: tuple) -> Any:
    """Make the outline of inputs of one example, from what `example_of` tells."""
    if is_one_array(example):
        shape, dtype = example
        return jax.ShapeDtypeStruct((1, *shape), dtype)
    by_key = {key: inputs_like(each) for key, each in example}
    return tuple(by_key.values()) if 0 in by_key else by_key


def is_one_array(example: tuple) -> bool:
    """Whether `example_of` told of one array, not of several."""
    return len(example) == 2 and isinstance(example[1], str)


def example_to_json(example: tuple) -> list[Any]:
    """Write what `example_of` tells as JSON."""
    if is_one_array(example):
        return [[int(size) for size in example[0]], example[1]]
    return [[key, example_to_json(each)] for key, each in example]


def example_from_json(value: Any) -> tuple:
    """Read what `example_to_json` wrote, from a file that nobody vouches for.

    Raises:
        ValueError: it is no such thing.
    """
    if isinstance(value, list) and value and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        keys = [key for key, _ in value]
        if keys == list(range(len(keys))) or (all(type(key) is str for key in keys) and keys == sorted(set(keys))):
            return tuple((key, example_from_json(each)) for key, each in value)
    good = isinstance(value, list) and len(value) == 2 and isinstance(value[0], list)
    if not good or len(value[0]) > MAX_AXES or not all(map(_is_size, value[0])) or value[1] not in TYPES:
        raise ValueError(f"example: got {str(value)[:80]}, expected a shape and a type of numbers")
    return tuple(value[0]), value[1]


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 < number < MAX_SIZE
