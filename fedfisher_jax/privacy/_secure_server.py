"""What the server of a secure sum computes between messages, see `_secure_sum`."""

from collections.abc import Callable, Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from . import _shamir as shamir
from ._agreement import KEY_BYTES, MaskingKeys, Round, RoundVoid, commitment
from ._masks import clamped, derived, listed, pairwise_mask, public_of, require_words, stream
from ._one_story import require_keys
from ._secure_client import Revealed


def unmask(
    settings: Round, keys: Mapping[int, MaskingKeys], masked: Mapping[int, np.ndarray], revealed: Mapping[int, Revealed]
) -> np.ndarray:
    """Sum the values of all clients in `masked`, uint64 modulo 2^64.

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
            raise ValueError(f"{name}: got {listed(more)}, expected clients that sent keys")
    size = len(next(iter(masked.values())))
    for number, words in masked.items():
        require_words(f"masked: client {number}", words, size)
    total = np.asarray(np.sum(list(masked.values()), axis=0, dtype=np.uint64))
    for number in masked:
        shares = {holder: answer.seeds.get(number) for holder, answer in revealed.items()}
        seed = _restored(settings, "seed", number, shares, lambda secret, n=number: commitment(secret) == keys[n].seed)
        total = total - stream(derived(settings, seed, b"own"), total.size)
    for number in set(keys) - set(masked):
        shares = {holder: answer.maskings.get(number) for holder, answer in revealed.items()}
        is_key = lambda secret, n=number: secret == clamped(secret) and public_of(secret) == keys[n].masking  # noqa: E731
        masking = X25519PrivateKey.from_private_bytes(_restored(settings, "masking key", number, shares, is_key))
        for other in masked:
            total = total + pairwise_mask(settings, masking, keys[other], number, other, total.size)
    return np.asarray(total)


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
            f"revealed: {listed(absent)} sent no share of client {number}'s {what}; was it told another list of who "
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
    raise ValueError(f"revealed: the shares of client {number}'s {what} by {listed(given)} do not give what it said")
