"""What the clients of a secure sum agree on, and what keeps a server from telling them two stories.

A server that hears a client's answers to two lists (of who has keys, or who stayed), or sees two of its masked vectors,
can unmask it (Bonawitz et al. 2017, section 6). So a client's secrets remember what they answered to: the same question
again gets an answer, another one is refused. And a round is of the agreed number of clients, of which the threshold is
a majority: no more of them can be made up.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

LABEL_BYTES = 16


class RoundVoid(ValueError):
    """Too few clients stayed: nothing can be, and nothing is, learned from this round."""


@dataclasses.dataclass(frozen=True)
class Round:
    """What everybody agrees on before the round; numbers of clients go from 1 to `clients`.

    Attributes:
        clients: how many may take part.
        threshold: clients that must stay, more than half of `clients`.
        label: at least 16 bytes, different for every round, or masks repeat.

    Raises:
        ValueError: the threshold is no majority, or the label too short.
    """

    clients: int
    threshold: int
    label: bytes

    def __post_init__(self) -> None:
        if not self.clients / 2 < self.threshold <= self.clients or not 2 <= self.clients < 2**31:
            raise ValueError(
                f"threshold: got {self.threshold} of {self.clients} clients, expected more than half of at least two"
            )
        if not isinstance(self.label, bytes) or len(self.label) < LABEL_BYTES:
            raise ValueError(f"label: got {self.label!r:.40}, expected at least {LABEL_BYTES} bytes")


class Secrets(NamedTuple):
    """What a client never sends."""

    number: int
    masking: X25519PrivateKey  # agrees on pairwise masks
    channel: X25519PrivateKey  # agrees on keys that encrypt shares
    seed: bytes  # of its own mask
    answered: dict[str, Any]  # what this client has answered to, filled in as it answers


class MaskingKeys(NamedTuple):
    """What a client tells everybody."""

    masking: bytes
    channel: bytes
    seed: bytes  # commits to the seed, see `commitment`


def commitment(seed: bytes) -> bytes:
    """What a client says of its seed beforehand: no other seed passes for it, and 32 random bytes stay hidden."""
    return hashlib.sha256(b"fedfisher secure sum seed" + seed).digest()


def require_client(settings: Round, secrets: Secrets, keys: Mapping[int, MaskingKeys]) -> None:
    """Refuse keys that are not of the agreed clients, or not those that this client has answered to before.

    Raises:
        RoundVoid: fewer than `threshold` clients are there.
        ValueError: what is wrong with whose keys.
    """
    require_keys(settings, keys)
    own = MaskingKeys(
        secrets.masking.public_key().public_bytes_raw(),
        secrets.channel.public_key().public_bytes_raw(),
        commitment(secrets.seed),
    )
    if keys.get(secrets.number) != own:
        raise ValueError(f"keys: client {secrets.number} is not there with its own keys")
    answer_once(secrets, "keys", (settings, frozenset(keys.items())))


def require_keys(settings: Round, keys: Mapping[int, MaskingKeys]) -> None:
    """Refuse more clients than were agreed on, fewer than must stay, and keys that are none.

    Raises:
        RoundVoid: fewer than `threshold` clients are there.
        ValueError: what is wrong with whose keys.
    """
    for number, key in keys.items():
        if type(number) is not int or not 1 <= number <= settings.clients:
            raise ValueError(f"keys: got client {number!r}, expected numbers from 1 to the agreed {settings.clients}")
        if not isinstance(key, MaskingKeys) or not all(isinstance(part, bytes) and len(part) == 32 for part in key):
            raise ValueError(f"keys: client {number} sent none, expected three of 32 bytes")
    if len(keys) < settings.threshold:
        raise RoundVoid(f"round: {len(keys)} clients sent keys, the threshold is {settings.threshold}")
    if len({part for key in keys.values() for part in key}) != len(MaskingKeys._fields) * len(keys):
        raise ValueError("keys: expected different ones")


def answer_once(secrets: Secrets, question: str, story: Any) -> None:
    """Remember what a client answers to; refuse another story about the same question.

    Raises:
        ValueError: the client has answered to another one.
    """
    if secrets.answered.setdefault(question, story) != story:
        raise ValueError(f"{question}: client {secrets.number} has answered to others before, and answers to one story")
