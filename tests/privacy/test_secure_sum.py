import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

pytest.importorskip("cryptography", reason="secure sums need pip install 'fedfisher-jax[privacy]'")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from samples import payload  # noqa: E402

import fedfisher_jax as ff  # noqa: E402
from fedfisher_jax.privacy import _fixed_point as fixed_point  # noqa: E402
from fedfisher_jax.privacy import _secure_sum as protocol  # noqa: E402
from fedfisher_jax.privacy import _shamir as shamir
from fedfisher_jax.privacy import secure_merge  # noqa: E402
from fedfisher_jax.privacy._secure_sum import Round, RoundVoid, secure_sum  # noqa: E402

CLIENTS, SIZE = 20, 300
VALUES = np.random.default_rng(0).normal(size=(CLIENTS, SIZE)) * 1000
ENCODED = [fixed_point.encode(values, CLIENTS) for values in VALUES]


@pytest.mark.parametrize(("silent", "lost"), [((), ()), ((3, 11, 20), ()), ((), (1, 2, 3)), ((1, 7), (20,))])
def test_sum_of_twenty_with_three_dropping_out_is_that_of_those_who_stayed(silent, lost):
    found = secure_sum(ENCODED, silent=silent, lost=lost)
    stayed = [number for number in range(1, CLIENTS + 1) if number not in silent]
    assert found.contributors == tuple(stayed)
    plain = np.sum([ENCODED[number - 1] for number in stayed], axis=0, dtype=np.uint64)
    np.testing.assert_array_equal(found.total, plain)  # exactly, modulo 2^64
    expected = VALUES[[number - 1 for number in stayed]].sum(0)
    error = len(stayed) * 2.0 ** -(fixed_point.FRACTION_BITS + 1)
    np.testing.assert_allclose(fixed_point.decode(found.total), expected, rtol=0, atol=error * 1.01)


def test_void_by_choice_and_void_by_need():
    with pytest.raises(RoundVoid, match=r"clients \[3\] dropped out"):
        secure_sum(ENCODED, silent=[3], dropouts="void")
    with pytest.raises(RoundVoid, match="threshold is 14"):
        secure_sum(ENCODED, silent=range(1, 8))
    with pytest.raises(RoundVoid, match="threshold is 14"):
        secure_sum(ENCODED, lost=range(1, 8))


def uniform(words):
    """The smallest p-value of tests that uint64 words are uniform and independent of each other."""
    counts = np.bincount(words.view(np.uint8), minlength=256)
    found = [stats.chisquare(counts).pvalue, stats.kstest(words / 2.0**64, "uniform").pvalue]
    ones = np.unpackbits(words.view(np.uint8)).reshape(-1, 64).sum(0)
    found.append(min(stats.binomtest(int(count), len(words)).pvalue for count in ones) * 64)
    found.append(stats.pearsonr(words[1:] / 2.0**64, words[:-1] / 2.0**64).pvalue)
    return min(found)


def test_a_single_masked_payload_looks_uniform():
    """Masked zeros look like masked large numbers; both unmasked, or masked by one and the same word, do not."""
    size = 20_000
    values = [np.zeros(size), 1e6 + np.random.default_rng(3).normal(size=size), np.zeros(size)]
    encoded = [fixed_point.encode(one, 3) for one in values]
    first, second = secure_sum(encoded), secure_sum(encoded)
    for words in (*first.masked.values(), first.masked[1] - second.masked[1], first.masked[1] + first.masked[2]):
        assert uniform(words) > 1e-6
    assert uniform(encoded[1]) < 1e-12 and uniform(encoded[1] + np.uint64(2**63 + 12345)) < 1e-12
    assert stats.pearsonr(first.masked[1] / 2.0**64, first.masked[3] / 2.0**64).pvalue > 1e-6
    np.testing.assert_array_equal(first.total, encoded[1])


def test_what_the_server_needs_to_unmask_one_client_is_never_revealed():
    """For every client either the seed's shares or the key's, and fewer shares than the threshold open nothing."""
    label = b"0123456789abcdef"
    round_ = Round(4, 3, label)
    joined = {number: protocol.join(number) for number in range(1, 5)}
    keys = {number: public for number, (_, public) in joined.items()}
    sealed = {number: protocol.share(round_, private, keys) for number, (private, _) in joined.items()}
    inbox = {sender: sealed[sender][1] for sender in sealed}
    revealed = protocol.reveal(round_, joined[1][0], keys, inbox, [1, 2, 4])
    assert set(revealed.seeds) == {1, 2, 4} and set(revealed.maskings) == {3}
    with pytest.raises(RoundVoid):
        protocol.reveal(round_, joined[1][0], keys, inbox, [1, 2])
    with pytest.raises(RoundVoid):
        protocol.reveal(round_, joined[1][0], keys, inbox, [1, 2, 2])
    with pytest.raises(ValueError, match="sent keys"):
        protocol.reveal(round_, joined[1][0], keys, inbox, [1, 2, 9])
    changed = inbox | {2: inbox[2][:-1] + bytes([inbox[2][-1] ^ 1])}
    with pytest.raises(ValueError, match="client 2 was changed"):
        protocol.reveal(round_, joined[1][0], keys, changed, [1, 2, 3, 4])
    swapped = inbox | {2: inbox[3], 3: inbox[2]}
    with pytest.raises(ValueError, match="was changed on its way"):
        protocol.reveal(round_, joined[1][0], keys, swapped, [1, 2, 3, 4])
    with pytest.raises(RoundVoid):
        protocol.share(round_, joined[1][0], {number: keys[number] for number in (1, 2)})


@settings(deadline=None, max_examples=30)
@given(secret=st.binary(min_size=32, max_size=32), count=st.integers(1, 9), data=st.data())
def test_shares_restore_and_fewer_say_nothing(secret, count, data):
    threshold = data.draw(st.integers(1, count))
    shares = shamir.split(secret, threshold, list(range(1, count + 1)))
    chosen = data.draw(st.permutations(sorted(shares)))[:threshold]
    assert shamir.join({number: shares[number] for number in chosen}, threshold, 32) == secret
    with pytest.raises(ValueError, match="expected at least"):
        shamir.join({number: shares[number] for number in chosen[1:]}, threshold, 32)
    # For any other secret there is one last share that fits the others: they exclude nothing.
    other = bytes(32)
    known = {number: int.from_bytes(shares[number], "big") for number in chosen[1:]}
    points = {0: int.from_bytes(other, "big")} | known
    last = 0
    for x, y in points.items():
        term = y
        for z in points:
            if z != x:
                term = term * (chosen[0] - z) * pow(x - z, -1, shamir.PRIME) % shamir.PRIME
        last = (last + term) % shamir.PRIME
    forged = {number: shares[number] for number in chosen[1:]} | {chosen[0]: last.to_bytes(shamir.SHARE_BYTES, "big")}
    assert shamir.join(forged, threshold, 32) == other


@settings(deadline=None)
@given(st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=20), st.integers(0, 40))
def test_fixed_point(values, bits):
    array = np.array(values)
    restored = fixed_point.decode(fixed_point.encode(array, 20, bits), bits)
    assert np.abs(restored - array).max() <= 2.0 ** -(bits + 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**31 / 20, -(2.0**31) / 20])
def test_numbers_beyond_the_sum_are_refused(value):
    with pytest.raises(ValueError, match="values: got|20 clients"):
        fixed_point.encode(np.array([0.0, value]), 20)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threshold": 2}, "threshold"),
        ({"threshold": 5}, "threshold"),
        ({"clients": 1, "threshold": 1}, "threshold"),
        ({"label": b"short"}, "label"),
    ],
)
def test_rounds_that_are_none(changes, words):
    with pytest.raises(ValueError, match=words):
        Round(**({"clients": 4, "threshold": 3, "label": bytes(16)} | changes))


def nothing(params, x):
    return x


@pytest.mark.parametrize(("name", "structure"), [("fisher_merge", "diagonal"), ("fedavg", None)])
def test_merging_by_secure_sum_is_merging(name, structure):
    rule = getattr(ff, name)(nothing, ff.categorical())
    sent = [payload(structure, seed, jnp.float64) for seed in range(3)]

    def require_equal(merged, plain):
        for ours, theirs in zip(jax.tree.leaves(merged.params), jax.tree.leaves(plain.params), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)

    require_equal(secure_merge(rule, sent, threshold=2), ff.merge_payloads(rule, sent))
    require_equal(secure_merge(rule, sent, threshold=2, silent=[2]), ff.merge_payloads(rule, [sent[0], sent[2]]))
    with pytest.raises(RoundVoid):
        secure_merge(rule, sent, silent=[1, 2])


def test_what_cannot_be_merged_is_not_summed_either():
    one = jnp.ones(2)
    rule, sent = ff.fedfish(nothing, ff.categorical()), ff.Payload(1.0, one, ff.Diagonal(one))
    with pytest.raises(ValueError, match=r"start: got shape \(3, 1\), expected \(2,\)"):
        secure_merge(rule, [sent, sent], jnp.zeros((3, 1)))
    whole = ff.Payload(1.0, jnp.arange(2))
    with pytest.raises(TypeError, match=r"payloads\[0\].params: got int.*, expected floating-point numbers"):
        secure_merge(ff.fedavg(nothing, ff.categorical()), [whole, whole])


@pytest.mark.parametrize("scale", [1e12, 1e-8, 1e-30])
def test_small_and_large_fishers_are_summed_as_well(scale):
    """The merged model does not depend on the Fisher's scale, and so must not the sum's resolution."""
    rule = ff.fisher_merge(nothing, ff.categorical())
    sent = [payload("diagonal", seed, jnp.float64) for seed in range(3)]
    scaled = [one._replace(statistics=one.statistics.scale(scale)) for one in sent]
    scaled[1] = scaled[1]._replace(statistics=jax.tree.map(jnp.zeros_like, scaled[1].statistics))  # of no scale at all
    merged, plain = secure_merge(rule, scaled, threshold=2), ff.merge_payloads(rule, scaled)
    for ours, theirs in zip(jax.tree.leaves(merged.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=5))
def test_the_finest_resolution_has_room_for_the_sum(clients, values):
    array = np.array(values)
    largest = fixed_point.exponent(array)
    bits = fixed_point.finest(largest, clients)
    encoded = fixed_point.encode(array, clients, bits)
    total = fixed_point.decode(np.sum([encoded] * clients, axis=0, dtype=np.uint64), bits)
    allowed = clients * np.ldexp(1.0, largest - 64 + (clients - 1).bit_length()) + 1e-15 * clients * np.abs(array)
    assert (np.abs(total - clients * array) <= allowed).all()
    with pytest.raises(ValueError, match="finite"):
        fixed_point.exponent(np.array([1.0, np.inf]))


def test_what_a_secure_merge_refuses():
    with pytest.raises(ValueError, match="fedfisher-kfac needs each client's payload"):
        secure_merge(ff.fedfisher(nothing, ff.categorical()), [payload("kronecker", seed) for seed in range(3)])
    with pytest.raises(ValueError, match="at least two"):
        secure_merge(ff.fedavg(nothing, ff.categorical()), [payload(None)])
    with pytest.raises(ValueError, match="the payload holds parameters alone"):
        secure_merge(ff.fisher_merge(nothing, ff.categorical()), [payload("diagonal"), payload(None)])
