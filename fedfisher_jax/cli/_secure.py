"""`fedfisher secure`: silos and a server sum payloads by mail, so that the server sees their sum alone."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

Positional = tyro.conf.Positional


@dataclasses.dataclass(frozen=True)
class JoinSettings:
    """A silo's first letter: keys for one sum, and the scales of what it will add. Mail it to everybody."""

    payload: Annotated[Path, Positional]
    """This silo's payload file, from `fedfisher measure`, or a region (`fedfisher fold`); it stays here."""
    round: str
    """Name of this sum, the same at all silos and of no other sum."""
    silos: int
    """How many silos may take part; regions count as one."""
    number: int | None = None
    """This silo's number in the sum, from 1 to --silos and no other's; by default that of `measure --silo`. A region
    needs one."""
    threshold: int | None = None
    """How many must stay to the end, more than half; by default two thirds."""
    start: Path = Path("start.safetensors")
    """The common starting model."""
    state: Path = Path("secure.state")
    """What this silo keeps for itself: never mail, copy or restore it."""
    out: Path = Path("keys.safetensors")
    """The letter."""
    model: str | None = None
    """module:function, where the start is of a network of your own."""


@dataclasses.dataclass(frozen=True)
class ShareSettings:
    """A silo's second letter: sealed shares of its secrets, so that it may drop out. Mail it to everybody.

    It prints the fingerprint of all keys, which silos tell each other without the server.
    """

    files: Annotated[tuple[Path, ...], Positional]
    """Everybody's first letters, or a folder of them."""
    state: Path = Path("secure.state")
    """What this silo keeps for itself."""
    out: Path = Path("shares.safetensors")
    """The letter."""


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """A silo's third letter: its payload under masks. Mail it to the server."""

    files: Annotated[tuple[Path, ...], Positional]
    """Everybody's second letters, or a folder of them."""
    payload: Path
    """This silo's payload file or region, as in the first step."""
    fingerprint: str
    """The fingerprint that another silo told you, not the server."""
    start: Path = Path("start.safetensors")
    """The common starting model."""
    state: Path = Path("secure.state")
    """What this silo keeps for itself."""
    out: Path = Path("masked.safetensors")
    """The letter."""
    model: str | None = None
    """module:function, where the start is of a network of your own."""


@dataclasses.dataclass(frozen=True)
class RevealSettings:
    """A silo's last letter: its shares of what hides the sum. Mail it to the server.

    A silo answers to one list, and never to another.
    """

    stayed: tuple[int, ...]
    """The silos whose third letters have arrived, as the server says."""
    state: Path = Path("secure.state")
    """What this silo keeps for itself."""
    out: Path = Path("revealed.safetensors")
    """The letter."""


@dataclasses.dataclass(frozen=True)
class SumSettings:
    """The server's part: all letters in, the global model and a report out."""

    files: Annotated[tuple[Path, ...], Positional]
    """Letters of all steps, or a folder of them."""
    start: Path = Path("start.safetensors")
    """The common starting model."""
    out: Path = Path("global.safetensors")
    """The global model; beside it the report, as .json."""
    model: str | None = None
    """module:function, where the start is of a network of your own."""


Step = (
    Annotated[JoinSettings, subcommand("join", prefix_name=False)]
    | Annotated[ShareSettings, subcommand("share", prefix_name=False)]
    | Annotated[MaskSettings, subcommand("mask", prefix_name=False)]
    | Annotated[RevealSettings, subcommand("reveal", prefix_name=False)]
    | Annotated[SumSettings, subcommand("merge", prefix_name=False)]
)


@dataclasses.dataclass(frozen=True)
class SecureSettings:
    """Merge payloads of a rule that adds by letters, so that the server sees their sum alone (docs/silos.md)."""

    step: Annotated[Step, tyro.conf.arg(name="")]


def secure(settings: SecureSettings) -> None:
    """Take one step.

    Raises:
        ValueError: a letter is refused, or settings do not work.
    """
    try:
        from . import _secure_server as server
        from . import _secure_silo as silo
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}: secure sums need pip install 'fedfisher-jax[privacy]'") from error
    steps: dict[type, Callable[[Any], Any]] = {JoinSettings: silo.join, ShareSettings: silo.share}
    steps[MaskSettings], steps[RevealSettings], steps[SumSettings] = silo.mask, silo.reveal, server.merge
    steps[type(settings.step)](settings.step)
