"""What a silo keeps of a secure sum between its letters: its secrets, and which questions it has answered.

The state is written before an answer leaves, so that a silo which is killed or restarted answers to the same story as
before. It must not be copied, or restored from a backup: from two states a silo would answer to two stories. Of two
commands at once in a state's folder one is refused (`_files.only_writer`).
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from .. import __version__, _files
from ..payload import Limits, PayloadError
from ..payload import _container as container
from ._agreement import MaskingKeys, Round, Secrets
from ._secure_letters import hexed, round_of, unhexed

FORMAT, HOLDS = 3, "secure sum: a silo's secrets, for nobody else"


class State(NamedTuple):
    """A silo's part in one secure sum."""

    name: str  # of the round
    settings: Round
    secrets: Secrets
    keys: dict[int, MaskingKeys] = {}  # everybody's, since this silo was shown them
    scales: dict[int, list[int]] = {}  # everybody's
    sealed: dict[int, bytes] = {}  # what this silo sealed, by the silo that it is for
    inbox: dict[int, bytes] = {}  # what others sealed for it
    noise: bytes = b""  # 32 that its noise is drawn from; shared with nobody, as the seed of its mask is


def save(path: str | os.PathLike[str], state: State) -> None:
    """Write the state, readable by its owner alone.

    Raises:
        ValueError: a folder that cannot be written to.
    """
    secrets = state.secrets
    answered = {
        "keys": lambda told: told.hex(),
        "values": lambda told: [told[0], told[1].hex()],
        "stayed": sorted,
    }
    header = {
        "format": FORMAT,
        "holds": HOLDS,
        "library": __version__,
        "round": state.name,
        "silos": state.settings.clients,
        "threshold": state.settings.threshold,
        "identities": [one.hex() for one in state.settings.identities],
        "silo": secrets.number,
        "masking": secrets.masking.private_bytes_raw().hex(),
        "channel": secrets.channel.private_bytes_raw().hex(),
        "seed": secrets.seed.hex(),
        "noise": state.noise.hex(),
        "announced": secrets.announced.hex(),
        "answered": {question: answered[question](told) for question, told in secrets.answered.items()},
        "keys": {str(n): [part.hex() for part in (*keys.parts, keys.signature)] for n, keys in state.keys.items()},
        "scales": {str(number): scales for number, scales in state.scales.items()},
        "sealed": hexed(state.sealed),
        "inbox": hexed(state.inbox),
    }
    try:
        _files.write_atomically(path, container.pack(header, {}), mode=0o600)
    except OSError as error:
        raise ValueError(f"state: cannot write {path}: {error.strerror or error}") from error


def load(path: str | os.PathLike[str]) -> State:
    """Read a silo's own state.

    Raises:
        PayloadError: no such file, damaged, or no state.
    """
    raw, _ = container.unpack(container.read_bytes(path, Limits()), Limits(), str(path))
    if raw.get("holds") != HOLDS or raw.get("format") != FORMAT:
        raise PayloadError(f"{path}: expected a state, from fedfisher secure join")
    told: dict[str, Any] = raw["answered"]
    answered = {
        "keys": lambda: unhexed(told["keys"]),
        "values": lambda: (told["values"][0], unhexed(told["values"][1])),
        "stayed": lambda: frozenset(told["stayed"]),
    }
    secrets = Secrets(
        raw["silo"],
        X25519PrivateKey.from_private_bytes(unhexed(raw["masking"])),
        X25519PrivateKey.from_private_bytes(unhexed(raw["channel"])),
        unhexed(raw["seed"]),
        {question: answered[question]() for question in told},
        unhexed(raw["announced"]),
    )
    keys = {}
    for number, parts in raw["keys"].items():
        masking, channel, seed, announced, signature = map(unhexed, parts)
        keys[int(number)] = MaskingKeys(masking, channel, seed, signature, announced)
    settings = round_of(raw["round"], raw["silos"], raw["threshold"])
    return State(
        raw["round"],
        dataclasses.replace(settings, identities=tuple(map(unhexed, raw["identities"]))),
        secrets,
        keys,
        {int(number): scales for number, scales in raw["scales"].items()},
        {int(number): unhexed(text) for number, text in raw["sealed"].items()},
        {int(number): unhexed(text) for number, text in raw["inbox"].items()},
        unhexed(raw["noise"]),
    )


def require_new(path: str | os.PathLike[str]) -> None:
    """Refuse to write over a state: its silo may have answered already.

    Raises:
        ValueError: there is one.
    """
    if Path(path).exists():
        raise ValueError(f"state: {path} is there already; a silo joins a round once, name another file")
