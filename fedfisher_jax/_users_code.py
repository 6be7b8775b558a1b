"""Functions of users, named as `module:function`: they may fail in any way, or leave, and are told of in one line."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def import_function(what: str, name: str) -> Callable[..., Any]:
    """Import `module:function`; the module is looked for on Python's path, and then in the current folder.

    Args:
        what: what the function makes, the first word of errors.
        name: module and function with a colon between them.

    Raises:
        ValueError: there is no such module or function, or the module fails.
    """
    module, _, function = name.partition(":")
    if (here := os.getcwd()) not in sys.path:  # a command's own path begins elsewhere
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what}: cannot import {name!r}: {in_few_words(error)}") from error
    if not callable(found):
        raise ValueError(f"{what}: {name!r} is a {type(found).__name__}, expected a function")
    return found


def in_few_words(error: BaseException) -> str:
    """Tell what an exception of somebody's code says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
