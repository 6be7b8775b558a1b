"""The files that silos and server mail each other in a secure sum, see `_secure_sum` and docs/silos.md.

A letter is trusted no more than a message: its form is checked here, what it says by the protocol.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..payload import Limits, PayloadError
from ..payload import _container as container
from ._agreement import MaskingKeys, Round
from ._fixed_point import ZERO
from ._secure_client import Revealed

FORMAT = 2
KEYS, SHARES, MASKED, REVEALED = (
    f"secure sum: {what}" for what in ("keys", "sealed shares", "masked numbers", "shares")
)
MOST_NAME, MOST_SILOS = 200, 10_000
MOST_SCALE = 1024  # exponent of the largest float64


class Announced(NamedTuple):
    """A silo's keys, and what else it tells everybody before a sum."""

    keys: MaskingKeys
    template: dict[str, Any]  # the JSON header of its payload, without numbers of examples
    scales: list[int]  # of its contribution, see `_secure_merge.scales`


class Letter(NamedTuple):
    """A letter whose form is right; only what its kind has is there."""

    path: str
    holds: str
    name: str  # of the round
    settings: Round
    silo: int
    announced: Announced | None = None
    story: bytes = b""  # which keys the silo was shown, see `_one_story.story`
    sealed: dict[int, bytes] = {}  # by the silo that it is for
    words: np.ndarray | None = None  # masked
    stayed: frozenset[int] = frozenset()
    revealed: Revealed | None = None


def round_of(name: str, clients: int, threshold: int | None = None) -> Round:
    """Make what silos agree on when they agree on a name, which every sum has its own of.

    Args:
        name: any text, such as "trial 7, first exchange".
        clients: how many silos may take part; their numbers are 1 to `clients`.
        threshold: how many must stay; by default two thirds, rounded up, and more than half.

    Raises:
        ValueError: a name that is none, or a threshold that is no majority.
    """
    if not 1 <= len(name) <= MOST_NAME or not name.isprintable():
        raise ValueError(f"round: got {name[:40]!r}, expected 1 to {MOST_NAME} printable characters")
    if not 2 <= clients <= MOST_SILOS:
        raise ValueError(f"silos: got {clients}, expected 2 to {MOST_SILOS}")
    wanted = max(clients // 2 + 1, -(-2 * clients // 3)) if threshold is None else threshold
    return Round(clients, wanted, hashlib.sha256(b"fedfisher secure sum round" + name.encode()).digest())


def agreed_by(name: str, identities: tuple[bytes, ...], threshold: int | None) -> Round:
    """Make what silos that know each other's public keys agree on; these number the silos."""
    return dataclasses.replace(round_of(name, len(identities), threshold), identities=identities)


def digest_of(template: Mapping[str, Any], scales: list[int]) -> bytes:
    """Compute the 32 bytes that stand for what a silo announces; its keys, and so the fingerprint, have them."""
    return hashlib.sha256(container._canonical({"template": template, "scales": scales}).encode()).digest()


def write(path: str | os.PathLike[str], letter: Letter) -> None:
    """Write a letter whole or not at all.

    Raises:
        ValueError: a folder that cannot be written to.
    """
    container.write_bytes(path, dumps(letter))


def dumps(letter: Letter) -> bytes:
    """Write a letter's bytes."""
    body: dict[str, Any] = {}
    if letter.announced is not None:
        body |= {
            "keys": [part.hex() for part in letter.announced.keys[:3]],
            "template": letter.announced.template,
            "scales": letter.announced.scales,
            "signature": letter.announced.keys.signature.hex(),
        }
    else:
        body["story"] = letter.story.hex()
    if letter.holds == SHARES:
        body["sealed"] = hexed(letter.sealed)
    if letter.revealed is not None:
        body |= {
            "stayed": sorted(letter.stayed),
            "seeds": hexed(letter.revealed.seeds),
            "maskings": hexed(letter.revealed.maskings),
        }
    settings = {"round": letter.name, "silos": letter.settings.clients, "threshold": letter.settings.threshold}
    header = {"format": FORMAT, "holds": letter.holds, "library": __version__, "silo": letter.silo, **settings, **body}
    words = {} if letter.words is None else {"masked": letter.words.astype("<u8").view(np.uint8)}
    return container.pack(header, words)


def read(path: str | os.PathLike[str], holds: str | None = None, limits: Limits = Limits()) -> Letter:
    """Read a letter's file, as `loads` reads its bytes."""
    return loads(container.read_bytes(path, limits), str(path), holds, limits)


def loads(data: bytes, path: str, holds: str | None = None, limits: Limits = Limits()) -> Letter:
    """Read a letter's bytes.

    Args:
        data: the bytes.
        path: what messages call it.
        holds: the kind of letter that is expected; any where it is None.
        limits: caps on what is read.

    Raises:
        PayloadError: it is refused, with the reason.
    """
    raw, arrays = container.unpack(data, limits, path)
    kind = raw.get("holds")
    if kind not in BODIES or (holds is not None and kind != holds):
        said = f"expected {holds or 'a letter of a secure sum'}"
        raise PayloadError(f"{path}: got {str(kind)[:60]!r}, {said}")
    wanted = {"format", "holds", "library", "silo", "round", "silos", "threshold", *BODIES[kind]}
    try:
        if set(raw) != wanted or raw["format"] != FORMAT or set(arrays) != ({"masked"} if kind == MASKED else set()):
            raise ValueError(f"expected format {FORMAT} with {', '.join(sorted(wanted))}")
        if not isinstance(raw["round"], str):
            raise ValueError("round: expected a text")
        sizes = [_number(raw, key) for key in ("silos", "threshold", "silo")]
        letter = Letter(path, kind, raw["round"], round_of(raw["round"], *sizes[:2]), sizes[2])
        if not 1 <= letter.silo <= letter.settings.clients:
            raise ValueError(f"silo: got {letter.silo}, expected 1 to {letter.settings.clients}")
        return _body(letter, raw, arrays)
    except ValueError as error:
        raise error if isinstance(error, PayloadError) else PayloadError(f"{path}: {error}") from error


BODIES = {
    KEYS: ("keys", "template", "scales", "signature"),
    SHARES: ("story", "sealed"),
    MASKED: ("story",),
    REVEALED: ("story", "stayed", "seeds", "maskings"),
}


def _body(letter: Letter, raw: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Letter:
    if letter.holds == KEYS:
        scales, keys, template = raw["scales"], raw["keys"], raw["template"]
        whole = isinstance(scales, list) and all(type(e) is int and ZERO <= e <= MOST_SCALE for e in scales)
        if not whole or not isinstance(keys, list) or len(keys) != 3 or not isinstance(template, dict):
            raise ValueError("keys, scales, template: expected three keys, exponents of numbers, and an object")
        masking, channel, seed = (unhexed(key) for key in keys)
        said = MaskingKeys(masking, channel, seed, unhexed(raw["signature"]), digest_of(template, scales))
        return letter._replace(announced=Announced(said, template, scales))
    letter = letter._replace(story=unhexed(raw["story"]))
    if letter.holds == SHARES:
        return letter._replace(sealed=_held(raw["sealed"]))
    if letter.holds == MASKED:
        words = arrays["masked"]
        if words.dtype != np.uint8 or words.ndim != 1 or len(words) % 8:
            raise ValueError(f"masked: got {words.dtype} {words.shape}, expected bytes of uint64")
        return letter._replace(words=np.frombuffer(words.tobytes(), "<u8").astype(np.uint64))
    stayed = raw["stayed"]
    if not isinstance(stayed, list) or not all(type(n) is int for n in stayed):
        raise ValueError("stayed: expected a list of numbers of silos")
    revealed = Revealed(_held(raw["seeds"]), _held(raw["maskings"]))
    return letter._replace(stayed=frozenset(stayed), revealed=revealed)


def by_silo(letters: list[Letter], first: Letter | None = None) -> dict[int, Letter]:
    """Sort letters of one kind and one round by their silos.

    Raises:
        PayloadError: letters of two rounds, or two of one silo that differ in what they say.
    """
    found: dict[int, Letter] = {}
    for letter in letters:
        like = first or letters[0]
        if (letter.name, letter.settings) != (like.name, dataclasses.replace(like.settings, identities=())):
            raise PayloadError(f"{letter.path}: of the round {letter.name!r}, {like.path} is of {like.name!r}")
        if letter.silo in found:
            raise PayloadError(f"{letter.path}: of silo {letter.silo}, as is {found[letter.silo].path}")
        found[letter.silo] = letter
    return dict(sorted(found.items()))


def hexed(values: Mapping[int, bytes]) -> dict[str, str]:
    """Write bytes by numbers as JSON holds them."""
    return {str(number): value.hex() for number, value in sorted(values.items())}


def unhexed(text: Any) -> bytes:
    """Read bytes of a hexadecimal text.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(text, str) or not set(text) <= set("0123456789abcdef") or len(text) % 2:
        raise ValueError(f"got {str(text)[:40]!r}, expected bytes in hexadecimal")
    return bytes.fromhex(text)


def _held(value: Any) -> dict[int, bytes]:
    if not isinstance(value, dict) or not all(key.isascii() and key.isdigit() and len(key) < 10 for key in value):
        raise ValueError("expected an object with numbers of silos")
    return {int(key): unhexed(text) for key, text in value.items()}


def _number(raw: Mapping[str, Any], key: str) -> int:
    if type(raw[key]) is not int or not 0 <= raw[key] < 2**31:
        raise ValueError(f"{key}: expected a whole number, got {str(raw[key])[:40]!r}")
    return raw[key]
