"""A live secure sum without a network: the server's part against silos in this process, some of which lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("cryptography", reason="secure sums need pip install 'fedfisher-jax[privacy]'")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402
from samples import resealed  # noqa: E402

import fedfisher_jax as ff  # noqa: E402
from fedfisher_jax import payload as files  # noqa: E402
from fedfisher_jax.merge._one_by_one import add_payload  # noqa: E402
from fedfisher_jax.payload import _container as container  # noqa: E402
from fedfisher_jax.privacy import _secure_letters as letters  # noqa: E402
from fedfisher_jax.privacy import _secure_steps as steps  # noqa: E402
from fedfisher_jax.privacy._live_sum import Agreement, merge_live  # noqa: E402

SILOS, THRESHOLD, START = 5, 3, {"w": jnp.zeros((2, 3), jnp.float32), "b": jnp.zeros(3, jnp.float32)}
IDENTITIES = [Ed25519PrivateKey.generate() for _ in range(SILOS)]
PUBLIC = tuple(one.public_key().public_bytes_raw() for one in IDENTITIES)
RULE = ff.fedavg(lambda params, x: x @ params["w"] + params["b"], ff.categorical())
KNOWN = Agreement(PUBLIC, THRESHOLD, ", round 2", RULE, START)


def sent_by(number):
    draw = np.random.default_rng(number)
    model = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape), leaf.dtype), START)
    return ff.Payload(jnp.asarray(float(10 + number)), model)


def own_of(number, rule="fedavg"):
    sent = sent_by(number)
    data = files.dumps(sent, files.About(rule, "categorical", files.fingerprint(START), silo=number))
    template, _ = container.unpack(data, files.Limits(), "payload")
    return steps.own_of(add_payload(RULE, None, sent, START), template, files.loads(data)[1], "payload")


class Silos:
    """Five silos at nodes 11 to 15, and the post between them and a server."""

    def __init__(self, silent=(), lies=(), name="run 7, round 2"):
        self.silent, self.lies, self.heard = set(silent), dict(lies), []
        agreed = letters.agreed_by(name, PUBLIC, THRESHOLD)
        self.own = {10 + number: own_of(number) for number in range(1, SILOS + 1)}
        joined = {n: steps.join(own, n - 10, name, agreed, IDENTITIES[n - 11]) for n, own in self.own.items()}
        self.states = {node: state for node, (state, _) in joined.items()}
        self.first = self.told("join", {node: letter for node, (_, letter) in joined.items()})

    def told(self, step, answers):
        sent = {node: letters.dumps(letter) for node, letter in answers.items() if (step, node) not in self.silent}
        lied = {node: self.lies[step, node](data) for node, data in sent.items() if (step, node) in self.lies}
        self.heard.append(sent | lied)
        return sent | lied

    def ask(self, step, nodes, given, stayed):
        read = lambda holds: [letters.loads(data, f"{node}", holds) for node, data in given.items()]  # noqa: E731
        answers = {}
        for node in nodes:
            state = self.states[node]
            if step == "share":
                found = steps.share(state, read(letters.KEYS))
            elif step == "mask":
                found = steps.mask(state, read(letters.SHARES), self.own[node], "payload")
            else:
                found = steps.reveal(state, frozenset(stayed))
            self.states[node], answers[node] = found
        sent = self.told(step, answers)
        return sent | {99: b"of nobody who was asked"}, {
            node: f"node {node}: no answer in time" for node in set(nodes) - set(sent)
        }


def changed(change):
    return lambda data: resealed(data, change)


def merged_of(*numbers):
    return ff.merge_payloads(RULE, [sent_by(number) for number in numbers]).params


def require_close(found, numbers):
    for ours, theirs in zip(
        jax.tree.leaves(found.outcome.merged.params), jax.tree.leaves(merged_of(*numbers)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_sum_is_that_of_those_who_stayed_whoever_is_lost():
    """One is lost after it sealed its shares, one after it masked; what the server hears is letters alone."""
    silos = Silos(silent={("mask", 14), ("reveal", 15)})
    found = merge_live(KNOWN, silos.first, silos.ask)
    require_close(found, (1, 2, 3, 5))
    assert set(found.outcome.headers) == {11, 12, 13, 15} and found.total.examples == 11 + 12 + 13 + 15
    assert found.outcome.left_out == {
        14: "node 14: no answer in time (mask)",
        15: "node 15: no answer in time (reveal)",
    }
    heard = [data for sent in silos.heard for data in sent.values()]
    assert found.bits == 8 * sum(map(len, heard)) and len(heard) == 5 + 5 + 4 + 3
    words = letters.loads(silos.heard[2][11], "masked", letters.MASKED).words
    assert len(words) == 10 and len(np.unique(words >> np.uint64(56))) > 4  # not ten numbers around zero


def without_signature(header, arrays):
    header["signature"] = "00" * 64


LIES = {
    "unsigned": (changed(without_signature), "client 5 did not sign them for this round"),
    "another's": (None, "of silo 1, which another node is"),
    "another round": (changed(lambda header, arrays: header.update(round="run 7, round 1")), "expected a sum"),
    "threshold": (changed(lambda header, arrays: header.update(threshold=4)), "threshold 3"),
    "no letter": (lambda data: b"letter", "node 15: "),
}


@pytest.mark.parametrize("name", LIES)
def test_who_joins_with_a_lie_is_left_out_and_named_and_the_rest_is_summed(name):
    lie, words = LIES[name]
    silos = Silos()
    silos.first[15] = silos.first[11] if lie is None else lie(silos.first[15])
    found = merge_live(KNOWN, silos.first, silos.ask)
    require_close(found, (1, 2, 3, 4))
    assert set(found.outcome.left_out) == {15} and words in found.outcome.left_out[15]


def test_who_would_add_something_else_than_most_is_left_out():
    silos = Silos()
    name, agreed = "run 7, round 2", letters.agreed_by("run 7, round 2", PUBLIC, THRESHOLD)
    own = silos.own[11]._replace(template=silos.own[11].template | {"kind": "exact"})
    silos.first[11] = letters.dumps(steps.join(own, 1, name, agreed, IDENTITIES[0])[1])
    found = merge_live(KNOWN, silos.first, silos.ask)
    require_close(found, (2, 3, 4, 5))
    assert found.outcome.left_out == {11: "node 11: would add something else than most"}


@pytest.mark.parametrize(
    ("where", "lie", "words"),
    [
        (("share", 13), lambda data: b"", "joined and sent no shares"),
        (("mask", 13), lambda data: letters_with(data, words=3), None),
        (("mask", 13), changed(lambda header, arrays: header.update(story="ab" * 32)), None),
        (("reveal", 13), changed(lambda header, arrays: header["seeds"].update({"1": "00" * 66})), "wrong share"),
    ],
    ids=["no shares", "too few numbers", "another story", "a wrong share"],
)
def test_later_lies_are_seen(where, lie, words):
    silos = Silos(lies={where: lie})
    found = merge_live(KNOWN, silos.first, silos.ask)
    if words is None:
        require_close(found, (1, 2, 4, 5))
        assert set(found.outcome.left_out) == {13}
    else:
        assert found.outcome.merged is None and found.total is None and words in found.why


def letters_with(data, words):
    letter = letters.loads(data, "masked")
    return letters.dumps(letter._replace(words=letter.words[:words]))


def test_with_too_few_there_is_no_sum():
    silos = Silos(silent={("mask", node) for node in (12, 13, 14)})
    found = merge_live(KNOWN, silos.first, silos.ask)
    assert found.outcome.merged is None and found.why == "2 nodes stayed, expected 3"
    assert len(silos.heard) == 3  # nobody was asked to reveal
    assert merge_live(KNOWN, {}, silos.ask).why == "nobody joined"
    some = Silos()
    found = merge_live(KNOWN, {node: some.first[node] for node in (11, 12)}, some.ask)
    assert found.outcome.merged is None and "2 clients" in found.why


def test_a_silo_shares_with_nobody_whom_it_does_not_know():
    """A server that plays silo 2 cannot sign for it, and what silo 2 signed in another round is worthless."""
    silos, before = Silos(), Silos(name="run 7, round 1")
    forged = steps.join(silos.own[12], 2, "run 7, round 2", letters.agreed_by("run 7, round 2", PUBLIC, THRESHOLD))[1]
    old = resealed(before.first[12], lambda header, arrays: header.update(round="run 7, round 2"))
    for other in (letters.dumps(forged), old):
        given = [letters.loads(data, f"{node}") for node, data in (silos.first | {12: other}).items()]
        with pytest.raises(ValueError, match="client 2 did not sign them for this round"):
            steps.share(silos.states[11], given)
