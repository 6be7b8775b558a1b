"""What a client of a secure sum computes between messages, see `_secure_sum`."""

import hashlib
import os
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from . import _shamir as shamir
from ._agreement import KEY_BYTES, MaskingKeys, Round, RoundVoid, Secrets, commitment
from ._masks import clamped, derived, exchange, listed, pair, pairwise_mask, require_words, stream
from ._one_story import answer_once, require_client

NONCE_BYTES = 12


class Revealed(NamedTuple):
    """A client's shares, by whose they are: the seed's of those who stayed, the masking key's of others."""

    seeds: dict[int, bytes]
    maskings: dict[int, bytes]


# ---- client ----------------------------------------------------------------------------------------------------------


def join(number: int, announced: bytes = bytes(KEY_BYTES)) -> tuple[Secrets, MaskingKeys]:
    """Make fresh keys, to be used in one round.

    Args:
        number: the client's number.
        announced: SHA-256 of what else the client tells everybody with its keys, so that all are told the same.
    """
    masking, channel = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    seed = os.urandom(KEY_BYTES)
    keys = MaskingKeys(
        masking.public_key().public_bytes_raw(),
        channel.public_key().public_bytes_raw(),
        commitment(seed),
        announced=announced,
    )
    return Secrets(number, masking, channel, seed, {}, announced), keys


def share(settings: Round, secrets: Secrets, keys: Mapping[int, MaskingKeys]) -> dict[int, bytes]:
    """Encrypt shares of seed and masking key for every client that sent keys (itself included).

    Raises:
        RoundVoid: fewer than `threshold` clients are there.
        ValueError: the keys are not of the agreed clients, or others than this client was shown before.
    """
    told = require_client(settings, secrets, keys)
    holders = sorted(keys)
    seeds = shamir.split(secrets.seed, settings.threshold, holders)
    maskings = shamir.split(clamped(secrets.masking.private_bytes_raw()), settings.threshold, holders)
    sealed = {}
    for holder in holders:
        nonce = os.urandom(NONCE_BYTES)
        box = ChaCha20Poly1305(_channel(settings, secrets, keys[holder], holder, secrets.number, holder))
        about = told + pair(secrets.number, holder)
        sealed[holder] = nonce + box.encrypt(nonce, seeds[holder] + maskings[holder], about)
    return sealed


def mask(settings: Round, secrets: Secrets, keys: Mapping[int, MaskingKeys], values: np.ndarray) -> np.ndarray:
    """Add the client's own mask and a pairwise one with every other client in `keys` to its uint64 numbers.

    Args:
        settings: the round's settings.
        secrets: this client's secrets.
        keys: keys of all whose shares it has; those are the ones that it expects to send masked numbers, too.
        values: uint64 [n], of `fixed_point.encode`.

    Raises:
        RoundVoid: fewer than `threshold` clients are there.
        ValueError: values of another type, others than were masked before (two masked vectors tell their difference),
            or keys as in `share`.
    """
    require_client(settings, secrets, keys)
    require_words("values", values)
    answer_once(secrets, "values", (len(values), hashlib.sha256(values.tobytes()).digest()))
    masked = values + stream(derived(settings, secrets.seed, b"own"), values.size)
    for other, key in keys.items():
        if other != secrets.number:
            masked = masked + pairwise_mask(settings, secrets.masking, key, secrets.number, other, values.size)
    return masked


def require_sealed(
    settings: Round, secrets: Secrets, keys: Mapping[int, MaskingKeys], sealed: Mapping[int, bytes]
) -> None:
    """Open what others sealed for this client, so that it masks nothing for a sum that nobody can unmask.

    Raises:
        ValueError: as in `reveal`.
    """
    told = require_client(settings, secrets, keys)
    for sender, message in sealed.items():
        _opened(settings, secrets, told, keys[sender], sender, message)


def reveal(
    settings: Round,
    secrets: Secrets,
    keys: Mapping[int, MaskingKeys],
    sealed: Mapping[int, bytes],
    stayed: Collection[int],
) -> Revealed:
    """Give this client's shares of what the server needs to unmask the sum: of nobody both seed and key.

    Args:
        settings: the round's settings.
        secrets: this client's secrets.
        keys: as in `mask`.
        sealed: what each of them encrypted for this client.
        stayed: those whose masked numbers have arrived, says the server. From answers to two different lists it could
            unmask single clients, so a client answers to the first one alone.

    Raises:
        RoundVoid: fewer than `threshold` stayed.
        ValueError: a message was changed on its way, or sealed by a client that was shown other keys; somebody stayed
            who never came, or a second list.
    """
    told = require_client(settings, secrets, keys)
    if len(set(stayed)) < settings.threshold:
        raise RoundVoid(f"round: {len(set(stayed))} clients stayed, the threshold is {settings.threshold}")
    if more := set(stayed) - set(keys):
        raise ValueError(f"stayed: got {listed(more)}, expected clients that sent keys")
    if odd := set(sealed) ^ set(keys):
        raise ValueError(f"sealed: {listed(odd)} missing, or never sent keys; expected a message of each that did")
    result = Revealed({}, {})
    for sender, message in sealed.items():
        seed, masking = _opened(settings, secrets, told, keys[sender], sender, message)
        if sender in stayed:
            result.seeds[sender] = seed
        else:
            result.maskings[sender] = masking
    answer_once(secrets, "stayed", frozenset(stayed))
    return result


def _channel(settings: Round, secrets: Secrets, key: MaskingKeys, other: int, sender: int, receiver: int) -> bytes:
    shared = exchange(secrets.channel, key.channel, other)
    return derived(settings, shared, b"channel" + pair(sender, receiver))


def _opened(
    settings: Round, secrets: Secrets, told: bytes, key: MaskingKeys, sender: int, message: bytes
) -> tuple[bytes, bytes]:
    """A sealed message's two shares: of the sender's seed, and of its masking key."""
    box = ChaCha20Poly1305(_channel(settings, secrets, key, sender, sender, secrets.number))
    about = told + pair(sender, secrets.number)
    try:
        opened = box.decrypt(message[:NONCE_BYTES], message[NONCE_BYTES:], about)
    except (InvalidTag, ValueError, TypeError) as error:  # shorter than a nonce, or no bytes
        said = f"the message of client {sender} was changed on its way, or that client was shown other keys"
        raise ValueError(f"sealed: {said}") from error
    if len(opened) != 2 * shamir.SHARE_BYTES:
        raise ValueError(f"sealed: the message of client {sender} holds no two shares")
    return opened[: shamir.SHARE_BYTES], opened[shamir.SHARE_BYTES :]
