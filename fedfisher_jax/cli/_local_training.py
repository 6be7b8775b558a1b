"""How clients train and how the server steps, by the names that flags have."""

import inspect
from typing import Any

import optax

from ..federate import Variant, clip_to_clients, feddyn, fedprox, scaffold, server_adam
from ..federate._server_step import SERVER_RATE
from ..merge._options import named

SERVER_ADAM = "server-adam"
LOCAL = ("plain", "fedprox", "scaffold", "feddyn")


def optimizer(what: str, name: str, learning_rate: Any, momentum: float | None = None) -> Any:
    """One of optax's optimisers by its name, at a rate or by a schedule; momentum is for "sgd" alone.

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


def rate(what: str, learning_rate: float, schedule: str | None) -> Any:
    """A learning rate, or optax's schedule "NAME,ARGUMENT=NUMBER,…" that starts, or has its peak, at it.

    Raises:
        ValueError: optax has no such schedule of numbers, or an argument is missing, unknown or no number.
    """
    if schedule is None:
        return learning_rate
    name, words, _ = named(schedule, what)
    made = getattr(optax.schedules, name, None)
    if not _of_numbers(made):
        known = ", ".join(sorted(key for key, value in vars(optax.schedules).items() if _of_numbers(value)))
        raise ValueError(f"{what}: got {name[:40]!r}, expected one of optax: {known}")
    taken = inspect.signature(made).parameters  # pyright: ignore[reportArgumentType]
    given: dict[str, Any] = {"peak_value": learning_rate, "init_value": 0.0}
    given = given if "peak_value" in taken else {"init_value": learning_rate}
    given = {key: value for key, value in given.items() if key in taken}
    for key, word in words.items():
        if key not in taken:
            raise ValueError(f"{what}: got {key[:40]!r}, expected one of {', '.join(taken)}, which {name} takes")
        try:
            given[key] = int(word) if word.lstrip("-").isdigit() else float(word)
        except ValueError:
            raise ValueError(f"{what}: {key}: got {word[:40]!r}, expected a number") from None
    missing = [key for key, one in taken.items() if one.default is one.empty and key not in given]
    if missing:
        raise ValueError(f"{what}: {name} needs {', '.join(missing)}, as in {name},{missing[0]}=100")
    return made(**given)  # pyright: ignore[reportOptionalCall]


def server_step(
    name: str | None, given: float | None, schedule: str | None, momentum: float, clip: float | None
) -> Any:
    """Make the server's optimiser over rounds; None where the merged model is taken as it is.

    Args:
        name: its name.
        given: its learning rate; by default 0.01 for server-adam, 1 for others.
        schedule: the rate's schedule, as `rate` takes it.
        momentum: momentum of sgd.
        clip: the longest step, see `clip_to_clients`.

    Raises:
        ValueError: an unknown optimiser, a rate without one, or momentum of another one than sgd.
    """
    if name is None and (given is not None or schedule is not None):
        raise ValueError("server_learning_rate, server_schedule: expected a --server-optimizer with it")
    if momentum and name != "sgd":
        raise ValueError(f"server_momentum: got {momentum}, expected --server-optimizer sgd with it")
    usual = SERVER_RATE if name == SERVER_ADAM else 1.0
    at = rate("server_schedule", usual if given is None else given, schedule)
    if name == SERVER_ADAM:
        step = server_adam(at)
    else:
        step = None if name is None else optimizer("server_optimizer", name, at, momentum)
    if clip is None:
        return step
    return optax.chain(clip_to_clients(clip), optax.sgd(1.0) if step is None else step)


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
    if settings.schedule is not None:
        raise ValueError("schedule: --local scaffold corrects steps of one learning rate; leave it out")
    return scaffold(settings.learning_rate / (1 - settings.momentum))


def _takes_rate(made: Any) -> bool:
    if not inspect.isfunction(made) or made.__name__.startswith("scale_by"):
        return False
    taken = list(inspect.signature(made).parameters.values())
    needed = [one.name for one in taken if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    return needed == ["learning_rate"] and taken[0].name == "learning_rate"


def _of_numbers(made: Any) -> bool:
    """Whether it is a schedule that is made of numbers alone and starts, or has its peak, at a rate."""
    if not inspect.isfunction(made) or not (made.__module__ or "").startswith("optax.schedules"):
        return False
    taken = set(inspect.signature(made).parameters)
    return bool(taken & {"init_value", "peak_value"}) and not taken & {"boundaries_and_scales", "cosine_kwargs"}
