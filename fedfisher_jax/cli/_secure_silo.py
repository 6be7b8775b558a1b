"""A silo's steps of `fedfisher secure`. Each writes the silo's state before its letter, see `privacy._secure_state`."""

from pathlib import Path

from .. import _files
from ..merge._one_by_one import require_adding
from ..payload import Limits
from ..payload import _files_of_a_merge as files_of
from ..privacy import _secure_letters as letters
from ..privacy import _secure_state as states
from ..privacy import _secure_steps as steps
from ..privacy._one_story import fingerprint
from ..privacy._secure_letters import round_of
from ..privacy._secure_steps import Own
from ._fold import template_of
from ._fold_files import fold_files
from ._gather import gather, paths_of
from ._secure import JoinSettings, MaskSettings, RevealSettings, ShareSettings


def join(settings: JoinSettings) -> None:
    """Make keys for a sum, and announce the scales of what this silo adds."""
    agreed = round_of(settings.round, settings.silos, settings.threshold)
    _files.require_file(settings.out, [settings.payload, settings.start, settings.state])
    silo, own = _own(settings.payload, settings.start, settings.model)
    number = silo if settings.number is None else settings.number
    if number is None:
        raise ValueError(f"number: {settings.payload} is a region, which has none, expected --number with one")
    with _files.only_writer(settings.state.parent):
        state, letter = steps.join(own, number, settings.round, agreed)
        states.require_new(settings.state)
        states.save(settings.state, state)
        letters.write(settings.out, letter)
    print(f"{settings.out}: silo {number} joins {settings.round!r}: mail it to everybody, and keep {settings.state}")


def share(settings: ShareSettings) -> None:
    """Seal shares of this silo's secrets for all silos that joined."""
    paths = paths_of(settings.files)
    _files.require_file(settings.out, [*paths, settings.state])
    with _files.only_writer(settings.state.parent):
        given = [letters.read(path, letters.KEYS) for path in paths]
        state, letter = steps.share(states.load(settings.state), given)
        states.save(settings.state, state)
        letters.write(settings.out, letter)
    gone = sorted(set(range(1, state.settings.clients + 1)) - set(state.keys))
    print(f"{settings.out}: shares for silos {', '.join(map(str, state.keys))}{f', without {gone}' if gone else ''}")
    print(f"fingerprint: {fingerprint(state.settings, state.keys)}")
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
        given = [letters.read(path, letters.SHARES) for path in paths]
        _, own = _own(settings.payload, settings.start, settings.model)
        state, letter = steps.mask(state, given, own, str(settings.payload))
        states.save(settings.state, state)
        letters.write(settings.out, letter)
    print(f"{settings.out}: {0 if letter.words is None else len(letter.words)} masked numbers for the server")


def reveal(settings: RevealSettings) -> None:
    """Answer to the server's list of those who stayed, once."""
    _files.require_file(settings.out, [settings.state])
    with _files.only_writer(settings.state.parent):
        state, letter = steps.reveal(_shared(settings.state), frozenset(settings.stayed))
        states.save(settings.state, state)
        letters.write(settings.out, letter)
    print(f"{settings.out}: shares for the sum of silos {', '.join(map(str, sorted(letter.stayed)))}, and of no other")


def _own(path: Path, start: Path, model: str | None) -> tuple[int | None, Own]:
    """A silo's number, which a region has none of, and what it adds to the sum."""
    gathered = gather([path], start, model=model, rule_name=None, max_bytes=Limits().file_bytes, secure=True)
    require_adding(gathered.rule)
    sums = fold_files(gathered).sums
    assert sums is not None  # of a rule that adds
    (part,) = gathered.parts
    header = part.silos[0].header
    number = header.about.silo if part.holds == files_of.PAYLOAD else None
    return number, steps.own_of(sums, template_of(gathered), header, str(path))


def _shared(path: Path) -> states.State:
    state = states.load(path)
    if not state.keys:
        raise ValueError(f"state: {path} has not shared yet: share first")
    return state
