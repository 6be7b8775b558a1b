"""What keeps the server of a secure sum from telling its clients two stories.

A server that hears a client's answers to two lists (of who has keys, or who stayed), or sees two of its masked vectors,
can unmask it (Bonawitz et al. 2017, section 6). So a client's secrets remember what they answered to: the same question
again gets an answer, another one is refused. A round is of the agreed number of clients, of which the threshold is a
majority: no more of them can be made up. What clients seal for each other opens for a client alone that was shown the
same keys of everybody (`story`). And nobody plays another client: keys are signed by identities that are known
beforehand (`certify`), or clients compare the fingerprint of all keys where the server is not in between.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ._agreement import KEY_BYTES, MaskingKeys, Round, RoundVoid, Secrets, commitment


def require_client(settings: Round, secrets: Secrets, keys: Mapping[int, MaskingKeys]) -> bytes:
    """Refuse keys that are not of the agreed clients, or not those that this client has answered to before.

    Returns:
        The story that the client was told, see `story`.

    Raises:
        RoundVoid: fewer than `threshold` clients are there.
        ValueError: what is wrong with whose keys.
    """
    require_keys(settings, keys)
    own = (
        secrets.masking.public_key().public_bytes_raw(),
        secrets.channel.public_key().public_bytes_raw(),
        commitment(secrets.seed),
        secrets.announced,
    )
    if secrets.number not in keys or keys[secrets.number].parts != own:
        raise ValueError(f"keys: client {secrets.number} is not there with its own keys")
    told = story(settings, keys)
    answer_once(secrets, "keys", told)
    return told


def require_keys(settings: Round, keys: Mapping[int, MaskingKeys]) -> None:
    """Refuse more clients than were agreed on, fewer than must stay, and keys that are none or not signed as agreed.

    Raises:
        RoundVoid: fewer than `threshold` clients are there.
        ValueError: what is wrong with whose keys.
    """
    for number, key in keys.items():
        if type(number) is not int or not 1 <= number <= settings.clients:
            raise ValueError(f"keys: got client {number!r}, expected numbers from 1 to the agreed {settings.clients}")
        sized = isinstance(key, MaskingKeys) and all(isinstance(x, bytes) and len(x) == KEY_BYTES for x in key.parts)
        if not sized:
            raise ValueError(f"keys: client {number} sent none, expected four of {KEY_BYTES} bytes")
        if settings.identities:
            require_signed(settings, number, key)
    if len(keys) < settings.threshold:
        raise RoundVoid(f"round: {len(keys)} clients sent keys, the threshold is {settings.threshold}")
    if len({part for key in keys.values() for part in key.parts[:3]}) != 3 * len(keys):
        raise ValueError("keys: expected different ones")


def answer_once(secrets: Secrets, question: str, told: Any) -> None:
    """Remember what a client answers to; refuse another story about the same question.

    Raises:
        ValueError: the client has answered to another one.
    """
    if secrets.answered.setdefault(question, told) != told:
        raise ValueError(f"{question}: client {secrets.number} has answered to others before, and answers to one story")


def certify(settings: Round, number: int, keys: MaskingKeys, identity: Ed25519PrivateKey) -> MaskingKeys:
    """Sign a client's keys for this round, whose label makes those of other rounds worthless.

    Args:
        settings: the round's settings.
        number: the client's number.
        keys: what `join` made.
        identity: the private key to `settings.identities[number - 1]`, which the client keeps from round to round.
    """
    return keys._replace(signature=identity.sign(_statement(settings, number, keys)))


def story(settings: Round, keys: Mapping[int, MaskingKeys]) -> bytes:
    """Compute 32 bytes that stand for the round and everybody's keys: other ones for any other keys."""
    digest = hashlib.sha256(b"fedfisher secure sum story" + _settled(settings))
    for number in sorted(keys):
        digest.update(number.to_bytes(4, "big") + b"".join(keys[number].parts))
    return digest.digest()


def fingerprint(settings: Round, keys: Mapping[int, MaskingKeys]) -> str:
    """Write the story as a text for clients to compare, by telephone say; if it differs, the server lied."""
    text = story(settings, keys).hex()
    return " ".join(text[place : place + 4] for place in range(0, len(text), 4))


def require_signed(settings: Round, number: int, key: MaskingKeys) -> None:
    """Refuse a client's keys that its identity, which the round names, has not signed for this round.

    Raises:
        ValueError: the client is named.
    """
    try:
        public = Ed25519PublicKey.from_public_bytes(settings.identities[number - 1])
        public.verify(key.signature, _statement(settings, number, key))
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ValueError(f"keys: client {number} did not sign them for this round") from error


def _statement(settings: Round, number: int, keys: MaskingKeys) -> bytes:
    return b"fedfisher secure sum keys" + _settled(settings) + number.to_bytes(4, "big") + b"".join(keys.parts)


def _settled(settings: Round) -> bytes:
    """The settings in a fixed number of bytes."""
    sizes = settings.clients.to_bytes(4, "big") + settings.threshold.to_bytes(4, "big")
    return sizes + hashlib.sha256(settings.label).digest() + hashlib.sha256(b"".join(settings.identities)).digest()
