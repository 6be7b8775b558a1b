"""Sums that hide their terms: pairwise masks that cancel, after Bonawitz et al. (2017, eprint 2017/281).

Every pair of clients agrees on a key (X25519) from which both derive one mask (HKDF, ChaCha20); one adds it, the other
subtracts it. Each also adds a mask of its own. Both are recoverable, but for no client both, from shares that every
client has sent to every other through authenticated encryption: so a client may drop out, and a late message of one
that was given up stays hidden. The server sees sums alone, as long as fewer than `threshold` clients collude with it.

The functions below are what client and server compute between messages; `secure_sum` plays all of them in one process.
Against a server that lies about who is there, the number of clients is agreed on, the threshold is more than half of
it, and a client answers to one story alone (`_agreement`); keys are not certified (docs/silos.md has the threat model).
"""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
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
from ._agreement import MaskingKeys, Round, RoundVoid, Secrets, answer_once, commitment, require_client, require_keys

KEY_BYTES, NONCE_BYTES = 32, 12


class Revealed(NamedTuple):
    """A client's shares, by whose they are: the seed's of those who stayed, the masking key's of others."""

    seeds: dict[int, bytes]
    maskings: dict[int, bytes]


# ---- client ----------------------------------------------------------------------------------------------------------


def join(number: int) -> tuple[Secrets, MaskingKeys]:
    """Fresh keys, to be used in one round."""
    masking, channel = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    seed = os.urandom(KEY_BYTES)
    keys = MaskingKeys(
        masking.public_key().public_bytes_raw(), channel.public_key().public_bytes_raw(), commitment(seed)
    )
    return Secrets(number, masking, channel, seed, {}), keys


def share(settings: Round, secrets: Secrets, keys: Mapping[int, MaskingKeys]) -> dict[int, bytes]:
    """Encrypted shares of seed and masking key, for every client that sent keys (itself included).

    Raises:
        RoundVoid: fewer than `threshold` clients are there.
        ValueError: the keys are not of the agreed clients, or others than this client was shown before.
    """
    require_client(settings, secrets, keys)
    holders = sorted(keys)
    seeds = shamir.split(secrets.seed, settings.threshold, holders)
    maskings = shamir.split(_clamped(secrets.masking.private_bytes_raw()), settings.threshold, holders)
    sealed = {}
    for holder in holders:
        nonce = os.urandom(NONCE_BYTES)
        box = ChaCha20Poly1305(_channel(settings, secrets, keys[holder], holder, secrets.number, holder))
        context = _context(settings, secrets.number, holder)
        sealed[holder] = nonce + box.encrypt(nonce, seeds[holder] + maskings[holder], context)
    return sealed


def mask(settings: Round, secrets: Secrets, keys: Mapping[int, MaskingKeys], values: np.ndarray) -> np.ndarray:
    """The client's uint64 numbers with its own mask and a pairwise one with every other client in `keys`.

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
    masked = values + _stream(_derived(settings, secrets.seed, b"own"), values.size)
    for other, key in keys.items():
        if other != secrets.number:
            masked = masked + _signed(settings, secrets.masking, key, secrets.number, other, values.size)
    return masked


def reveal(
    settings: Round,
    secrets: Secrets,
    keys: Mapping[int, MaskingKeys],
    sealed: Mapping[int, bytes],
    stayed: Collection[int],
) -> Revealed:
    """This client's shares of what the server needs to unmask the sum: for nobody both, seed and masking key.

    Args:
        settings: the round's settings.
        secrets: this client's secrets.
        keys: as in `mask`.
        sealed: what each of them encrypted for this client.
        stayed: those whose masked numbers have arrived, says the server. From answers to two different lists it could
            unmask single clients, so a client answers to the first one alone.

    Raises:
        RoundVoid: fewer than `threshold` stayed.
        ValueError: a message was changed on its way, somebody stayed who never came, or a second list.
    """
    require_client(settings, secrets, keys)
    if len(set(stayed)) < settings.threshold:
        raise RoundVoid(f"round: {len(set(stayed))} clients stayed, the threshold is {settings.threshold}")
    if more := set(stayed) - set(keys):
        raise ValueError(f"stayed: got {_listed(more)}, expected clients that sent keys")
    if odd := set(sealed) ^ set(keys):
        raise ValueError(f"sealed: {_listed(odd)} missing, or never sent keys; expected a message of each that did")
    result = Revealed({}, {})
    for sender, message in sealed.items():
        seed, masking = _opened(settings, secrets, keys[sender], sender, message)
        if sender in stayed:
            result.seeds[sender] = seed
        else:
            result.maskings[sender] = masking
    answer_once(secrets, "stayed", frozenset(stayed))
    return result


# ---- server ----------------------------------------------------------------------------------------------------------


def unmask(
    settings: Round, keys: Mapping[int, MaskingKeys], masked: Mapping[int, np.ndarray], revealed: Mapping[int, Revealed]
) -> np.ndarray:
    """Σ of the values of all clients in `masked`, uint64 modulo 2^64.

    Every secret that is restored is compared with what its client committed to, so that the sum is right or an error.

    Args:
        settings: the round's settings.
        keys: keys of all whom the others expected, see `mask`.
        masked: what arrived.
        revealed: answers to `reveal`, from at least `threshold` clients.

    Raises:
        RoundVoid: too few answers.
        ValueError: a share is missing or was changed, or masked numbers differ in form; the client is named.
    """
    require_keys(settings, keys)
    if len(revealed) < settings.threshold or len(masked) < settings.threshold:
        raise RoundVoid(
            f"round: {min(len(revealed), len(masked))} clients stayed, the threshold is {settings.threshold}"
        )
    for name, given in (("masked", masked), ("revealed", revealed)):
        if more := set(given) - set(keys):
            raise ValueError(f"{name}: got {_listed(more)}, expected clients that sent keys")
    size = len(next(iter(masked.values())))
    for number, words in masked.items():
        require_words(f"masked: client {number}", words, size)
    total = np.asarray(np.sum(list(masked.values()), axis=0, dtype=np.uint64))
    for number in masked:
        shares = {holder: answer.seeds.get(number) for holder, answer in revealed.items()}
        seed = _restored(settings, "seed", number, shares, lambda secret, n=number: commitment(secret) == keys[n].seed)
        total = total - _stream(_derived(settings, seed, b"own"), total.size)
    for number in set(keys) - set(masked):
        shares = {holder: answer.maskings.get(number) for holder, answer in revealed.items()}
        is_key = lambda secret, n=number: secret == _clamped(secret) and _public(secret) == keys[n].masking  # noqa: E731
        masking = X25519PrivateKey.from_private_bytes(_restored(settings, "masking key", number, shares, is_key))
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
        values: uint64 [n] each, of `fixed_point.encode`; other types do not wrap as masks do, and are refused.
        threshold: clients that must stay; default two thirds, rounded up.
        silent: clients that drop out after they sent keys and shares, before their masked numbers.
        lost: clients that drop out after their masked numbers; these count.
        dropouts: "void" declares the round void as soon as one is silent, and nothing is unmasked.

    Raises:
        RoundVoid: too many dropped out.
        ValueError: values of another type or of different lengths, or clients that are none.
    """
    count = len(values)
    if dropouts not in ("recover", "void"):
        raise ValueError(f"dropouts: got {dropouts!r}, expected 'recover' or 'void'")
    for name, numbers in (("silent", silent), ("lost", lost)):
        if more := set(numbers) - set(range(1, count + 1)):
            raise ValueError(f"{name}: got {_listed(more)}, expected numbers from 1 to {count}")
    for place, words in enumerate(values):
        require_words(f"values[{place}]", words, len(values[0]))
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


def require_words(name: str, values: np.ndarray, size: int | None = None) -> None:
    """Refuse what is no vector of uint64: sums of anything else do not wrap as masks do.

    Raises:
        ValueError: another type or shape.
    """
    if not isinstance(values, np.ndarray) or values.dtype != np.uint64 or values.ndim != 1:
        form = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"{name}: got {form}, expected uint64 [n], see fixed_point.encode")
    if size is not None and len(values) != size:
        raise ValueError(f"{name}: got {len(values)} numbers, expected {size} as of the first client")


def _channel(settings: Round, secrets: Secrets, key: MaskingKeys, other: int, sender: int, receiver: int) -> bytes:
    shared = _exchange(secrets.channel, key.channel, other)
    return _derived(settings, shared, b"channel" + _pair(sender, receiver))


def _opened(settings: Round, secrets: Secrets, key: MaskingKeys, sender: int, message: bytes) -> tuple[bytes, bytes]:
    """A sealed message's two shares: of the sender's seed, and of its masking key."""
    box = ChaCha20Poly1305(_channel(settings, secrets, key, sender, sender, secrets.number))
    context = _context(settings, sender, secrets.number)
    try:
        opened = box.decrypt(message[:NONCE_BYTES], message[NONCE_BYTES:], context)
    except (InvalidTag, ValueError, TypeError) as error:  # shorter than a nonce, or no bytes
        raise ValueError(f"sealed: the message of client {sender} was changed on its way") from error
    if len(opened) != 2 * shamir.SHARE_BYTES:
        raise ValueError(f"sealed: the message of client {sender} holds no two shares")
    return opened[: shamir.SHARE_BYTES], opened[shamir.SHARE_BYTES :]


def _restored(
    settings: Round, what: str, number: int, shares: Mapping[int, bytes | None], right: Callable[[bytes], bool]
) -> bytes:
    """The secret of client `number`, all of whose shares fit and which is what the client committed to.

    Raises:
        ValueError: a share is missing or wrong; with more than `threshold` shares a single wrong one is found.
    """
    given = {holder: share for holder, share in shares.items() if share is not None}
    if absent := set(shares) - set(given):
        raise ValueError(
            f"revealed: {_listed(absent)} sent no share of client {number}'s {what}; was it told another list of who "
            "stayed?"
        )

    def secret_of(some: Mapping[int, bytes]) -> bytes | None:
        try:
            secret = shamir.join(some, settings.threshold, KEY_BYTES)
        except ValueError:
            return None
        return secret if right(secret) else None

    if (secret := secret_of(given)) is not None:
        return secret
    for holder in given:
        if secret_of({other: share for other, share in given.items() if other != holder}) is not None:
            raise ValueError(f"revealed: client {holder} sent a wrong share of client {number}'s {what}")
    raise ValueError(f"revealed: the shares of client {number}'s {what} by {_listed(given)} do not give what it said")


def _clamped(masking: bytes) -> bytes:
    """The one of 32 private keys of the same effect that X25519 computes with, so that no changed bit goes unseen."""
    return bytes([masking[0] & 248]) + masking[1:31] + bytes([masking[31] & 127 | 64])


def _public(masking: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(masking).public_key().public_bytes_raw()


def _exchange(own: X25519PrivateKey, public: bytes, other: int) -> bytes:
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # a point of small order
        raise ValueError(f"keys: client {other} sent a key that agrees on nothing") from error


def _signed(settings: Round, own: X25519PrivateKey, key: MaskingKeys, number: int, other: int, size: int) -> np.ndarray:
    """The pairwise mask as client `number` applies it: the smaller number adds, the larger one subtracts."""
    shared = _exchange(own, key.masking, other)
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


def _listed(numbers: Collection[object]) -> str:
    return f"client{'s' * (len(numbers) > 1)} {', '.join(map(str, sorted(numbers, key=str)))}"
