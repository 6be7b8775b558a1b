"""The rules by name, and a user's own rule named as `module:function`."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from ..likelihood import Likelihood
from .fedavg import fedavg
from .fedfisher import fedfisher, fisher_merge
from .fedlpa import fedlpa
from .regmean import regmean, regmean_kron
from .rule import Rule

RULES: dict[str, Callable[..., Rule]] = {
    "fedavg": fedavg,
    "fisher-merge": fisher_merge,
    "fedfisher-diag": partial(fedfisher, structure="diagonal"),
    "fedfisher-kfac": partial(fedfisher, structure="kronecker"),
    "fedfisher-full": partial(fedfisher, structure="full"),
    "fedlpa": fedlpa,
    "regmean": regmean,
    "regmean-kron": regmean_kron,
}


def build(name: str, apply: Callable, likelihood: Likelihood, **options: Any) -> Rule:
    """A rule by its name in `RULES`, or `module:function` where function(apply, likelihood, **options) → Rule.

    Raises:
        ValueError: no such rule, module or function.
    """
    if name in RULES:
        return RULES[name](apply, likelihood, **options)
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"rules: got {name!r}, expected one of {', '.join(RULES)}, or your own as module:function")
    try:
        constructor = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"rules: cannot import {name!r}: {error}") from error
    return constructor(apply, likelihood, **options)
