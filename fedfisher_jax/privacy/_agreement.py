"""What the clients of a secure sum agree on before a round, and what each of them keeps and tells everybody."""

import dataclasses
import hashlib
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

LABEL_BYTES, KEY_BYTES = 16, 32


class RoundVoid(ValueError):
    """Too few clients stayed: nothing can be, and nothing is, learned from this round."""


@dataclasses.dataclass(frozen=True)
class Round:
    """What everybody agrees on before the round; numbers of clients go from 1 to `clients`.

    Attributes:
        clients: how many may take part.
        threshold: clients that must stay, more than half of `clients`.
        label: at least 16 bytes, different for every round, or masks repeat.
        identities: Ed25519 public keys of clients 1, 2, …, of 32 bytes each, known beforehand; every client then signs
            the keys that it sends (`certify`). Without them a server could play other clients, which shows when
            clients compare their `fingerprint`.

    Raises:
        ValueError: the threshold is no majority, the label too short, or identities that are not one for each client.
    """

    clients: int
    threshold: int
    label: bytes
    identities: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not self.clients / 2 < self.threshold <= self.clients or not 2 <= self.clients < 2**31:
            raise ValueError(
                f"threshold: got {self.threshold} of {self.clients} clients, expected more than half of at least two"
            )
        if not isinstance(self.label, bytes) or len(self.label) < LABEL_BYTES:
            raise ValueError(f"label: got {self.label!r:.40}, expected at least {LABEL_BYTES} bytes")
        sized = all(isinstance(one, bytes) and len(one) == KEY_BYTES for one in self.identities)
        if self.identities and not (sized and len(self.identities) == len(set(self.identities)) == self.clients):
            raise ValueError(f"identities: expected none, or {self.clients} different ones of {KEY_BYTES} bytes")


class Secrets(NamedTuple):
    """What a client never sends."""

    number: int
    masking: X25519PrivateKey  # agrees on pairwise masks
    channel: X25519PrivateKey  # agrees on keys that encrypt shares
    seed: bytes  # of its own mask
    answered: dict[str, Any]  # what this client has answered to, filled in as it answers
    announced: bytes = bytes(KEY_BYTES)  # as in its keys


class MaskingKeys(NamedTuple):
    """What a client tells everybody."""

    masking: bytes
    channel: bytes
    seed: bytes  # commits to the seed, see `commitment`
    signature: bytes = b""  # of the others in this round, see `certify`
    announced: bytes = bytes(KEY_BYTES)  # SHA-256 of what else the client tells everybody, or zeros

    @property
    def parts(self) -> tuple[bytes, bytes, bytes, bytes]:
        """What is signed and compared."""
        return self.masking, self.channel, self.seed, self.announced


def commitment(seed: bytes) -> bytes:
    """Hash a seed before it is told: no other seed passes for it, and 32 random bytes stay hidden."""
    return hashlib.sha256(b"fedfisher secure sum seed" + seed).digest()
