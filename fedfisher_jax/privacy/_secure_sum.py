"""Sums that hide their terms: pairwise masks that cancel, after Bonawitz et al. (2017, eprint 2017/281).

Every pair of clients agrees on a key (X25519) from which both derive one mask (HKDF, ChaCha20); one adds it, the other
subtracts it. Each also adds a mask of its own. Both are recoverable, but for no client both, from shares that every
client has sent to every other through authenticated encryption: so a client may drop out, and a late message of one
that was given up stays hidden. The server sees sums alone, as long as fewer than `threshold` clients collude with it.

The functions below are what client and server compute between messages; `secure_sum` plays all of them in one process.
Against a server that lies about who is there, threshold must be more than half, which is checked, and a client must
answer `reveal` once a round, which is the caller's part, for functions remember nothing; keys are not certified
(docs/silos.md has the threat model).
"""

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from . import _shamir as shamir

KEY_BYTES, NONCE_BYTES = 32, 12


class RoundVoid(ValueError):
    """Too few clients stayed: nothing can be, and nothing is, learned from this round."""


@dataclasses.dataclass(frozen=True)
class Round:
    """What everybody agrees on; numbers of clients start at 1."""

    clients: int
    threshold: int  # clients that must stay, more than half
    label: bytes  # different for every round, or masks repeat

    def __post_init__(self) -> None:
        if not self.clients / 2 < self.threshold <= self.clients or self.clients < 2:
            raise ValueError(
                f"threshold: got {self.threshold} of {self.clients} clients, expected more than half of at least two"
            )
        if len(self.label) < 16:
            raise ValueError(f"label: expected at least 16 bytes, got {len(self.label)}")


class Secrets(NamedTuple):
    """What a client never sends."""

    number: int
    masking: X25519PrivateKey  # agrees on pairwise masks
    channel: X25519PrivateKey  # agrees on keys that encrypt shares
    seed: bytes  # of its own mask


class Keys(NamedTuple):
    """What a client tells everybody."""

    masking: bytes
    channel: bytes


class Revealed(NamedTuple):
    """A client's shares, by whose they are: the seed's of those who stayed, the masking key's of others."""

    seeds: dict[int, bytes]
    maskings: dict[int, bytes]


# ---- client ----------------------------------------------------------------------------------------------------------


def join(number: int) -> tuple[Secrets, Keys]:
    """Fresh keys, to be used in one round."""
    secrets = Secrets(number, X25519PrivateKey.generate(), X25519PrivateKey.generate(), os.urandom(KEY_BYTES))
    return secrets, Keys(
        secrets.masking.public_key().public_bytes_raw(), secrets.channel.public_key().public_bytes_raw()
    )


def share(settings: Round, secrets: Secrets, keys: Mapping[int, Keys]) -> dict[int, bytes]:
    """Encrypted shares of seed and masking key, for every client that sent keys (itself included).

    Raises:
        RoundVoid: fewer than `threshold` clients are there.
    """
    holders = sorted(keys)
    if len(holders) < settings.threshold:
        raise RoundVoid(f"round: {len(holders)} clients sent keys, the threshold is {settings.threshold}")
    if len({key for pair in keys.values() for key in pair}) != 2 * len(keys):
        raise ValueError("keys: expected different ones")
    seeds = shamir.split(secrets.seed, settings.threshold, holders)
    maskings = shamir.split(secrets.masking.private_bytes_raw(), settings.threshold, holders)
    sealed = {}
    for holder in holders:
        nonce = os.urandom(NONCE_BYTES)
        box = ChaCha20Poly1305(_channel(settings, secrets, keys[holder], secrets.number, holder))
        context = _context(settings, secrets.number, holder)
        sealed[holder] = nonce + box.encrypt(nonce, seeds[holder] + maskings[holder], context)
    return sealed


def mask(settings: Round, secrets: Secrets, keys: Mapping[int, Keys], values: np.ndarray) -> np.ndarray:
    """The client's uint64 numbers with its own mask and a pairwise one with every other client in `keys`.

    Args:
        settings: of the round.
        secrets: of this client.
        keys: of all whose shares it has; those are the ones that it expects to send masked numbers, too.
        values: uint64 [n], of `fixed_point.encode`.
    """
    masked = values + _stream(_derived(settings, secrets.seed, b"own"), values.size)
    for other, key in keys.items():
        if other != secrets.number:
            masked = masked + _signed(settings, secrets.masking, key, secrets.number, other, values.size)
    return masked


def reveal(
    settings: Round,
    secrets: Secrets,
    keys: Mapping[int, Keys],
    sealed: Mapping[int, bytes],
    stayed: Collection[int],
) -> Revealed:
    """This client's shares of what the server needs to unmask the sum: for nobody both, seed and masking key.

    Args:
        settings: of the round.
        secrets: of this client.
        keys: as in `mask`.
        sealed: what each of them encrypted for this client.
        stayed: those whose masked numbers have arrived, says the server. The caller answers this once a round and
            never again: from answers to two different lists a server unmasks single clients. Nothing here keeps count.

    Raises:
        RoundVoid: fewer than `threshold` stayed.
        ValueError: a message was changed on its way, or somebody stayed who never came.
    """
    if len(set(stayed)) < settings.threshold:
        raise RoundVoid(f"round: {len(set(stayed))} clients stayed, the threshold is {settings.threshold}")
    if set(stayed) - set(keys) or set(sealed) != set(keys):
        raise ValueError("stayed, sealed: expected clients that sent keys")
    result = Revealed({}, {})
    for sender, message in sealed.items():
        box = ChaCha20Poly1305(_channel(settings, secrets, keys[sender], sender, secrets.number))
        context = _context(settings, sender, secrets.number)
        try:
            opened = box.decrypt(message[:NONCE_BYTES], message[NONCE_BYTES:], context)
        except InvalidTag as error:
            raise ValueError(f"sealed: the message of client {sender} was changed on its way") from error
        seed, masking = opened[: shamir.SHARE_BYTES], opened[shamir.SHARE_BYTES :]
        if sender in stayed:
            result.seeds[sender] = seed
        else:
            result.maskings[sender] = masking
    return result


# ---- server ----------------------------------------------------------------------------------------------------------


def unmask(
    settings: Round, keys: Mapping[int, Keys], masked: Mapping[int, np.ndarray], revealed: Mapping[int, Revealed]
) -> np.ndarray:
    """Σ of the values of all clients in `masked`, uint64 modulo 2^64.

    Args:
        settings: of the round.
        keys: of all whom the others expected, see `mask`.
        masked: what arrived.
        revealed: answers to `reveal`, from at least `threshold` clients.

    Raises:
        RoundVoid: too few answers.
        ValueError: shares that belong to no secret.
    """
    if len(revealed) < settings.threshold or len(masked) < settings.threshold:
        raise RoundVoid(
            f"round: {min(len(revealed), len(masked))} clients stayed, the threshold is {settings.threshold}"
        )
    total = np.asarray(np.sum(list(masked.values()), axis=0, dtype=np.uint64))
    for number in masked:
        shares = {holder: answer.seeds[number] for holder, answer in revealed.items()}
        seed = shamir.join(shares, settings.threshold, KEY_BYTES)
        total = total - _stream(_derived(settings, seed, b"own"), total.size)
    for number in set(keys) - set(masked):
        shares = {holder: answer.maskings[number] for holder, answer in revealed.items()}
        masking = X25519PrivateKey.from_private_bytes(shamir.join(shares, settings.threshold, KEY_BYTES))
        if masking.public_key().public_bytes_raw() != keys[number].masking:
            raise ValueError(f"revealed: the shares of client {number} do not give its key")
        for other in masked:
            total = total + _signed(settings, masking, keys[other], number, other, total.size)
    return np.asarray(total)


# ---- all of them -----------------------------------------------------------------------------------------------------


class Sum(NamedTuple):
    """A round's result, and what the server saw."""

    total: np.ndarray  # uint64 [n]
    contributors: tuple[int, ...]
    masked: dict[int, np.ndarray]


def secure_sum(
    values: Sequence[np.ndarray],
    *,
    threshold: int | None = None,
    silent: Collection[int] = (),
    lost: Collection[int] = (),
    dropouts: Literal["recover", "void"] = "recover",
) -> Sum:
    """One round with all clients in this process; client i (from 1) has `values[i − 1]`.

    Args:
        values: uint64 [n] each.
        threshold: clients that must stay; default two thirds, rounded up.
        silent: clients that drop out after they sent keys and shares, before their masked numbers.
        lost: clients that drop out after their masked numbers; these count.
        dropouts: "void" declares the round void as soon as one is silent, and nothing is unmasked.

    Raises:
        RoundVoid: too many dropped out.
    """
    count = len(values)
    wanted = max(count // 2 + 1, -(-2 * count // 3)) if threshold is None else threshold
    settings = Round(count, wanted, os.urandom(16))
    joined = {number: join(number) for number in range(1, count + 1)}
    keys = {number: public for number, (_, public) in joined.items()}
    secrets = {number: private for number, (private, _) in joined.items()}
    sealed = {number: share(settings, secrets[number], keys) for number in joined}
    masked = {n: mask(settings, secrets[n], keys, values[n - 1]) for n in joined if n not in silent}
    if dropouts == "void" and len(masked) < count:
        raise RoundVoid(f"round: clients {sorted(set(keys) - set(masked))} dropped out")
    inboxes = {number: {sender: sealed[sender][number] for sender in sealed} for number in joined}
    answering = [number for number in masked if number not in lost]
    revealed = {n: reveal(settings, secrets[n], keys, inboxes[n], list(masked)) for n in answering}
    return Sum(unmask(settings, keys, masked, revealed), tuple(masked), masked)


def _channel(settings: Round, secrets: Secrets, key: Keys, sender: int, receiver: int) -> bytes:
    shared = secrets.channel.exchange(X25519PublicKey.from_public_bytes(key.channel))
    return _derived(settings, shared, b"channel" + _pair(sender, receiver))


def _signed(settings: Round, own: X25519PrivateKey, key: Keys, number: int, other: int, size: int) -> np.ndarray:
    """The pairwise mask as client `number` applies it: the smaller number adds, the larger one subtracts."""
    shared = own.exchange(X25519PublicKey.from_public_bytes(key.masking))
    stream = _stream(_derived(settings, shared, b"pair" + _pair(min(number, other), max(number, other))), size)
    return stream if number < other else np.uint64(0) - stream


def _derived(settings: Round, secret: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=settings.label, info=b"fedfisher secure sum " + purpose).derive(secret)


def _stream(key: bytes, size: int) -> np.ndarray:
    """`size` uniform uint64 from a key that is used once."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * size))
    return np.frombuffer(stream, "<u8").astype(np.uint64)


def _context(settings: Round, sender: int, receiver: int) -> bytes:
    return settings.label + _pair(sender, receiver)


def _pair(first: int, second: int) -> bytes:
    return first.to_bytes(4, "big") + second.to_bytes(4, "big")
