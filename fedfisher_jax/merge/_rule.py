"""What a merge rule is: measure at the client, lift into the fold, solve at the server."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._examples import Examples
from .._trees import difference
from ..curvature.structures._class_moments import ClassMoments
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
    """Make one rule of two exchanges: the second is measured at the first one's merged model, without training.

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


def weight_of(data: Examples) -> jax.Array:
    """A client's weight, which is its number of examples, as a float."""
    return jnp.asarray(data.size, jnp.result_type(float))


def require_one_exchange(rule: Rule) -> None:
    """Refuse a rule of several exchanges.

    Raises:
        ValueError: how many it is.
    """
    if rule.parts:
        raise ValueError(f"rule: got {rule.name}, which is {len(rule.parts)} exchanges, expected one of its parts")


def require_start(start: PyTree) -> PyTree:
    """Return the start itself, if there is one.

    Raises:
        ValueError: there is none.
    """
    if start is None:
        raise ValueError("start: got None, expected the model that the clients were sent, which this rule reads")
    return start


def require_like(name: str, tree: PyTree, like: PyTree, whose: str = "the parameters'") -> None:
    """Refuse a tree of another structure or other shapes than a tree has that it is added to; types may differ.

    Args:
        name: what messages call the tree.
        tree: arrays, or their shapes.
        like: arrays, or their shapes.
        whose: what messages call the structure of `like`.

    Raises:
        ValueError: another structure, or the first leaf of another shape, by its path.
    """
    given, expected = jax.tree.structure(tree), jax.tree.structure(like)
    if given != expected:
        raise ValueError(f"{name}: got a tree {given}, expected {whose}, {expected}")
    for (path, leaf), other in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(like), strict=True):
        if np.shape(leaf) != np.shape(other):
            entry = f"{name}{jax.tree_util.keystr(path)}"
            raise ValueError(f"{entry}: got shape {np.shape(leaf)}, expected {np.shape(other)}")


def moved(payload: Payload, start: PyTree) -> Payload:
    """Make a payload whose parameters are how far the client came from the start (stacked payloads, too)."""
    return payload._replace(params=difference(payload.params, require_start(start)))


ONE_MODEL = Takes((type(None), Structure, ClassMoments, dict))  # rules that read one model's parameters alone


def require_rule(rule: Any) -> None:
    """Refuse what is no rule, such as the function that makes one.

    Raises:
        TypeError: what was given.
    """
    if not isinstance(rule, Rule):
        given = getattr(rule, "__name__", type(rule).__name__)
        call = f"; call it: {given}(apply, likelihood)" if callable(rule) else ""
        raise TypeError(f"rule: got {given}, expected a Rule{call}")
