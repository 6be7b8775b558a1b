"""A silo's steps of a secure sum, by mail or live: letters in, the silo's new state and a letter out.

Whoever calls them keeps the state before the letter leaves, see `_secure_state`.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..merge._exact_sums import Sums
from ..payload import Header, PayloadError
from ..payload import _files_of_a_merge as files_of
from ..payload._header import require_same
from . import _fixed_point as fixed_point
from . import _integer_noise as integer_noise
from . import _secure_client as client
from . import _secure_letters as letters
from ._agreement import KEY_BYTES, Round
from ._example_promise import Promise
from ._masks import derived
from ._one_story import certify, require_client, story
from ._secure_letters import Announced, Letter, by_silo, digest_of
from ._secure_merge import resolution, scales, to_vector
from ._secure_state import State


class Own(NamedTuple):
    """What a silo, or a region, adds to the sum, and what it says of that."""

    sums: Sums
    template: dict[str, Any]
    scales: list[int]
    owed: Promise | None  # the noise that it adds its share of


def own_of(sums: Sums, template: Mapping[str, Any], header: Header, file: str) -> Own:
    """Find what a silo announces of its contribution.

    Args:
        sums: the contribution.
        template: the JSON header of its payload; what tells one silo from another is left out.
        header: the same, checked.
        file: what messages call it.

    Raises:
        ValueError: noise that is promised and cannot be kept, or numbers that are not finite.
    """
    owed = owed_by(header, file)
    said = scales(sums.high if owed is None else integer_noise.bounds(sums.high, owed), file)
    quiet = {"name": "", "compression": "none", "codecs": [], "encoded": {}, "examples": 1, "silo": 0}
    return Own(sums, {**template, **quiet}, said, owed)


def join(
    own: Own, number: int, name: str, agreed: Round, identity: Ed25519PrivateKey | None = None
) -> tuple[State, Letter]:
    """Make keys for a sum, and announce the scales of what this silo adds.

    Args:
        own: its contribution.
        number: the silo's number in the sum.
        name: the sum's name.
        agreed: what everybody agrees on.
        identity: signs the keys, where silos have identities.

    Raises:
        ValueError: a number out of range, or noise that is divided among more silos than must stay.
    """
    if not 1 <= number <= agreed.clients:
        raise ValueError(f"number: got silo {number}, expected 1 to {agreed.clients}")
    if own.owed is not None and own.owed.sharers > agreed.threshold:
        raise ValueError(
            f"threshold: got {agreed.threshold}, and the noise is divided among {own.owed.sharers} silos, who must stay"
        )
    secrets, keys = client.join(number, digest_of(own.template, own.scales))
    if identity is not None:
        keys = certify(agreed, number, keys, identity)
    state = State(name, agreed, secrets, noise=os.urandom(KEY_BYTES))
    return state, Letter("", letters.KEYS, name, agreed, number, Announced(keys, own.template, own.scales))


def share(state: State, keys_of: list[Letter]) -> tuple[State, Letter]:
    """Seal shares of this silo's secrets for all silos that joined.

    Raises:
        ValueError: letters that do not belong together, or other keys than this silo was shown before.
        RoundVoid: fewer than the threshold joined.
    """
    there = by_silo(keys_of, _letter(state))
    announced = {number: letter.announced for number, letter in there.items() if letter.announced is not None}
    require_alike(there)
    keys = {number: one.keys for number, one in announced.items()}
    if state.sealed and keys != state.keys:
        require_client(state.settings, state.secrets, keys)  # says which story was another one
    sealed = state.sealed or client.share(state.settings, state.secrets, keys)
    state = state._replace(keys=keys, scales={number: one.scales for number, one in announced.items()}, sealed=sealed)
    return state, _told(state, letters.SHARES)._replace(sealed=sealed)


def mask(state: State, shares_of: list[Letter], own: Own, file: str) -> tuple[State, Letter]:
    """Hide this silo's numbers, if all silos were told the same.

    Args:
        state: after `share`.
        shares_of: everybody's second letters.
        own: as in `join`.
        file: what messages call the contribution.

    Raises:
        ValueError: a letter is missing or does not open, or another contribution than was announced.
    """
    there = by_silo(shares_of, _letter(state))
    inbox = {number: letter.sealed.get(state.secrets.number, b"") for number, letter in there.items()}
    if odd := set(inbox) ^ set(state.keys):
        raise ValueError(f"files: the second letters of silos {sorted(odd)} are missing, or of silos without keys")
    client.require_sealed(state.settings, state.secrets, state.keys, inbox)
    if digest_of(own.template, own.scales) != state.secrets.announced:
        raise ValueError(f"payload: {file} is not what this silo announced when it joined")
    words = client.mask(state.settings, state.secrets, state.keys, _integers(own, state))
    return state._replace(inbox=inbox), _told(state, letters.MASKED)._replace(words=words)


def reveal(state: State, stayed: frozenset[int]) -> tuple[State, Letter]:
    """Answer to the server's list of those who stayed, once.

    Raises:
        ValueError: before `mask`, a list without this silo, or another list than before.
        RoundVoid: fewer than the threshold stayed.
    """
    if not state.inbox:
        raise ValueError(f"state: silo {state.secrets.number} has not masked yet: mask first")
    if state.secrets.number not in stayed:
        raise ValueError(f"stayed: got {sorted(stayed)} without this silo, {state.secrets.number}, which masked")
    revealed = client.reveal(state.settings, state.secrets, state.keys, state.inbox, stayed)
    return state, _told(state, letters.REVEALED)._replace(stayed=stayed, revealed=revealed)


def require_alike(there: Mapping[int, Letter]) -> None:
    """Refuse silos that would add unlike things.

    Raises:
        PayloadError: the letter of one of them, and what differs.
    """
    first = next(iter(there))
    for number in there:
        require_pair_alike(there[number], there[first])


def require_pair_alike(letter: Letter, first: Letter) -> None:
    """Refuse a first letter of a silo that would add something else than another one.

    Raises:
        PayloadError: what differs.
    """
    both = []
    for one in (letter, first):
        if one.announced is None:
            raise PayloadError(f"{one.path}: got a letter of {one.holds}, expected one of {letters.KEYS}")
        both.append((one.announced, files_of.checked(one.announced.template, 0, file=one.path)))
    (said, header), (said_first, header_first) = both
    require_same(header, header_first, letter.path, first.path)
    if not integer_noise.is_same(owed_by(header, letter.path), owed_by(header_first, first.path)):
        raise PayloadError(f"{letter.path}: privacy: another promise than in {first.path}")
    if len(said.scales) != len(said_first.scales):
        raise PayloadError(f"{letter.path}: scales: of another number of arrays than in {first.path}")


def owed_by(header: Header, file: str) -> Promise | None:
    """Read the promise for which noise must be added in the sum, as `_integer_noise.owed` does.

    Raises:
        PayloadError: it is none.
    """
    try:
        return integer_noise.owed(header)
    except ValueError as error:
        raise PayloadError(f"{file}: {error}") from error


def _integers(own: Own, state: State) -> np.ndarray:
    """What this silo adds, modulo 2^64, with its share of the noise: the same whenever it is asked for."""
    announced, clients = [state.scales[n] for n in sorted(state.scales)], len(state.keys)
    bits = resolution(announced, clients, own.sums.high)
    high, low = (fixed_point.encode(to_vector(part), clients, bits) for part in own.sums)
    if own.owed is None:
        return high + low
    share = integer_noise.share_of(own.owed, announced, clients, own.sums.high)
    return high + low + integer_noise.drawn(share, derived(state.settings, state.noise, b"noise"))


def _letter(state: State) -> Letter:
    """A letter of the round, for others to be compared with."""
    return Letter("this silo's state", letters.KEYS, state.name, state.settings, state.secrets.number)


def _told(state: State, holds: str) -> Letter:
    return _letter(state)._replace(path="", holds=holds, story=story(state.settings, state.keys))
