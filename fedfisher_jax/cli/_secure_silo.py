"""A silo's steps of `fedfisher secure`. Each writes the silo's state before its letter, see `privacy._secure_state`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _files
from ..merge._exact_sums import Sums
from ..merge._one_by_one import require_adding
from ..payload import Header, Limits, PayloadError
from ..payload import _files_of_a_merge as files_of
from ..payload._header import require_same
from ..privacy import _fixed_point as fixed_point
from ..privacy import _integer_noise as integer_noise
from ..privacy import _secure_client as client
from ..privacy import _secure_letters as letters
from ..privacy import _secure_state as states
from ..privacy._agreement import KEY_BYTES
from ..privacy._example_promise import Promise
from ..privacy._masks import derived
from ..privacy._one_story import fingerprint, require_client, story
from ..privacy._secure_letters import Announced, Letter, by_silo, digest_of, round_of
from ..privacy._secure_merge import resolution, scales, to_vector
from ._fold import template_of
from ._fold_files import fold_files
from ._gather import gather, paths_of
from ._secure import JoinSettings, MaskSettings, RevealSettings, ShareSettings


class Own(NamedTuple):
    """What a silo, or a region, adds to the sum, and what it says of that."""

    silo: int | None  # its number; a region has none
    sums: Sums
    template: dict[str, Any]
    scales: list[int]
    owed: Promise | None  # the noise that it adds its share of


def join(settings: JoinSettings) -> None:
    """Make keys for a sum, and announce the scales of what this silo adds."""
    agreed = round_of(settings.round, settings.silos, settings.threshold)
    _files.require_file(settings.out, [settings.payload, settings.start, settings.state])
    own = _own(settings.payload, settings.start, settings.model)
    number = own.silo if settings.number is None else settings.number
    if number is None:
        raise ValueError(f"number: {settings.payload} is a region, which has none, expected --number with one")
    if not 1 <= number <= agreed.clients:
        raise ValueError(f"number: got silo {number}, expected 1 to {agreed.clients}")
    if own.owed is not None and own.owed.sharers > agreed.threshold:
        raise ValueError(
            f"threshold: got {agreed.threshold}, and the noise is divided among {own.owed.sharers} silos, who must stay"
        )
    with _files.only_writer(settings.state.parent):
        states.require_new(settings.state)
        secrets, keys = client.join(number, digest_of(own.template, own.scales))
        states.save(settings.state, states.State(settings.round, agreed, secrets, noise=os.urandom(KEY_BYTES)))
        announced = Announced(keys, own.template, own.scales)
        letter = Letter(str(settings.out), letters.KEYS, settings.round, agreed, number, announced)
        letters.write(settings.out, letter)
    print(f"{settings.out}: silo {number} joins {settings.round!r}: mail it to everybody, and keep {settings.state}")


def share(settings: ShareSettings) -> None:
    """Seal shares of this silo's secrets for all silos that joined."""
    paths = paths_of(settings.files)
    _files.require_file(settings.out, [*paths, settings.state])
    with _files.only_writer(settings.state.parent):
        state = states.load(settings.state)
        there = by_silo([letters.read(path, letters.KEYS) for path in paths], _signed(state, settings.state))
        announced = {number: letter.announced for number, letter in there.items() if letter.announced is not None}
        require_alike(there)
        keys = {number: one.keys for number, one in announced.items()}
        if state.sealed and keys != state.keys:
            require_client(state.settings, state.secrets, keys)  # says which story was another one
        sealed = state.sealed or client.share(state.settings, state.secrets, keys)
        state = state._replace(
            keys=keys, scales={number: one.scales for number, one in announced.items()}, sealed=sealed
        )
        states.save(settings.state, state)
        letters.write(settings.out, _letter(state, settings.out, letters.SHARES)._replace(sealed=sealed))
    gone = sorted(set(range(1, state.settings.clients + 1)) - set(keys))
    print(f"{settings.out}: shares for silos {', '.join(map(str, keys))}{f', without {gone}' if gone else ''}")
    print(f"fingerprint: {fingerprint(state.settings, keys)}")
    print("tell it to the other silos, not by way of the server; `mask` asks for theirs")


def mask(settings: MaskSettings) -> None:
    """Hide this silo's numbers, if all silos were told the same."""
    paths = paths_of(settings.files)
    _files.require_file(settings.out, [*paths, settings.state, settings.payload, settings.start])
    with _files.only_writer(settings.state.parent):
        state = _shared(settings.state)
        ours = fingerprint(state.settings, state.keys)
        if settings.fingerprint.split() != ours.split():
            raise ValueError(f"fingerprint: theirs is another one than ours, {ours}: the server told somebody lies")
        there = by_silo([letters.read(path, letters.SHARES) for path in paths], _signed(state, settings.state))
        inbox = {number: letter.sealed.get(state.secrets.number, b"") for number, letter in there.items()}
        if odd := set(inbox) ^ set(state.keys):
            raise ValueError(f"files: the second letters of silos {sorted(odd)} are missing, or of silos without keys")
        client.require_sealed(state.settings, state.secrets, state.keys, inbox)
        own = _own(settings.payload, settings.start, settings.model)
        if digest_of(own.template, own.scales) != state.secrets.announced:
            raise ValueError(f"payload: {settings.payload} is not what this silo announced when it joined")
        words = client.mask(state.settings, state.secrets, state.keys, _integers(own, state))
        state = state._replace(inbox=inbox)
        states.save(settings.state, state)
        letters.write(settings.out, _letter(state, settings.out, letters.MASKED)._replace(words=words))
    print(f"{settings.out}: {len(words)} masked numbers for the server")


def reveal(settings: RevealSettings) -> None:
    """Answer to the server's list of those who stayed, once."""
    _files.require_file(settings.out, [settings.state])
    stayed = frozenset(settings.stayed)
    with _files.only_writer(settings.state.parent):
        state = _shared(settings.state)
        if not state.inbox:
            raise ValueError(f"state: {settings.state} has not masked yet: mask first")
        if state.secrets.number not in stayed:
            raise ValueError(f"stayed: got {sorted(stayed)} without this silo, {state.secrets.number}, which masked")
        revealed = client.reveal(state.settings, state.secrets, state.keys, state.inbox, stayed)
        states.save(settings.state, state)
        letter = _letter(state, settings.out, letters.REVEALED)._replace(stayed=stayed, revealed=revealed)
        letters.write(settings.out, letter)
    print(f"{settings.out}: shares for the sum of silos {', '.join(map(str, sorted(stayed)))}, and of no other")


def require_alike(there: Mapping[int, Letter]) -> None:
    """Refuse silos that would add unlike things.

    Raises:
        PayloadError: the letter of one of them, and what differs.
    """
    headers = {}
    for number, letter in there.items():
        if letter.announced is not None:
            headers[number] = files_of.checked(letter.announced.template, 0, file=letter.path)
            first = next(iter(there))
            require_same(headers[number], headers[first], letter.path, there[first].path)
            owed = [_owed(headers[n], there[n].path) for n in (number, first)]
            if not integer_noise.is_same(*owed):
                raise PayloadError(f"{letter.path}: privacy: another promise than in {there[first].path}")
            if len(letter.announced.scales) != len(there[first].announced.scales):  # pyright: ignore[reportOptionalMemberAccess]
                raise PayloadError(f"{letter.path}: scales: of another number of arrays than in {there[first].path}")


def _own(path: Path, start: Path, model: str | None) -> Own:
    gathered = gather([path], start, model=model, rule_name=None, max_bytes=Limits().file_bytes, secure=True)
    require_adding(gathered.rule)
    sums = fold_files(gathered).sums
    assert sums is not None  # of a rule that adds
    (part,) = gathered.parts
    header = part.silos[0].header
    number = header.about.silo if part.holds == files_of.PAYLOAD else None
    owed = _owed(header, str(path))
    said = scales(sums.high if owed is None else integer_noise.bounds(sums.high, owed), str(path))
    quiet = {"name": "", "compression": "none", "codecs": [], "encoded": {}, "examples": 1, "silo": 0}
    return Own(number, sums, {**template_of(gathered), **quiet}, said, owed)


def _owed(header: Header, file: str) -> Promise | None:
    try:
        return integer_noise.owed(header)
    except ValueError as error:
        raise PayloadError(f"{file}: {error}") from error


def _integers(own: Own, state: states.State) -> np.ndarray:
    """What this silo adds, modulo 2^64, with its share of the noise: the same whenever it is asked for."""
    announced, clients = [state.scales[n] for n in sorted(state.scales)], len(state.keys)
    bits = resolution(announced, clients, own.sums.high)
    high, low = (fixed_point.encode(to_vector(part), clients, bits) for part in own.sums)
    if own.owed is None:
        return high + low
    share = integer_noise.share_of(own.owed, announced, clients, own.sums.high)
    return high + low + integer_noise.drawn(share, derived(state.settings, state.noise, b"noise"))


def _shared(path: Path) -> states.State:
    state = states.load(path)
    if not state.keys:
        raise ValueError(f"state: {path} has not shared yet: share first")
    return state


def _letter(state: states.State, out: Path, holds: str) -> Letter:
    told = story(state.settings, state.keys)
    return Letter(str(out), holds, state.name, state.settings, state.secrets.number, story=told)


def _signed(state: states.State, path: Path) -> Letter:
    """A letter of the round, for others to be compared with."""
    return Letter(str(path), letters.KEYS, state.name, state.settings, state.secrets.number)
