"""The `fedfisher` command: a thin face over the library."""

from ._cli import main as main

__all__ = [
    "main",
]
