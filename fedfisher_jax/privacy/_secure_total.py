"""What the server of a secure sum makes of all letters: the sum, as a region of these silos would hold it."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .._trees import named_leaves
from ..curvature.structures._moments import NoisyMoments
from ..merge import Rule
from ..merge._exact_sums import Sums
from ..merge._one_by_one import contribution_shape
from ..payload import Header, PayloadError
from ..payload import _region as region
from . import _fixed_point as fixed_point
from . import _integer_noise as integer_noise
from ._agreement import Round
from ._example_promise import Promise, spent
from ._secure_client import Revealed
from ._secure_letters import Announced
from ._secure_merge import resolution, shaped
from ._secure_server import unmask

PyTree = Any


class Total(NamedTuple):
    """The sum of those who stayed."""

    sums: Sums
    shape: PyTree
    examples: float | None  # of all, where the sum tells
    largest_step: float  # by which its numbers are rounded
    every_example: dict[str, Any] | None  # what is promised about every example in it, and the noise


class Terms(NamedTuple):
    """What a sum is of."""

    rule: Rule
    header: Header  # of any silo's payload
    like: PyTree  # the model
    start: PyTree  # what silos were sent

    @property
    def shape(self) -> PyTree:
        """Shapes and types of a silo's contribution."""
        sent = region.payload_shape(self.header, self.like)._replace(kind=None)
        return contribution_shape(self.rule, sent, self.start)


def total_of(
    terms: Terms,
    agreed: Round,
    announced: Mapping[int, Announced],
    masked: Mapping[int, np.ndarray],
    revealed: Mapping[int, Revealed],
) -> Total:
    """Unmask the sum, and check it as a region's sum is checked.

    Args:
        terms: what is summed.
        agreed: what the silos agreed on.
        announced: by the numbers of all silos that joined.
        masked: by the numbers of those who stayed.
        revealed: by the numbers of those who answered.

    Raises:
        RoundVoid: too few stayed.
        ValueError: letters that contradict each other, or a sum that is none.
    """
    shape, said = terms.shape, [one.scales for one in announced.values()]
    keys = {number: one.keys for number, one in announced.items()}
    bits, owed = resolution(said, len(keys), shape), integer_noise.owed(terms.header)
    share = None if owed is None else integer_noise.share_of(owed, said, len(keys), shape)
    if {len(words) for words in masked.values()} != {len(bits)}:
        raise PayloadError(f"files: masked numbers are not as many as {terms.rule.name} adds, {len(bits)}")
    summed = shaped(fixed_point.decode(unmask(agreed, keys, masked, revealed), bits), shape)
    kept = None
    if share is not None and owed is not None:
        summed, shape = (integer_noise.told(tree, share, len(masked)) for tree in (summed, shape))
        kept = _kept(owed, summed["moments"], len(masked))
    sums, examples = _sums(summed, shape, terms.header)
    return Total(sums, shape, examples, float(np.ldexp(1.0, -int(bits.min()))), kept)


def _kept(owed: Promise, moments: NoisyMoments, silos: int) -> dict[str, Any]:
    multiplier = owed.noise_multiplier * math.sqrt(silos / owed.sharers)
    stds = np.sqrt(moments.variances)
    return {
        **{name: getattr(owed, name) for name in ("epsilon", "delta", "releases", "unit", "sharers")},
        "silos_with_noise": silos,
        "epsilon_if_all_keep_theirs": spent([multiplier] * owed.releases, owed.delta),
        "noise": {name: float(std) for name, std in zip(integer_noise.NAMES, stds, strict=True)},
    }


def _sums(summed: Any, shape: Any, header: Header) -> tuple[Sums, float | None]:
    """The sum that a region of these silos would hold, and the examples of all where it tells."""
    arrays = {}
    for name, leaf in named_leaves(summed):
        arrays |= {f"high/{name}": leaf, f"low/{name}": np.zeros(leaf.shape)}
    examples = float(arrays["high/weight"]) if "high/weight" in arrays else None
    if examples is not None and not (examples >= 1 and examples == int(examples)):
        raise ValueError(f"sum: got {examples} examples, expected a whole number")
    try:
        return region.sums_of(arrays, shape, header, int(examples or 0)), examples
    except np.linalg.LinAlgError as error:
        raise ValueError(f"sum: {error}") from error
