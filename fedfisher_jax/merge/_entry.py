"""A rule of the catalogue by its name: how it is made, and of what; a user's own function as such a rule."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from .._likelihood import Likelihood
from .._users_code import import_function, in_few_words
from ._options import Option, known
from ._rule import Rule


class Entry(NamedTuple):
    """A rule by its name.

    Attributes:
        constructor: (apply, likelihood, **options) → Rule.
        takes: the offers that are options of it.
        says: what it does, in a line.
        rounds: whether its model is of the clients' network, so that another round can start from it.
        files: whether what it measures has a form in payload files.
        damping: default of the conjugate gradients that solve it; None where they do not.
        variants: options by the names that stand for them after an "@".
    """

    constructor: Callable[..., Rule]
    takes: tuple[str, ...] = ()
    says: str = "your own"
    rounds: bool = True
    files: bool = True
    damping: float | None = None
    variants: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


def _own(entry: Entry) -> Callable[..., Any]:
    own = entry.constructor
    return own.args[1] if isinstance(own, partial) and own.func is _users_rule else own


def known_options(entry: Entry) -> dict[str, Option]:
    """List the options of a rule by name; of a user's own, those of the user's function."""
    return known(_own(entry), entry.takes, entry.damping)


def options_after_at(name: str, entry: Entry, words: tuple[str, ...]) -> dict[str, Any]:
    """Make options of what stands after "@": names of features, or of variants whose options are put together."""
    if not entry.variants:
        if "features" in inspect.signature(_own(entry)).parameters:
            return {"features": words}
        options = ", ".join(sorted(known_options(entry))) or "none"
        raise ValueError(f"rules: got {name}@{','.join(words)[:40]}, expected options after commas: {options}")
    found: dict[str, Any] = {}
    for variant in words:
        options = entry.variants.get(variant, {})
        if not options or set(options) & set(found):
            known = ", ".join(entry.variants)
            raise ValueError(f"rules: got {name}@{','.join(words)[:40]}, expected one or some that fit of {known}")
        found |= options
    return found


def users_entry(name: str) -> Entry:
    """Make the entry of a user's own function, "module:function".

    Raises:
        ValueError: no such module or function, or one whose arguments nobody can tell.
    """
    constructor = import_function("rules", name)
    try:
        taken = tuple(inspect.signature(constructor).parameters)
    except ValueError as error:  # some functions written in C
        raise ValueError(f"rules: {name!r}: {in_few_words(error)}") from error
    return Entry(partial(_users_rule, name, constructor), taken)


def _users_rule(
    name: str, constructor: Callable[..., Any], apply: Callable, likelihood: Likelihood, **given: Any
) -> Rule:
    """Make the rule of a user's own function, which may fail in any way, or return something else."""
    try:
        made = constructor(apply, likelihood, **given)
    except (Exception, SystemExit) as error:
        raise ValueError(f"rules: {name!r} failed: {in_few_words(error)}") from error
    if not isinstance(made, Rule):
        raise ValueError(f"rules: {name!r} returned {type(made).__name__}, expected a Rule")
    return made
