"""What a payload reveals, and how to reveal less: secure sums, differentially private noise (docs/silos.md).

Every name loads when it is used, since secure sums need `cryptography`.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from . import attacks as attacks
    from . import dp_training as dp_training
    from . import example_noise as example_noise
    from . import noise as noise
    from ._agreement import RoundVoid as RoundVoid
    from ._secure_merge import secure_merge as secure_merge
    from ._secure_sum import secure_sum as secure_sum

_HOMES = {"RoundVoid": "_agreement", "secure_merge": "_secure_merge", "secure_sum": "_secure_sum"}

__all__ = ["RoundVoid", "attacks", "dp_training", "example_noise", "noise", "secure_merge", "secure_sum"]


def __getattr__(name: str) -> _Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _importlib.import_module(f".{_HOMES.get(name, name)}", __name__)
    return getattr(module, name) if name in _HOMES else module


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
