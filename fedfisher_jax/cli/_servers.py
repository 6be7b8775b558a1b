"""The server's step of each rule over rounds: that of the flags, or what stands among the options of the rule's name.

"fedavg,server-learning-rate=0.1" takes the flags' optimiser at a rate of its own. With "server-optimizer=NAME" nothing
is taken of the flags; NAME none takes the merged model as it is.
"""

import dataclasses
from typing import Any

from ..merge import catalogue
from ..merge._options import named
from ._local_training import server_step
from ._once import once
from ._ranges import require_ranges

NUMBERS = ("server_learning_rate", "server_momentum", "server_clip")
KNOWN = ("server_optimizer", *NUMBERS)
PLAIN = {"server_optimizer": None, "server_schedule": None} | dict(zip(NUMBERS, (None, 0.0, None), strict=True))
_step = once(server_step)


def without_server(name: str) -> str:
    """Write a rule's name without the words on its server."""
    return "+".join(map(_without, name.split("+")))


def server_words(name: str) -> dict[str, str]:
    """Find what a rule's name says of its server, option → word.

    Raises:
        ValueError: an option twice, or one of a server that there is not.
    """
    found: dict[str, str] = {}
    for part in name.split("+"):
        options = named(part).options
        for key in options:
            if key.startswith("server_") and key not in (*KNOWN, *catalogue.options_of(part)):
                raise ValueError(f"rules: {name}: got the option {key[:40]!r}, expected one of {', '.join(KNOWN)}")
        own = {key: word for key, word in options.items() if key in KNOWN}
        if twice := set(own) & set(found):
            raise ValueError(
                f"rules: {name}: got {twice.pop()} twice, expected one server for all of a round's exchanges"
            )
        found |= own
    return found


def server_of(settings: Any, name: str) -> Any:
    """Make the server's optimiser of a rule, the same object for the same settings; None takes the merged model.

    Args:
        settings: a run's, whose `server_…` hold where the name says nothing.
        name: the rule.

    Raises:
        ValueError: as `server_step`; a number that is none, or out of range.
    """
    own: dict[str, Any] = {}
    for key, word in server_words(name).items():
        own[key] = _number(f"rules: {name}: {key}", word) if key in NUMBERS else None if word == "none" else word
    chosen = dataclasses.replace(settings, **(PLAIN if "server_optimizer" in own else {}) | own)
    require_ranges(chosen)
    return _step(
        chosen.server_optimizer,
        chosen.server_learning_rate,
        chosen.server_schedule,
        chosen.server_momentum,
        chosen.server_clip,
    )


def _without(part: str) -> str:
    said, own = named(part), server_words(part)
    if not own:
        return part
    words = [f"{key}={word}" for key, word in said.options.items() if key not in own]
    return ",".join([said.name, *words]) + ("@" + ",".join(said.features) if said.features else "")


def _number(what: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{what}: got {word[:40]!r}, expected a number") from None
