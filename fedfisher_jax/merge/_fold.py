"""How payloads become a model: checked against the rule, lifted, folded and solved."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._compat import Tracer, standard_promotion
from .._doors import require_params
from .._trees import stack, widened
from ..curvature.structures._protocol import Structure
from ._rule import Merged, Payload, Rule, require_like, require_one_exchange, require_rule
from ._sent import in_models_types, model_of

PyTree = Any


def lift(rule: Rule, payload: Any, start: PyTree = None) -> Any:
    """Make a client's contribution to the fold, by `rule.lift`, in float32 at least, as sums need.

    Every merge goes through here: in memory, of files, live, or by secure sums.

    Args:
        rule: one exchange.
        payload: one client's; arrays may be traced.
        start: the model that the clients were sent; None where nobody knows it.

    Raises:
        ValueError: the rule cannot merge what the payload holds, or the start is not like the payload's parameters.
    """
    require_taken(rule, payload)
    _require_start_like(rule, payload, start)
    sent = widened(payload)
    if isinstance(sent, Payload) and not jnp.issubdtype(jnp.result_type(sent.weight), jnp.floating):
        sent = sent._replace(weight=jnp.asarray(sent.weight, float))  # sums and products of integers wrap
    return rule.lift(sent, widened(start))


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


def _require_start_like(rule: Rule, payload: Any, start: PyTree) -> None:
    """Refuse a start that is not like the payload's model; what a rule of one's own starts from may be anything."""
    if rule.takes is None or start is None or payload.params is None:
        return
    several = type(payload.statistics) is tuple  # models, of FedBEns
    for params in payload.params if several else (payload.params,):
        require_like("start", model_of(start), params)


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
    like = start if params is None else params
    if type(like) is tuple and like and jax.tree.structure(like[0]) == jax.tree.structure(merged.params):
        like = like[0]  # one of the modes of a client
    return merged._replace(params=in_models_types(merged.params, like))


def fold(rule: Rule, contributions: PyTree) -> PyTree:
    """Fold contributions, from `lift`, that are stacked along a leading client axis, [M, ...] each, into a summary."""
    if rule.combine == "stack":
        return contributions
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), contributions)


def combine(rule: Rule, first: PyTree, second: PyTree) -> PyTree:
    """Combine two summaries, from `fold`, of different clients into one; their order and grouping do not matter."""
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
            several exchanges, no start where the rule reads it, a start that is not like the parameters, statistics
            that the rule cannot merge, or an objective below zero.
        TypeError: parameters that are no floating-point numbers.

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
    require_one_exchange(rule)
    for number, payload in enumerate(payloads):
        require_taken(rule, payload)
        check_payload(payload, payloads[0], f"payloads[{number}]")
    contributions = stack([lift(rule, payload, start) for payload in payloads])
    return require_squares(rule, merge_summary(rule, fold(rule, contributions), payloads[0].params, start))


def check_payload(payload: Payload, like: Payload, name: str = "payload") -> None:
    """Refuse a payload that cannot be merged with `like`; concrete arrays only.

    Args:
        payload: a client's.
        like: another client's, whose tree and shapes it must have.
        name: what messages call the first.

    Raises:
        ValueError: with `name`, the entry and what is wrong with it.
        TypeError: parameters that are no floating-point numbers, which a mean would round.
    """
    require_like(name, payload, like, "the first payload's")
    if payload.params is not None:
        require_params(payload.params, f"{name}.params")
    for path, leaf in jax.tree.leaves_with_path(payload):
        if not bool(jnp.all(jnp.isfinite(leaf))):
            raise ValueError(f"{name}{jax.tree_util.keystr(path)}: got NaN or infinity, expected finite numbers")
    if not float(payload.weight) > 0:
        raise ValueError(f"{name}.weight: got {payload.weight}, expected a positive number of examples")
    structured = lambda node: hasattr(node, "diagonal") and not hasattr(node, "dtype")  # noqa: E731
    for at, node in jax.tree.leaves_with_path(payload.statistics, is_leaf=structured):
        if structured(node):
            for path, leaf in jax.tree.leaves_with_path(node.diagonal()):
                if (least := float(jnp.min(leaf, initial=0))) < 0:
                    where = jax.tree_util.keystr((*at, *path))
                    raise ValueError(f"{name}.statistics{where}: got {least:g}, expected no negative diagonal entry")
