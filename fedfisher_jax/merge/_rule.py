"""What a merge rule is: measure at the client, fold the payloads, solve at the server."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from .._examples import Examples, widened
from .._likelihood import Likelihood
from ..curvature import Capture, Subspace, fisher

PyTree = Any


class Payload(NamedTuple):
    """What one client sends."""

    weight: Any  # its number of examples
    params: PyTree
    fisher: Any = None


class Merged(NamedTuple):
    """The global model, scalars that tell how the solve went, and, where a rule changes the network, its `apply`."""

    params: PyTree
    diagnostics: dict[str, Any]
    apply: Callable | None = None


class Rule(NamedTuple):
    """A merge rule as pure functions.

    `combine` says how contributions fold: "add" (leaf by leaf: sums, psum, secure sums) or "stack" (along a leading
    client axis). Both are associative and commutative, so payloads may come in any order and grouping.
    """

    name: str
    measure: Callable[[PyTree, Examples, jax.Array], Any]  # client: (params, data, key) → payload
    lift: Callable[[Any], Any]  # payload → the client's contribution to the fold
    solve: Callable[[Any], Merged]  # server: folded contributions → global model
    combine: Literal["add", "stack"]
    jit: bool = True  # False: `solve` works on the host (assignments, widths that depend on data), so do not compile it


class Update(NamedTuple):
    """What a round's local training leaves at a client, for a round rule to measure."""

    start: PyTree  # the server's model
    params: PyTree  # after training from it
    squares: PyTree  # of `local.Trained`, where the rule asks for it
    steps: Any  # of the local optimiser


class RoundRule(NamedTuple):
    """A rule for rounds: like `Rule`, but both sides know the model that the round began with."""

    name: str
    measure: Callable[[Update, Examples, jax.Array], Any]  # client
    lift: Callable[[Any], Any]
    solve: Callable[[Any, PyTree], Merged]  # server: (folded contributions, the round's start) → merged model
    combine: Literal["add", "stack"]
    jit: bool = True
    squares: bool = False  # whether `measure` reads the last epoch's squared gradients


@dataclasses.dataclass(frozen=True)
class MeasureEnd:
    """A one-shot rule's measure of the model that a round's training ends with."""

    measure: Callable[[PyTree, Examples, jax.Array], Any]

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Any:
        """One client's payload."""
        return self.measure(update.params, data, key)


def every_round(rule: Rule) -> RoundRule:
    """A one-shot rule, repeated."""
    measure, solve = MeasureEnd(rule.measure), lambda summary, start: rule.solve(summary)
    return RoundRule(rule.name, measure, rule.lift, solve, rule.combine, rule.jit)


@dataclasses.dataclass(frozen=True)
class Measure:
    """The usual `measure`: parameters, number of examples and, unless `structure` is None, one Fisher.

    Two rules whose measures are equal share one pass over the data.
    """

    apply: Callable
    likelihood: Likelihood
    structure: str | None
    kind: str = "exact"
    samples: int = 1
    batch_size: int = 32
    skip: float = 0.0
    captured: Capture | None = None
    subspace: Subspace = Subspace()  # of "low_rank"

    def __call__(self, params: PyTree, data: Examples, key: jax.Array) -> Payload:
        """One client's payload."""
        weight = jnp.asarray(data.size, jnp.result_type(float))
        if self.structure is None:
            return Payload(weight, params)
        names = ("structure", "kind", "samples", "batch_size", "skip", "captured", "subspace")
        options = {name: getattr(self, name) for name in names}
        measured = fisher(self.apply, self.likelihood, params, data, key=key, **options)
        return Payload(weight, params, measured)


def lift(rule: Rule | RoundRule, payload: Any) -> Any:
    """A client's contribution to the fold, by `rule.lift`; of a model in bfloat16, say, in float32, as sums need."""
    return rule.lift(widened(payload))


def in_types_of(params: PyTree, merged: Merged) -> Merged:
    """The merged model with the types of the clients' parameters, unless the rule made another tree."""
    if jax.tree.structure(merged.params) != jax.tree.structure(params):
        return merged
    return merged._replace(params=jax.tree.map(lambda new, old: new.astype(old.dtype), merged.params, params))


def fold(rule: Rule | RoundRule, contributions: PyTree) -> PyTree:
    """Fold contributions that are stacked along a leading client axis."""
    if rule.combine == "stack":
        return contributions
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), contributions)


def combine(rule: Rule | RoundRule, first: PyTree, second: PyTree) -> PyTree:
    """Two folded summaries as one."""
    if rule.combine == "stack":
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    return jax.tree.map(jnp.add, first, second)


def merge_payloads(rule: Rule, payloads: Sequence[Any]) -> Merged:
    """Merge clients' payloads in memory.

    Raises:
        ValueError: no payload, trees or shapes that do not match, non-finite or negative entries; the client is named.
    """
    if not payloads:
        raise ValueError("payloads: expected at least one, got none")
    for number, payload in enumerate(payloads):
        check_payload(payload, payloads[0], f"payloads[{number}]")
    contributions = [lift(rule, payload) for payload in payloads]
    merged = rule.solve(fold(rule, jax.tree.map(lambda *leaves: jnp.stack(leaves), *contributions)))
    return in_types_of(payloads[0].params, merged)


def check_payload(payload: Payload, like: Payload, name: str = "payload") -> None:
    """Refuse a payload that cannot be merged with `like`; concrete arrays only.

    Raises:
        ValueError: with `name`, the entry and what is wrong with it.
    """
    if jax.tree.structure(payload) != jax.tree.structure(like):
        given, expected = jax.tree.structure(payload), jax.tree.structure(like)
        raise ValueError(f"{name}: its tree differs from the first payload's: got {given}, expected {expected}")
    entries = zip(jax.tree.leaves_with_path(payload), jax.tree.leaves(like), strict=True)
    for (path, leaf), expected in entries:
        entry = f"{name}{jax.tree_util.keystr(path)}"
        if jnp.shape(leaf) != jnp.shape(expected):
            raise ValueError(f"{entry}: expected shape {jnp.shape(expected)}, got {jnp.shape(leaf)}")
        if not bool(jnp.all(jnp.isfinite(leaf))):
            raise ValueError(f"{entry}: expected finite numbers, got NaN or infinity")
    if not float(payload.weight) > 0:
        raise ValueError(f"{name}.weight: expected a positive number of examples, got {payload.weight}")
    structured = lambda node: hasattr(node, "diagonal") and not hasattr(node, "dtype")  # noqa: E731
    for at, node in jax.tree.leaves_with_path(payload.fisher, is_leaf=structured):
        if structured(node):
            for path, leaf in jax.tree.leaves_with_path(node.diagonal()):
                if float(jnp.min(leaf)) < 0:
                    where = jax.tree_util.keystr((*at, *path))
                    raise ValueError(
                        f"{name}.fisher{where}: expected no negative diagonal entry, got {float(jnp.min(leaf)):g}"
                    )
