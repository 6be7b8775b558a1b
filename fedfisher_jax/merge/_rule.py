"""What a merge rule is: measure at the client, lift into the fold, solve at the server."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from .._compat import Tracer, standard_promotion
from .._examples import Examples
from .._trees import difference, in_types_of, stack, widened
from ..curvature.structures._protocol import Structure

PyTree = Any


class Update(NamedTuple):
    """A client's model at the moment when it measures."""

    params: PyTree
    start: PyTree = None  # the model that the client was sent, where the rule asks for it
    squares: PyTree = None  # the last epoch's squared gradients (`Trained.squares`), where the rule asks for them
    steps: Any = 0  # the local optimiser's


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Kind:
    """How a payload's statistics were measured, in the words that files use, too: "exact", say, or "squares".

    It is no leaf of a payload's tree but part of its structure, so it goes through `jit` and `vmap`.
    """

    name: str


class Payload(NamedTuple):
    """What one client sends."""

    weight: Any  # its number of examples
    params: PyTree  # None where the rule measures at the start alone
    statistics: Any = None  # what the rule measured: a Fisher, second moments of inputs, counts, or nothing
    kind: Kind | None = None  # of the statistics; None where nobody knows, as in payloads that are made by hand


class Takes(NamedTuple):
    """The statistics that a rule can merge; all others are refused by `lift`."""

    types: tuple[type, ...]  # a structure of `curvature`, NoneType, or what else a measure gives
    kinds: tuple[str, ...] = ()  # names of `Kind`; any where there is none


class Merged(NamedTuple):
    """The global model, scalars that tell how the solve went, and, where a rule changes the network, its `apply`."""

    params: PyTree
    diagnostics: dict[str, Any]
    apply: Callable | None = None


class Carry(NamedTuple):
    """What a rule's server keeps from round to round: state in, state out. One shot, files and Flower have none of it.

    `solve` of the rule itself is what this one is before the first round.
    """

    init: Callable[[PyTree], Any]  # (parameters) → what is kept before the first round
    solve: Callable[[Any, PyTree, Any], tuple[Merged, Any]]  # (summary, start, kept) → model, kept after it


class Rule(NamedTuple):
    """A merge rule as pure functions, for one shot, rounds, files, secure sums and live federations alike.

    `combine` says how contributions fold: "add" (leaf by leaf: sums, psum, secure sums) or "stack" (along a leading
    client axis). Both are associative and commutative, so payloads may come in any order and grouping. `start` is the
    model that the clients were sent, None where nobody knows it.
    """

    name: str
    measure: Callable[[Update, Examples, jax.Array], Any]  # client: (update, data, key) → payload
    lift: Callable[[Any, PyTree], Any]  # (payload, start) → the client's contribution to the fold
    solve: Callable[[Any, PyTree], Merged]  # server: (folded contributions, start) → global model
    combine: Literal["add", "stack"]
    jit: bool = True  # False: `solve` works on the host (assignments, widths that depend on data), so do not compile it
    squares: bool = False  # whether `measure` reads the last epoch's squared gradients
    parts: tuple["Rule", ...] = ()  # see `then`
    takes: Takes | None = None  # what `lift` and `solve` can merge; None: a rule of one's own that does not say
    passes: bool = False  # whether a stacking rule's `solve` also takes an `Objective`, made by passes over payloads
    trains: bool = True  # whether clients train before they measure; else `measure` reads the start alone
    carry: Carry | None = None  # what rounds keep for the rule's first exchange; None: nothing


def then(first: Rule, second: Rule) -> Rule:
    """Two exchanges as one rule: the second is measured at the model that the first one merged, with no training.

    Raises:
        ValueError: the second rule reads gradients of a training, or keeps something from round to round.

    Example:
        >>> import fedfisher_jax as ff
        >>> model = (lambda w, x: x @ w, ff.categorical())
        >>> rule = ff.then(ff.fedavg(*model), ff.fedfisher(*model))
        >>> rule.name, len(ff.merge.exchanges(rule))
        ('fedavg+fedfisher-kfac', 2)
    """
    for rule in (first, second):
        require_rule(rule)
    if second.squares:
        raise ValueError(
            f"second: got {second.name}, which reads gradients of local training, expected a rule that does not"
        )
    if second.carry is not None:
        raise ValueError(f"second: got {second.name}, which keeps past rounds, expected a rule that keeps nothing")
    return first._replace(name=f"{first.name}+{second.name}", parts=(*exchanges(first), *exchanges(second)))


def exchanges(rule: Rule) -> tuple[Rule, ...]:
    """List the rules that clients and server go through one after the other; most rules are one exchange."""
    return rule.parts or (rule,)


def require_start(start: PyTree) -> PyTree:
    """Return the start itself, if there is one.

    Raises:
        ValueError: there is none.
    """
    if start is None:
        raise ValueError("start: got None, expected the model that the clients were sent, which this rule reads")
    return start


def moved(payload: Payload, start: PyTree) -> Payload:
    """Make a payload whose parameters are how far the client came from the start (stacked payloads, too)."""
    return payload._replace(params=difference(payload.params, require_start(start)))


def lift(rule: Rule, payload: Any, start: PyTree = None) -> Any:
    """Make a client's contribution to the fold, by `rule.lift`, in float32 at least, as sums need.

    Every merge goes through here: in memory, of files, live, or by secure sums.

    Raises:
        ValueError: the rule cannot merge what the payload holds.
    """
    require_taken(rule, payload)
    return rule.lift(widened(payload), widened(start))


ONE_MODEL = Takes((type(None), Structure, dict))  # of rules that read one model's parameters, and nothing beside them


def require_rule(rule: Any) -> None:
    """Refuse what is no rule, such as the function that makes one.

    Raises:
        TypeError: what was given.
    """
    if not isinstance(rule, Rule):
        given = getattr(rule, "__name__", type(rule).__name__)
        call = f"; call it: {given}(apply, likelihood)" if callable(rule) else ""
        raise TypeError(f"rule: got {given}, expected a Rule{call}")


def require_taken(rule: Rule, payload: Any) -> None:
    """Refuse statistics that a rule cannot merge; payloads may be traced or stacked.

    Raises:
        ValueError: what the rule takes, and what the payload holds.
    """
    if rule.takes is None:
        return
    types, kinds = rule.takes
    if not isinstance(payload, Payload):
        raise ValueError(f"payload: got {type(payload).__name__}, expected a Payload for {rule.name}")
    known = payload.kind is None or not kinds or payload.kind.name in kinds
    if not isinstance(payload.statistics, types) or not known:
        held = _in_words(type(payload.statistics), () if payload.kind is None else (payload.kind.name,))
        wanted = " or ".join(_in_words(one, kinds) for one in types)
        raise ValueError(f"rule: {rule.name} takes {wanted}; the payload holds {held}, which it cannot merge")


def _in_words(statistics: type, kinds: Sequence[str]) -> str:
    name = statistics.__name__
    if issubclass(statistics, Structure):
        name = getattr(statistics, "name", "any structure")
    elif statistics is type(None):
        return "parameters alone"
    return f"{name} ({' or '.join(kinds)})" if kinds else name


def require_squares(rule: Rule, merged: Merged) -> Merged:
    """Return the merged model itself, if no objective of its solver, a sum of squares, is below zero.

    Solvers give zero for what is below it by rounding. Objectives that are traced are not looked at, nor those of a
    rule of one's own that does not say what it takes: it may count from another zero.

    Raises:
        ValueError: one is.
    """
    if rule.takes is None:
        return merged
    for name in ("objective_start", "objective_end"):
        value = merged.diagnostics.get(name)
        if value is not None and not isinstance(value, Tracer) and float(value) < 0:
            raise ValueError(
                f"{name}: got {float(value):.4g}, expected at least 0 of a sum of squares: the clients' curvatures are "
                "not positive semi-definite, or are not what the rule takes"
            )
    return merged


def merge_summary(rule: Rule, summary: Any, params: PyTree, start: PyTree = None) -> Merged:
    """Solve for the global model, in the types of the clients' `params` (or of the start) if it is like them."""
    merged = rule.solve(summary, widened(start))
    return merged._replace(params=in_types_of(merged.params, start if params is None else params))


def fold(rule: Rule, contributions: PyTree) -> PyTree:
    """Fold contributions that are stacked along a leading client axis."""
    if rule.combine == "stack":
        return contributions
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), contributions)


def combine(rule: Rule, first: PyTree, second: PyTree) -> PyTree:
    """Combine two folded summaries into one."""
    if rule.combine == "stack":
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    return jax.tree.map(jnp.add, first, second)


@standard_promotion
def merge_payloads(rule: Rule, payloads: Sequence[Any], start: PyTree = None) -> Merged:
    """Merge clients' payloads in memory.

    Args:
        rule: one exchange; the parts of a rule made by `then` are merged one after the other.
        payloads: at least one.
        start: the model that the clients were sent, where the rule reads it.

    Raises:
        ValueError: no payload, trees or shapes that do not match, non-finite or negative entries (the client is named),
            several exchanges, no start where the rule reads it, statistics that the rule cannot merge, or an objective
            below zero.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> rule = ff.fisher_merge(lambda w, x: x @ w, ff.categorical())
        >>> sure = ff.Payload(jnp.asarray(10.0), jnp.zeros(1), ff.Diagonal(jnp.full(1, 3.0)))
        >>> unsure = ff.Payload(jnp.asarray(10.0), jnp.ones(1), ff.Diagonal(jnp.ones(1)))
        >>> ff.merge_payloads(rule, [sure, unsure]).params.tolist()  # (3 · 0 + 1 · 1) / (3 + 1)
        [0.25]
    """
    require_rule(rule)
    if not payloads:
        raise ValueError("payloads: expected at least one, got none")
    if len(exchanges(rule)) > 1:
        raise ValueError(f"rule: got {rule.name}, which is {len(exchanges(rule))} exchanges, expected one of its parts")
    for number, payload in enumerate(payloads):
        require_taken(rule, payload)
        check_payload(payload, payloads[0], f"payloads[{number}]")
    contributions = stack([lift(rule, payload, start) for payload in payloads])
    return require_squares(rule, merge_summary(rule, fold(rule, contributions), payloads[0].params, start))


def check_payload(payload: Payload, like: Payload, name: str = "payload") -> None:
    """Refuse a payload that cannot be merged with `like`; concrete arrays only.

    Raises:
        ValueError: with `name`, the entry and what is wrong with it.
    """
    if jax.tree.structure(payload) != jax.tree.structure(like):
        given, expected = jax.tree.structure(payload), jax.tree.structure(like)
        raise ValueError(f"{name}: got a tree {given}, expected the first payload's, {expected}")
    entries = zip(jax.tree.leaves_with_path(payload), jax.tree.leaves(like), strict=True)
    for (path, leaf), expected in entries:
        entry = f"{name}{jax.tree_util.keystr(path)}"
        if jnp.shape(leaf) != jnp.shape(expected):
            raise ValueError(f"{entry}: got shape {jnp.shape(leaf)}, expected {jnp.shape(expected)}")
        if not bool(jnp.all(jnp.isfinite(leaf))):
            raise ValueError(f"{entry}: got NaN or infinity, expected finite numbers")
    if not float(payload.weight) > 0:
        raise ValueError(f"{name}.weight: got {payload.weight}, expected a positive number of examples")
    structured = lambda node: hasattr(node, "diagonal") and not hasattr(node, "dtype")  # noqa: E731
    for at, node in jax.tree.leaves_with_path(payload.statistics, is_leaf=structured):
        if structured(node):
            for path, leaf in jax.tree.leaves_with_path(node.diagonal()):
                if float(jnp.min(leaf)) < 0:
                    where = jax.tree_util.keystr((*at, *path))
                    raise ValueError(
                        f"{name}.statistics{where}: got {float(jnp.min(leaf)):g}, expected no negative diagonal entry"
                    )
