"""Masks of a secure sum: what two clients agree on, keys derived from that, and streams of numbers from keys."""

from collections.abc import Collection

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ._agreement import KEY_BYTES, MaskingKeys, Round


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


def clamped(masking: bytes) -> bytes:
    """Choose the one of 32 equal private keys that X25519 computes with, so that no changed bit goes unseen."""
    return bytes([masking[0] & 248]) + masking[1:31] + bytes([masking[31] & 127 | 64])


def public_of(masking: bytes) -> bytes:
    """Compute the public key of a private one, 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(masking).public_key().public_bytes_raw()


def exchange(own: X25519PrivateKey, public: bytes, other: int) -> bytes:
    """Agree on 32 secret bytes with client `other`, of whom the public key is known (X25519, RFC 7748).

    Raises:
        ValueError: a key that agrees with every other one on the same bytes.
    """
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # a point of small order
        raise ValueError(f"keys: client {other} sent a key that agrees on nothing") from error


def pairwise_mask(
    settings: Round, own: X25519PrivateKey, key: MaskingKeys, number: int, other: int, size: int
) -> np.ndarray:
    """Make the pairwise mask as client `number` applies it: the smaller number adds, the larger one subtracts."""
    shared = exchange(own, key.masking, other)
    words = stream(derived(settings, shared, b"pair" + pair(min(number, other), max(number, other))), size)
    return words if number < other else np.uint64(0) - words


def derived(settings: Round, secret: bytes, purpose: bytes) -> bytes:
    """Derive a key for one purpose in one round from a secret (HKDF, RFC 5869)."""
    return HKDF(SHA256(), KEY_BYTES, salt=settings.label, info=b"fedfisher secure sum " + purpose).derive(secret)


def stream(key: bytes, size: int) -> np.ndarray:
    """Draw `size` uniform uint64 from a key that is used once."""
    words = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * size))
    return np.frombuffer(words, "<u8").astype(np.uint64)


def pair(first: int, second: int) -> bytes:
    """Write two clients' numbers as 8 bytes."""
    return first.to_bytes(4, "big") + second.to_bytes(4, "big")


def listed(numbers: Collection[object]) -> str:
    """Name clients in words, in order: "clients 1, 2, 5"."""
    return f"client{'s' * (len(numbers) > 1)} {', '.join(map(str, sorted(numbers, key=str)))}"
