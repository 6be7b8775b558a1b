"""Sums that hide their terms: pairwise masks that cancel, after Bonawitz et al. (2017, eprint 2017/281).

Every pair of clients agrees on a key (X25519) from which both derive one mask (HKDF, ChaCha20); one adds it, the other
subtracts it. Each also adds a mask of its own. Both are recoverable, but for no client both, from shares that every
client has sent to every other through authenticated encryption: so a client may drop out, and a late message of one
that was given up stays hidden. The server sees sums alone, as long as fewer than `threshold` clients collude with it.

`_secure_client` and `_secure_server` are what they compute between messages; `secure_sum` plays all in one process.
Against a server that lies about who is there, the number of clients is agreed on, the threshold is more than half of
it, keys are certified or compared, and a client answers to one story alone (`_one_story`; docs/silos.md has the threat
model).
"""

import os
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ._agreement import Round, RoundVoid
from ._masks import listed, require_words
from ._secure_client import Revealed as Revealed
from ._secure_client import join, mask, reveal, share
from ._secure_server import unmask


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
    """Run a round with all clients in this process; client i (from 1) has `values[i − 1]`.

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
            raise ValueError(f"{name}: got {listed(more)}, expected numbers from 1 to {count}")
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
