"""How clients train and how the server steps, by the names that flags have."""

import inspect
from typing import Any

import optax

from ..federate import Variant, clip_to_clients, feddyn, fedprox, scaffold, server_adam
from ..federate._server_step import SERVER_RATE

SERVER_ADAM = "server-adam"
LOCAL = ("plain", "fedprox", "scaffold", "feddyn")


def optimizer(what: str, name: str, learning_rate: float, momentum: float | None = None) -> Any:
    """One of optax's optimisers by its name; momentum is for "sgd" alone.

    Raises:
        ValueError: optax has no such optimiser, or it takes no learning rate alone.
    """
    if name == "sgd":
        return optax.sgd(learning_rate, momentum)
    made = getattr(optax, name, None)
    known = [key for key, value in vars(optax).items() if _takes_rate(value)]
    if not _takes_rate(made):  # no name of optax, or it takes more than a learning rate
        raise ValueError(f"{what}: got {name[:40]!r}, expected one of optax: {', '.join(sorted(known))}")
    return made(learning_rate)  # pyright: ignore[reportOptionalCall]


def server_step(settings: Any) -> Any:
    """The server's optimiser over rounds by a run's flags, None where the merged model is taken as it is.

    Raises:
        ValueError: an unknown optimiser, a rate without one, or momentum of another one than sgd.
    """
    name, rate, momentum = settings.server_optimizer, settings.server_learning_rate, settings.server_momentum
    if name is None and rate is not None:
        raise ValueError("server_learning_rate: expected a --server-optimizer with it")
    if momentum and name != "sgd":
        raise ValueError(f"server_momentum: got {momentum}, expected --server-optimizer sgd with it")
    if name == SERVER_ADAM:
        step = server_adam(SERVER_RATE if rate is None else rate)
    else:
        step = None if name is None else optimizer("server_optimizer", name, 1.0 if rate is None else rate, momentum)
    if settings.server_clip is None:
        return step
    return optax.chain(clip_to_clients(settings.server_clip), optax.sgd(1.0) if step is None else step)


def variant(name: str, strength: float | None, settings: Any) -> Variant | None:
    """A variant of local training; SCAFFOLD's step is the clients' learning rate over 1 − momentum.

    Raises:
        ValueError: a strength that is missing or has no meaning, or SCAFFOLD without plain SGD.
    """
    if name in ("fedprox", "feddyn"):
        if strength is None:
            raise ValueError(f"strength: got none, expected a number, which --local {name} needs")
        return fedprox(strength) if name == "fedprox" else feddyn(strength)
    if strength is not None:
        raise ValueError(f"strength: got {strength}, which is for --local fedprox or feddyn, not for {name}")
    if name == "plain":
        return None
    if settings.optimizer != "sgd":
        raise ValueError(f"optimizer: got {settings.optimizer}, expected sgd, whose steps --local scaffold corrects")
    return scaffold(settings.learning_rate / (1 - settings.momentum))


def _takes_rate(made: Any) -> bool:
    if not inspect.isfunction(made) or made.__name__.startswith("scale_by"):
        return False
    taken = list(inspect.signature(made).parameters.values())
    needed = [one.name for one in taken if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    return needed == ["learning_rate"] and taken[0].name == "learning_rate"
