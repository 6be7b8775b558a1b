"""Secure sums of what people hold, with servers of two stories and clients whose answers are damaged."""

import os

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="secure sums need pip install 'fedfisher-jax[privacy]'")

import jax.numpy as jnp  # noqa: E402
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402

from fedfisher_jax.privacy import _fixed_point as fixed_point  # noqa: E402
from fedfisher_jax.privacy import _secure_sum as protocol  # noqa: E402
from fedfisher_jax.privacy._agreement import MaskingKeys  # noqa: E402
from fedfisher_jax.privacy._one_story import certify, fingerprint  # noqa: E402
from fedfisher_jax.privacy._secure_merge import total  # noqa: E402

AGREED, THRESHOLD, DROPPED = 5, 3, 4  # client 4 sends keys and shares, but no masked numbers


class Federation:
    """Clients that have joined, shared and masked."""

    def __init__(self, agreed=AGREED, threshold=THRESHOLD, joined=AGREED, dropped=()):
        self.plan = protocol.Round(agreed, threshold, os.urandom(16))
        people = {number: protocol.join(number) for number in range(1, joined + 1)}
        self.keys = {number: public for number, (_, public) in people.items()}
        self.secrets = {number: private for number, (private, _) in people.items()}
        sealed = {number: protocol.share(self.plan, self.secrets[number], self.keys) for number in people}
        self.masked = {
            number: protocol.mask(self.plan, self.secrets[number], self.keys, np.full(2, number, np.uint64))
            for number in people
            if number not in dropped
        }
        self.inbox = {number: {sender: sealed[sender][number] for sender in sealed} for number in people}

    def reveal(self, number, stayed=None, inbox=None, keys=None):
        stayed = list(self.masked) if stayed is None else stayed
        keys, inbox = keys or self.keys, inbox or self.inbox[number]
        return protocol.reveal(self.plan, self.secrets[number], keys, inbox, stayed)

    def answers(self):
        return {number: self.reveal(number) for number in self.masked}

    def unmask(self, answers, masked=None):
        return protocol.unmask(self.plan, self.keys, masked or self.masked, answers)


@pytest.mark.parametrize(
    "dtype", ["int64", "int32", "float32", "float64", "bool", "uint8", "uint32", "complex128", ">u8"]
)
def test_sums_of_anything_but_words_are_refused(dtype):
    values = [np.array([1, 0, 1], dtype)] * 4
    with pytest.raises(ValueError, match=r"values\[0\]: got .*expected uint64"):
        protocol.secure_sum(values)
    with pytest.raises(ValueError, match=r"values\[2\]: got "):
        protocol.secure_sum([np.zeros(3, np.uint64)] * 2 + [values[0]])
    federation = Federation()
    with pytest.raises(ValueError, match="values: got "):
        protocol.mask(federation.plan, federation.secrets[1], federation.keys, values[0])
    with pytest.raises(ValueError, match="masked: client 2: got "):
        federation.unmask(federation.answers(), federation.masked | {2: values[0]})


def test_sums_of_words_wrap():
    values = [np.array([1, 2**64 - 1, 2**63], np.uint64)] * 4
    np.testing.assert_array_equal(protocol.secure_sum(values).total, np.array([4, 2**64 - 4, 0], np.uint64))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"silent": [9]}, "silent: got client 9"),
        ({"lost": [0, 7]}, "lost: got clients 0, 7"),
        ({"dropouts": "Void"}, "dropouts: got"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_dropouts_that_are_none(change, words):
    with pytest.raises((ValueError, TypeError), match=words if "dropouts" not in change else "dropouts"):
        protocol.secure_sum([np.zeros(2, np.uint64)] * 4, **change)


def test_values_of_different_lengths():
    with pytest.raises(ValueError, match=r"values\[1\]: got 3 numbers, expected 2"):
        protocol.secure_sum([np.zeros(2, np.uint64), np.zeros(3, np.uint64)])
    federation = Federation()
    with pytest.raises(ValueError, match="masked: client 3: got 3 numbers, expected 2"):
        federation.unmask(federation.answers(), federation.masked | {3: np.zeros(3, np.uint64)})


def test_more_clients_than_were_agreed_on():
    with pytest.raises(ValueError, match="keys: got client 4, expected numbers from 1 to the agreed 3"):
        Federation(3, 2, 6)
    federation = Federation()
    invented = federation.keys | {6: protocol.join(6)[1]}
    with pytest.raises(ValueError, match="client 6"):
        federation.reveal(1, keys=invented, inbox=federation.inbox[1] | {6: b""})
    with pytest.raises(ValueError, match="client 6"):
        protocol.unmask(federation.plan, invented, federation.masked, federation.answers())


def test_a_client_answers_to_one_story():
    federation = Federation()
    assert federation.reveal(1, [1, 2, 3]) == federation.reveal(1, [3, 2, 1])  # the same question again
    with pytest.raises(ValueError, match="stayed: client 1 has answered to others before"):
        federation.reveal(1, [1, 2, 4])
    mask = lambda plan, keys, values: protocol.mask(plan, federation.secrets[1], keys, np.asarray(values, np.uint64))  # noqa: E731
    np.testing.assert_array_equal(mask(federation.plan, federation.keys, [1, 1]), federation.masked[1])
    for other in ([1, 2], [1, 1, 1]):  # the difference of two masked vectors is that of their values
        with pytest.raises(ValueError, match="values: client 1 has answered to others before"):
            mask(federation.plan, federation.keys, other)
    fewer = {number: federation.keys[number] for number in (1, 2, 3)}
    again = protocol.Round(AGREED, THRESHOLD, os.urandom(16))  # the same secrets in another round
    for plan, keys in ((federation.plan, fewer), (again, federation.keys)):
        with pytest.raises(ValueError, match="keys: client 1 has answered to others before"):
            mask(plan, keys, [1, 1])
        with pytest.raises(ValueError, match="keys: client 1 has answered to others before"):
            protocol.share(plan, federation.secrets[1], keys)
        with pytest.raises(ValueError, match="keys: client 1 has answered to others before"):
            protocol.reveal(plan, federation.secrets[1], keys, {n: federation.inbox[1][n] for n in keys}, [1, 2, 3])


@pytest.mark.parametrize("dropped", [(), (DROPPED,)])
def test_one_flipped_bit_in_a_revealed_share_is_an_error_that_names_who_sent_it(dropped):
    federation, random = Federation(dropped=dropped), np.random.default_rng(0)
    answers = federation.answers()
    np.testing.assert_array_equal(federation.unmask(answers), np.full(2, sum(federation.masked), np.uint64))
    for number in [*range(10), *range(245, 260), *range(1000, 1030)]:
        bad = {number: protocol.Revealed(dict(a.seeds), dict(a.maskings)) for number, a in answers.items()}
        who = int(random.choice(list(answers)))
        place = number if number < 10 or 245 < number < 260 else int(random.integers(8 * 66))
        kind = bad[who].maskings if dropped and random.random() < 0.5 else bad[who].seeds
        whose = int(random.choice(list(kind)))
        kind[whose] = (int.from_bytes(kind[whose], "big") ^ (1 << place)).to_bytes(66, "big")
        with pytest.raises(ValueError, match=f"client {who} sent a wrong share of client {whose}'s"):
            federation.unmask(bad)


def test_with_no_share_to_spare_a_flipped_bit_names_whose_it_is():
    federation = Federation()
    answers = {number: federation.reveal(number) for number in (1, 2, 3)}
    answers[2].seeds[5] = bytes([answers[2].seeds[5][0] ^ 1]) + answers[2].seeds[5][1:]
    with pytest.raises(ValueError, match="shares of client 5's seed by clients 1, 2, 3 do not give what it said"):
        federation.unmask(answers)


@pytest.mark.parametrize("share", [b"", b"short", bytes(65), bytes(67), b"\xff" * 66])
def test_shares_of_another_form(share):
    federation = Federation()
    answers = federation.answers()
    answers[2].seeds[5] = share
    with pytest.raises(ValueError, match="client 2 sent a wrong share of client 5's seed"):
        federation.unmask(answers)


def test_what_is_missing_is_named():
    federation = Federation(dropped=(DROPPED,))
    answers = federation.answers()
    with pytest.raises(ValueError, match="client 2 sent no share of client 1's seed"):
        federation.unmask(answers | {2: protocol.Revealed({}, {})})
    with pytest.raises(ValueError, match="client 3 sent no share of client 4's masking key"):
        federation.unmask(answers | {3: answers[3]._replace(maskings={})})
    with pytest.raises(ValueError, match="revealed: got client 9"):
        federation.unmask(answers | {9: answers[1]})
    with pytest.raises(ValueError, match="masked: got client 9"):
        federation.unmask(answers, federation.masked | {9: federation.masked[1]})
    lists = Federation()  # two lists of who stayed
    answers = {1: lists.reveal(1), 2: lists.reveal(2), 3: lists.reveal(3, [1, 2, 3])}
    with pytest.raises(ValueError, match="client 3 sent no share of client 4's seed; was it told another list"):
        lists.unmask(answers)


@pytest.mark.parametrize("message", [b"", bytes(5), bytes(12), bytes(40), bytes(400)])
def test_messages_that_are_none(message):
    federation = Federation()
    with pytest.raises(ValueError, match="sealed: the message of client 3 was changed"):
        federation.reveal(1, inbox=federation.inbox[1] | {3: message})
    with pytest.raises(ValueError, match="sealed: client 3 missing"):
        federation.reveal(1, inbox={number: federation.inbox[1][number] for number in (1, 2, 4, 5)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({3: MaskingKeys(b"", b"", b"")}, "client 3 sent none"),
        ({3: MaskingKeys(bytes(31), bytes(32), bytes(32))}, "client 3 sent none"),
        ({3: MaskingKeys(bytes(32), b"\1" * 32, b"\2" * 32)}, "client 3 sent a key that agrees on nothing"),
        ({1: protocol.join(1)[1]}, "client 1 is not there with its own keys"),
        ({0: protocol.join(0)[1]}, "got client 0"),
    ],
)
def test_keys_that_are_none(change, words):
    plan = protocol.Round(AGREED, THRESHOLD, os.urandom(16))
    people = {number: protocol.join(number) for number in range(1, AGREED + 1)}
    keys = {number: public for number, (_, public) in people.items()} | change
    with pytest.raises(ValueError, match=words):
        protocol.mask(plan, people[1][0], keys, np.zeros(2, np.uint64))


def test_two_stories_about_keys_open_no_message_and_have_two_fingerprints():
    """The server replaces client 5 by one of its own, towards clients 1 and 2 alone."""
    plan = protocol.Round(AGREED, THRESHOLD, os.urandom(16))
    people = {number: protocol.join(number) for number in range(1, AGREED + 1)}
    truth = {number: public for number, (_, public) in people.items()}
    forged = truth | {5: protocol.join(5)[1]}
    told = {number: forged if number in (1, 2) else truth for number in range(1, 5)}
    sealed = {number: protocol.share(plan, people[number][0], told[number]) for number in told}
    sealed[5] = protocol.share(plan, people[5][0], truth)
    for number, other in ((1, 3), (2, 3), (3, 1), (4, 1)):
        inbox = {sender: sealed[sender][number] for sender in sealed}
        with pytest.raises(ValueError, match=f"the message of client {other} was .*, or that client was shown other"):
            ordered = {other: inbox[other]} | inbox
            protocol.reveal(plan, people[number][0], told[number], ordered, [1, 2, 3, 4])
    assert fingerprint(plan, told[1]) == fingerprint(plan, told[2]) != fingerprint(plan, told[3])
    assert fingerprint(plan, truth) == fingerprint(plan, dict(reversed(truth.items())))
    for other in (protocol.Round(AGREED, 4, plan.label), protocol.Round(AGREED, THRESHOLD, os.urandom(16))):
        assert fingerprint(other, truth) != fingerprint(plan, truth)
    assert len(fingerprint(plan, truth).replace(" ", "")) == 64


def test_certified_keys_are_signed_by_whose_they_are_in_this_round():
    own = {number: Ed25519PrivateKey.generate() for number in range(1, AGREED + 1)}
    identities = tuple(one.public_key().public_bytes_raw() for one in own.values())
    plan = protocol.Round(AGREED, THRESHOLD, os.urandom(16), identities)
    before = protocol.Round(AGREED, THRESHOLD, os.urandom(16), identities)
    people = {number: protocol.join(number) for number in own}
    keys = {number: certify(plan, number, public, own[number]) for number, (_, public) in people.items()}
    sealed = {number: protocol.share(plan, people[number][0], keys) for number in people}
    masked = {n: protocol.mask(plan, people[n][0], keys, np.full(2, n, np.uint64)) for n in people}
    inboxes = {number: {sender: sealed[sender][number] for sender in sealed} for number in people}
    answers = {n: protocol.reveal(plan, people[n][0], keys, inboxes[n], list(masked)) for n in people}
    np.testing.assert_array_equal(protocol.unmask(plan, keys, masked, answers), [15, 15])
    forged = protocol.join(3)[1]
    for odd in (
        forged,  # not signed
        certify(plan, 3, forged, Ed25519PrivateKey.generate()),  # by somebody else
        certify(plan, 3, forged, own[4]),  # by another client
        certify(plan, 4, forged, own[3]),  # for another number
        certify(before, 3, forged, own[3]),  # in another round, whose secrets the server may know
        keys[3]._replace(seed=bytes(32)),  # changed after it was signed
        keys[3]._replace(signature=None),
    ):
        for act in (
            lambda odd=odd: protocol.share(plan, people[1][0], keys | {3: odd}),
            lambda odd=odd: protocol.unmask(plan, keys | {3: odd}, masked, answers),
        ):
            with pytest.raises(ValueError, match="client 3 did not sign them for this round"):
                act()


@pytest.mark.parametrize("identities", [(b"x" * 32,), (b"x" * 32,) * 3, (b"", b"a", b"b")])
def test_identities_that_are_none(identities):
    with pytest.raises(ValueError, match="identities: expected none, or 3 different ones"):
        protocol.Round(3, 2, os.urandom(16), identities)


GOOD = {"a": jnp.ones(3, jnp.float32), "b": jnp.ones((2, 2), jnp.float32)}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"a": jnp.ones(3, jnp.float32)}, "another tree"),
        ({"a": jnp.ones(4, jnp.float32), "b": GOOD["b"]}, r"a: got float32 \(4,\)"),
        ({"a": jnp.ones((1, 3), jnp.float32), "b": GOOD["b"]}, r"a: got float32 \(1, 3\)"),
        ({"a": jnp.ones(3, jnp.float16), "b": GOOD["b"]}, r"a: got float16"),
        ({"a": jnp.ones(3, jnp.uint8), "b": GOOD["b"]}, "a: got uint8"),
        ({"a": jnp.ones(3, bool), "b": GOOD["b"]}, "a: got bool"),
        ({"a": 1j * jnp.ones(3, jnp.complex64), "b": GOOD["b"]}, "a: got complex64"),
        ({"a": 1.0, "b": GOOD["b"]}, "a: got float, expected a floating-point array"),
        ({"a": jnp.full(3, jnp.nan, jnp.float32), "b": GOOD["b"]}, "a: values: expected finite"),
    ],
)
def test_trees_that_cannot_be_added(other, words):
    with pytest.raises(ValueError, match=rf"contributions\[1\].*{words}"):
        total([GOOD, other, GOOD])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.complex64])
def test_integers_and_complex_numbers_of_all_clients(dtype):
    with pytest.raises(ValueError, match=r"contributions\[0\]: a: got"):
        total([{"a": np.full(3, 200, dtype)}] * 3)
    for trees in ([], [{}, {}], [{"a": None}] * 2):
        with pytest.raises(ValueError, match="at least one array"):
            total(trees)


def test_a_sum_beyond_its_type():
    with pytest.raises(ValueError, match="a: the sum is beyond float16"):
        total([{"a": jnp.full(2, 60_000, jnp.float16)}] * 3)
    with pytest.raises(ValueError, match="a: the sum is beyond float64"):
        total([{"a": jnp.full(2, 1e308, jnp.float64)}] * 3)
    np.testing.assert_array_equal(total([{"a": jnp.full(2, 20_000, jnp.float16)}] * 3)["a"], [60_000, 60_000])


@pytest.mark.parametrize("values", [np.array([1 + 1j]), np.array(["1"]), np.array([2**60]), np.array([None])])
def test_numbers_that_fixed_point_would_change(values):
    with pytest.raises(ValueError, match="values: got"):
        fixed_point.encode(values, 3, 0)
    with pytest.raises(ValueError, match="values: got"):
        fixed_point.exponent(values)


def test_sums_are_read_as_words():
    for total_ in (np.zeros(2, np.int64), np.zeros(2, np.float64), np.zeros(2, np.int32)):
        with pytest.raises(ValueError, match="total: got"):
            fixed_point.decode(total_)
