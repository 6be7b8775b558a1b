"""Options of a rule as words after its name: "fedfisher-kfac,damping=1,iterations=50".

An option is a keyword of the rule's constructor that is a number, a text or a truth value; a field of a record of such
that the constructor takes; or, for rules that conjugate gradients solve, a keyword of theirs.
"""

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from ..solve._conjugate_gradients import conjugate_gradients

PLAIN = (bool, int, float, str)  # in the order in which a word is tried


class Named(NamedTuple):
    """The parts of a rule's name."""

    name: str
    options: dict[str, str]
    features: tuple[str, ...]  # what stands after "@"


class Option(NamedTuple):
    """An option that a rule knows: of which argument it is a part (its own one: ""), and its types."""

    argument: str
    types: tuple[type, ...]


def named(text: str, what: str = "rules") -> Named:
    """Take "NAME,OPTION=VALUE,…@FEATURE,…" apart; `what` names it in messages.

    Raises:
        ValueError: a word without "=", or an option twice.
    """
    head, at, features = text.partition("@")
    name, *words = head.split(",")
    options: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (equals and key and value) or key in options:
            raise ValueError(f"{what}: got {text[:80]!r}, expected OPTION=VALUE after commas, each option once")
        options[key.replace("-", "_")] = value
    return Named(name, options, tuple(features.split(",")) if at else ())


def plain_name(text: str) -> str:
    """Write a rule's name without the options of its parts; features stay."""
    parts = (part.partition("@") for part in text.split("+"))
    return "+".join(head.partition(",")[0] + at + features for head, at, features in parts)


def known(constructor: Callable[..., Any], offered: tuple[str, ...], damping: float | None) -> dict[str, Option]:
    """List the options of a rule by name.

    Args:
        constructor: makes the rule; keywords that a `partial` fixes are no options.
        offered: arguments that a run offers, of which only those that are plain are options.
        damping: the default of the conjugate gradients that solve it; None where they do not.
    """
    fixed: tuple[str, ...] = ()
    while isinstance(constructor, partial):
        fixed, constructor = (*fixed, *constructor.keywords), constructor.func
    found: dict[str, Option] = {}
    arguments = list(inspect.signature(constructor).parameters.values())
    try:
        hints = get_type_hints(constructor)
    except Exception:  # a user's function may be annotated with anything
        hints = {}
    for one in arguments[2:]:  # after apply and likelihood
        if one.name in fixed or one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL):
            continue
        kinds = _kinds(hints.get(one.name, type(one.default)))
        if _plain(kinds):
            found[one.name] = Option("", kinds)
        elif record := next(filter(dataclasses.is_dataclass, kinds), None):
            inner = ((field.name, _kinds(hint)) for field, hint in _fields(record))
            found = {name: Option(one.name, k) for name, k in inner if _plain(k)} | found  # earlier ones have the name
    if any(one.kind is one.VAR_KEYWORD for one in arguments):
        plain = {"kind": (str,), "samples": (int,)}
        found |= {name: Option("", plain[name]) for name in offered if name in plain}
        found.setdefault("batch_size", Option("", (int, type(None))))
    if damping is not None:
        taken = get_type_hints(conjugate_gradients)
        found |= {name: Option("solver", _kinds(taken[name])) for name in ("damping", "iterations", "tolerance")}
    return found


def arguments_of(
    name: str, given: Mapping[str, str], options: Mapping[str, Option], damping: float | None
) -> dict[str, Any]:
    """Turn options of a name into arguments of the rule's constructor.

    Args:
        name: the rule, for messages.
        given: option → word.
        options: those that the rule knows.
        damping: see `known`.

    Raises:
        ValueError: an option that the rule does not have, or a word that is none of its values.
    """
    found: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for key, word in given.items():
        if key not in options:
            raise ValueError(
                f"rules: {name}: got the option {key[:40]!r}, expected one of {', '.join(sorted(options)) or 'none'}"
            )
        argument, kinds = options[key]
        value = _value(f"rules: {name}: {key}", word, kinds)
        if argument:
            inner.setdefault(argument, {})[key] = value
        else:
            found[key] = value
    for argument, values in inner.items():
        whole: dict[str, Any] = {"damping": damping} | values
        found[argument] = conjugate_gradients(**whole) if argument == "solver" else values
    return found


def records(constructor: Callable[..., Any], arguments: dict[str, Any], variant: Mapping[str, Any]) -> dict[str, Any]:
    """Make records of arguments that are given by their fields, over those of a variant or of the constructor."""
    fixed = dict(variant)
    while isinstance(constructor, partial):
        fixed, constructor = {**constructor.keywords, **fixed}, constructor.func
    made = dict(arguments)
    for name, values in arguments.items():
        if isinstance(values, dict):
            default = fixed.get(name, inspect.signature(constructor).parameters[name].default)
            kind: Any = next(filter(dataclasses.is_dataclass, _kinds(get_type_hints(constructor)[name])))
            made[name] = kind(**values) if default is None else dataclasses.replace(default, **values)
    return made


def _fields(record: Any) -> list[tuple[Any, Any]]:
    hints = get_type_hints(record)
    return [(field, hints[field.name]) for field in dataclasses.fields(record)]


def _plain(kinds: tuple[type, ...]) -> bool:
    return bool(set(kinds) & set(PLAIN)) and set(kinds) <= {*PLAIN, type(None)}


def _kinds(hint: Any) -> tuple[type, ...]:
    """The types that an annotation allows; a literal has those of its values."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(kind for one in get_args(hint) for kind in _kinds(one))
    if get_origin(hint) is Literal:
        return tuple({type(value) for value in get_args(hint)})
    return (hint,) if isinstance(hint, type) else ()


def _value(what: str, word: str, kinds: tuple[type, ...]) -> Any:
    if type(None) in kinds and word.lower() == "none":
        return None
    for kind in (kind for kind in PLAIN if kind in kinds):
        if kind is bool:
            if word.lower() in ("true", "false"):
                return word.lower() == "true"
            continue
        try:
            return kind(word)
        except ValueError:
            continue
    names = " or ".join("true, false" if kind is bool else kind.__name__.lower() for kind in kinds)
    raise ValueError(f"{what}: got {word[:40]!r}, expected {names.replace('nonetype', 'none')}")
