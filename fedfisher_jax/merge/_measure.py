"""The measure of most rules: parameters and one Fisher; and which options a rule hands on to what it measures with."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from .._doors import require_examples, require_known
from .._examples import Examples
from .._likelihood import Likelihood
from ..curvature import Capture, Estimate, Subspace, fisher
from ..curvature.structures._registry import by_name
from ._rule import Kind, Payload, Takes, Update, require_start, weight_of

AT_START = " at start"  # of a Fisher of the model that was sent, not of the trained one
ALL_INPUTS = "inputs of all layers"  # of a Gram


@dataclasses.dataclass(frozen=True)
class MeasureFisher:
    """The usual `measure`: parameters, number of examples and, unless `structure` is None, one Fisher.

    Two rules whose measures are equal share one pass over the data.
    """

    apply: Callable
    likelihood: Likelihood
    structure: str | None
    kind: str = "exact"
    samples: int = 1
    batch_size: int | None = None  # as many examples at once as `fishers` finds room for
    skip: float = 0.0
    captured: Capture | None = None
    subspace: Subspace = Subspace()  # of "low_rank"
    at: Literal["params", "start"] = "params"  # the model whose Fisher it is

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Payload:
        """One client's payload."""
        require_examples(data)
        weight = weight_of(data)
        if self.structure is None:
            return Payload(weight, update.params)
        place = "" if self.at == "params" else AT_START
        kind = Kind(ALL_INPUTS if self.structure == "gram" else self.kind + place)
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(Estimate)}
        model = update.params if self.at == "params" else require_start(update.start)
        measured = fisher(self.apply, self.likelihood, model, data, structure=self.structure, key=key, **options)
        return Payload(weight, update.params, measured, kind)

    def takes(self) -> Takes:
        """What a rule can merge that reads this measure's Fisher: exact or drawn, one estimates the other."""
        kinds = ("exact", "monte_carlo") if self.kind in ("exact", "monte_carlo") else (self.kind,)
        place = "" if self.at == "params" else AT_START
        return Takes((by_name(str(self.structure)),), tuple(kind + place for kind in kinds))


def require_options(options: Mapping[str, Any], rule: Callable, measure: type, *taken: str) -> None:
    """Refuse options that neither a rule's constructor nor what it measures with has.

    Args:
        options: what the constructor was given beside its own arguments.
        rule: the constructor.
        measure: the dataclass that the options are for.
        taken: names of options that the rule itself decides.

    Raises:
        TypeError: an unknown option; the known ones are named.
    """
    own = {name for name, given in inspect.signature(rule).parameters.items() if given.kind is given.KEYWORD_ONLY}
    passed = {field.name for field in dataclasses.fields(measure) if field.default is not dataclasses.MISSING}
    known = sorted((own | passed) - set(taken))
    require_known(options, known)
