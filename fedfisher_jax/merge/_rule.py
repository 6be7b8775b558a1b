"""What a merge rule is: measure at the client, lift into the fold, solve at the server."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from .._examples import Examples
from .._likelihood import Likelihood
from .._trees import difference, in_types_of, stack, widened
from ..curvature import Capture, Subspace, fisher

PyTree = Any


class Update(NamedTuple):
    """A client's model at the moment when it measures."""

    params: PyTree
    start: PyTree = None  # the model that the client was sent, where the rule asks for it
    squares: PyTree = None  # the last epoch's squared gradients (`Trained.squares`), where the rule asks for them
    steps: Any = 0  # the local optimiser's


class Payload(NamedTuple):
    """What one client sends."""

    weight: Any  # its number of examples
    params: PyTree
    statistics: Any = None  # what the rule measured: a Fisher, second moments of inputs, counts, or nothing


class Merged(NamedTuple):
    """The global model, scalars that tell how the solve went, and, where a rule changes the network, its `apply`."""

    params: PyTree
    diagnostics: dict[str, Any]
    apply: Callable | None = None


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


def then(first: Rule, second: Rule) -> Rule:
    """Two exchanges as one rule: the second is measured at the model that the first one merged, with no training.

    Raises:
        ValueError: the second rule reads gradients of a training.

    Example:
        >>> import fedfisher_jax as ff
        >>> model = (lambda w, x: x @ w, ff.categorical())
        >>> rule = ff.then(ff.fedavg(*model), ff.fedfisher(*model))
        >>> rule.name, len(ff.merge.exchanges(rule))
        ('fedavg+fedfisher-kfac', 2)
    """
    if second.squares:
        raise ValueError(
            f"second: got {second.name}, which reads gradients of local training, expected a rule that does not"
        )
    return first._replace(name=f"{first.name}+{second.name}", parts=(*exchanges(first), *exchanges(second)))


def exchanges(rule: Rule) -> tuple[Rule, ...]:
    """List the rules that clients and server go through one after the other; most rules are one exchange."""
    return rule.parts or (rule,)


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
        weight = jnp.asarray(data.size, jnp.result_type(float))
        if self.structure is None:
            return Payload(weight, update.params)
        names = ("structure", "kind", "samples", "batch_size", "skip", "captured", "subspace")
        options = {name: getattr(self, name) for name in names}
        model = update.params if self.at == "params" else require_start(update.start)
        return Payload(weight, update.params, fisher(self.apply, self.likelihood, model, data, key=key, **options))


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
    for name in options:
        if name not in known:
            raise TypeError(f"option: got {name!r}, expected one of {', '.join(known)}")


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
    """Make a client's contribution to the fold, by `rule.lift`, in float32 at least, as sums need."""
    return rule.lift(widened(payload), widened(start))


def merge_summary(rule: Rule, summary: Any, params: PyTree, start: PyTree = None) -> Merged:
    """Solve for the global model, in the types of the clients' `params` if it has their structure."""
    merged = rule.solve(summary, widened(start))
    return merged._replace(params=in_types_of(merged.params, params))


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


def merge_payloads(rule: Rule, payloads: Sequence[Any], start: PyTree = None) -> Merged:
    """Merge clients' payloads in memory.

    Args:
        rule: one exchange; the parts of a rule made by `then` are merged one after the other.
        payloads: at least one.
        start: the model that the clients were sent, where the rule reads it.

    Raises:
        ValueError: no payload, trees or shapes that do not match, non-finite or negative entries (the client is named),
            several exchanges, or no start where the rule reads it.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> rule = ff.fisher_merge(lambda w, x: x @ w, ff.categorical())
        >>> sure = ff.Payload(jnp.asarray(10.0), jnp.zeros(1), ff.Diagonal(jnp.full(1, 3.0)))
        >>> unsure = ff.Payload(jnp.asarray(10.0), jnp.ones(1), ff.Diagonal(jnp.ones(1)))
        >>> ff.merge_payloads(rule, [sure, unsure]).params.tolist()  # (3 · 0 + 1 · 1) / (3 + 1)
        [0.25]
    """
    if not payloads:
        raise ValueError("payloads: expected at least one, got none")
    if len(exchanges(rule)) > 1:
        raise ValueError(f"rule: got {rule.name}, which is {len(exchanges(rule))} exchanges, expected one of its parts")
    for number, payload in enumerate(payloads):
        check_payload(payload, payloads[0], f"payloads[{number}]")
    contributions = stack([lift(rule, payload, start) for payload in payloads])
    return merge_summary(rule, fold(rule, contributions), payloads[0].params, start)


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
