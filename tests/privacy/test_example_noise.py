"""Example-level privacy of sums: sensitivity by brute force, the accountant, an audit, and heads of noisy sums."""

import audits
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedfisher_jax as ff
from fedfisher_jax.merge import _heads as heads
from fedfisher_jax.merge import analytic
from fedfisher_jax.privacy import example_noise

D, C, CLIP = 4, 3, 0.7
START = jnp.zeros((D, C))
PROMISE = example_noise.promise(1.0, 1e-5, clip_features=CLIP)


def linear(w, x):
    return x @ w


RULE = analytic(linear, ff.categorical())


@jax.jit
def measured(x, y):
    clipped = example_noise.clipped(RULE, PROMISE)
    return clipped.measure(ff.Update(None, START), ff.examples(x, y), jax.random.key(0))


def scaled_sums(sent):
    """What is released, in the mechanism's scale, as a vector."""
    first, second, third = example_noise.SHARES
    moments, n = sent.statistics, float(sent.weight)
    parts = (
        np.sqrt(first) / CLIP**2 * moments.second,
        np.sqrt(second) / CLIP * moments.cross,
        np.sqrt(third) * moments.totals,
    )
    return n * jnp.concatenate([part.ravel() for part in parts])


def neighbours(draw, pair=None):
    """Two data sets of five examples that differ in one, whose features may be far beyond the clip."""
    x, y = draw.normal(size=(5, D)) * 10 ** draw.uniform(-2, 2, size=(5, 1)), draw.integers(0, C, 5)
    other_x, other_y = x.copy(), y.copy()
    if pair is None:
        other_x[2], other_y[2] = draw.normal(size=D) * 10 ** draw.uniform(-2, 2), draw.integers(C)
    else:
        (x[2], y[2]), (other_x[2], other_y[2]) = pair
    return (x, y), (other_x, other_y)


def worst_pair():
    """The pair that the bound is made for: one class, features with φᵀφ'/c² = −w₂/(2w₁)."""
    first, second, _ = example_noise.SHARES
    u = -second / (2 * first)
    return (np.eye(D)[0] * 9, 1), (9 * np.array([u, np.sqrt(1 - u**2), 0, 0]), 1)


def test_no_neighbours_are_farther_apart_than_the_sensitivity_and_some_as_far():
    draw, bound = np.random.default_rng(0), example_noise.sensitivity()
    gaps = []
    for number in range(1500):
        one, other = neighbours(draw)
        gaps.append(np.linalg.norm(scaled_sums(measured(*one)) - scaled_sums(measured(*other))))
    assert max(gaps) <= bound * (1 + 1e-12)
    one, other = neighbours(draw, worst_pair())
    gap = np.linalg.norm(scaled_sums(measured(*one)) - scaled_sums(measured(*other)))
    assert 0.999999 * bound <= gap <= bound * (1 + 1e-12)


@pytest.mark.parametrize("shares", [example_noise.SHARES, (0.8, 0.1, 0.1), (0.2, 0.7, 0.1), (0.1, 0.1, 0.8)])
def test_the_bound_holds_for_every_weighting(shares):
    """A grid over norms, angles and classes of two examples, without the library's own formula."""
    first, second, third = shares
    a, b, t, s = np.meshgrid(*[np.linspace(0, 1, 41)] * 2, np.linspace(-1, 1, 81), [0, 1], indexing="ij")
    square = first * (a**4 + b**4 - 2 * (a * b * t) ** 2) + second * (a**2 + b**2 - 2 * a * b * t * s)
    largest = np.sqrt((square + third * (2 - 2 * s)).max())
    bound = example_noise.sensitivity(shares)
    assert largest <= bound * (1 + 1e-12)
    if second <= 2 * first:  # else the maximum lies outside of what angles can be
        assert largest >= 0.99 * bound


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("releases", [1, 3])
def test_the_noise_is_that_of_dp_accounting(epsilon, releases):
    accounting = pytest.importorskip("dp_accounting")
    from dp_accounting import pld

    found = example_noise.promise(epsilon, 1e-5, clip_features=1.0, releases=releases)
    event = accounting.GaussianDpEvent(2 * found.noise_multiplier)  # there relative to adding one, here to replacing it
    spent = pld.PLDAccountant(accounting.NeighboringRelation.REPLACE_ONE).compose(event, releases).get_epsilon(1e-5)
    assert epsilon - 1e-6 <= spent <= epsilon * 1.01 + 1e-3


def test_what_is_spent_together_is_that_of_dp_accounting():
    accounting = pytest.importorskip("dp_accounting")
    from dp_accounting import pld

    accountant = pld.PLDAccountant(accounting.NeighboringRelation.REPLACE_ONE)
    for sigma in (2.0, 5.0, 3.0):
        accountant = accountant.compose(accounting.GaussianDpEvent(2 * sigma))
    found, want = example_noise.spent([2.0, 5.0, 3.0], 1e-5), accountant.get_epsilon(1e-5)
    assert found - 1e-6 <= want <= 1.01 * found + 1e-3


def audit(promised):
    """The ε that an audit finds of heads' sums, for the pair that the bound is made for."""
    pair = [measured(*data) for data in neighbours(np.random.default_rng(1), worst_pair())]
    noisy = lambda sent, draw: example_noise.noisy(sent, promised, draw)  # noqa: E731
    return audits.gaussian(pair, noisy, scaled_sums, promised.delta)


@pytest.mark.parametrize("epsilon", [4.0, 8.0])
def test_an_audit_finds_no_more_than_promised_and_more_with_half_of_the_noise(epsilon):
    promised = example_noise.promise(epsilon, 1e-5, clip_features=CLIP)
    assert 0 < audit(promised) <= epsilon
    assert audit(promised._replace(noise_multiplier=promised.noise_multiplier / 2)) > epsilon


def merged_noise(promised, clients, draws=400):
    """Standard deviations of the noise in the sum over clients of the three sums, and the variances that it tells."""
    rule = example_noise.private(analytic(linear, ff.categorical()), promised)
    draw = np.random.default_rng(3)
    data = [(draw.normal(size=(6, D)), draw.integers(0, C, 6)) for _ in range(clients)]

    def total(key, rule):
        keys = jax.random.split(key, clients)
        sent = [
            rule.measure(ff.Update(None, START), ff.examples(x, y), k) for (x, y), k in zip(data, keys, strict=True)
        ]
        lifted = [ff.merge.lift(rule, one, START)["moments"] for one in sent]
        return jax.tree.map(lambda *leaves: sum(leaves), *lifted)

    plain = total(jax.random.key(0), example_noise.clipped(rule_of_heads(), promised))
    found = jax.jit(jax.vmap(lambda key: total(key, rule)))(jax.random.split(jax.random.key(4), draws))
    gaps = {name: np.asarray(getattr(found, name) - getattr(plain, name)) for name in ("second", "cross", "totals")}
    for gap in gaps.values():
        assert abs(gap.mean()) < 5 * gap.std() / np.sqrt(gap.size / 2)
    diagonal = np.diagonal(gaps["second"], axis1=1, axis2=2).std()
    np.testing.assert_allclose(gaps["second"], np.swapaxes(gaps["second"], 1, 2), atol=1e-9)
    off = gaps["second"][:, *np.triu_indices(D, 1)].std()
    return diagonal, off, gaps["cross"].std(), gaps["totals"].std(), np.asarray(found.variances[0])


def rule_of_heads():
    return analytic(linear, ff.categorical())


@pytest.mark.slow
@pytest.mark.parametrize(("trust", "sharers", "factor"), [("local", 1, 5.0), ("distributed", 4, 5 / 4)])
def test_five_clients_add_the_noise_of_their_model_of_trust(trust, sharers, factor):
    """Locally five times the variance; divided among four, of whom nobody dropped out, 5/4 of it."""
    promised = example_noise.promise(1.0, 1e-5, clip_features=CLIP, trust=trust, sharers=sharers)
    diagonal, off, cross, totals, variances = merged_noise(promised, 5)
    wanted = np.asarray(example_noise.deviations(promised)) * np.sqrt(factor)
    np.testing.assert_allclose([diagonal, cross, totals], wanted, rtol=0.06)
    assert off == pytest.approx(wanted[0] / np.sqrt(2), rel=0.06)
    np.testing.assert_allclose(variances, wanted**2, rtol=1e-6)


def test_a_secure_sum_carries_noisy_sums():
    pytest.importorskip("cryptography")
    promised = example_noise.promise(8.0, 1e-5, clip_features=CLIP, trust="distributed", sharers=3)
    rule = example_noise.clipped(RULE, promised)
    draw = np.random.default_rng(0)
    sent = []
    for number in range(4):
        x, y = draw.normal(size=(900, D)), draw.integers(0, C, 900)
        plain = rule.measure(ff.Update(None, START), ff.examples(x, y), jax.random.key(number))
        sent.append(example_noise.noisy(plain, promised))
    want, got = ff.merge_payloads(rule, sent, START), ff.privacy.secure_merge(rule, sent, START)
    np.testing.assert_allclose(got.params, want.params, rtol=1e-9, atol=1e-12)
    assert float(got.diagnostics["ridge"]) == pytest.approx(float(want.diagnostics["ridge"]), rel=1e-9)


def test_with_central_trust_the_server_adds_it_to_exact_sums():
    promised = example_noise.promise(1.0, 1e-5, clip_features=CLIP, trust="central")
    rule = example_noise.private(RULE, promised)
    draw = np.random.default_rng(0)
    data = ff.examples(draw.normal(size=(30, D)), draw.integers(0, C, 30))
    sent = rule.measure(ff.Update(None, START), data, jax.random.key(0))
    plain = example_noise.clipped(RULE, promised).measure(ff.Update(None, START), data, jax.random.key(0))
    np.testing.assert_array_equal(sent.statistics.second, plain.statistics.second)
    heads_found = [np.asarray(ff.merge_payloads(rule, [sent], START).params) for _ in range(2)]
    assert np.abs(heads_found[0] - heads_found[1]).max() > 0  # no seed
    quiet = example_noise.private(RULE, promised._replace(noise_multiplier=1e-9))
    exact = ff.merge_payloads(example_noise.clipped(RULE, promised), [sent], START).params
    np.testing.assert_allclose(ff.merge_payloads(quiet, [sent], START).params, exact, atol=1e-5)


def test_features_within_the_clip_are_as_they_are():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(20, D)), draw.integers(0, C, 20)
    wide = example_noise.clipped(RULE, PROMISE._replace(clip_features=1e3)).measure
    args = ff.Update(None, START), ff.examples(x, y), jax.random.key(0)
    got, want = wide(*args).statistics, RULE.measure(*args).statistics
    np.testing.assert_allclose(got.second, want.second, atol=1e-12)
    np.testing.assert_allclose(got.cross, want.cross, atol=1e-12)
    small = example_noise.clipped(RULE, PROMISE._replace(clip_features=1e-3)).measure(*args).statistics
    assert float(jnp.trace(small.second)) == pytest.approx(1e-6)  # every norm is the clip's


def test_the_ridge_makes_noisy_sums_definite_and_is_nothing_without_noise():
    draw, size, variance = np.random.default_rng(0), 40, 9.0
    low = draw.normal(size=(size, 3))
    second = 50 * low @ low.T
    least = []
    for _ in range(100):
        z = 3.0 * draw.normal(size=(size, size))
        released = second + (z + z.T) / 2
        shift = heads.noise_ridge(released, variance)
        least.append(np.linalg.eigvalsh(released)[0] + shift)
    assert np.mean(np.asarray(least) > 0) >= 1 - heads.FAILURE
    assert heads.noise_ridge(second, 0.0) == 0.0
    off = 3 / np.sqrt(2)
    assert heads.noise_ridge(1e6 * np.eye(size), variance) == 0.0  # well above the noise: none is needed
    most = off * np.sqrt(size * np.log(2 * size**2 / 0.05))
    assert heads.noise_ridge(second, variance) == pytest.approx(most)


def test_much_data_and_little_privacy_give_the_head_without_noise():
    """Sums grow with the number of examples, noise does not."""
    draw = np.random.default_rng(0)
    gaps = []
    for count in (200, 20_000):
        x = draw.normal(size=(count, D))
        y = (x @ draw.normal(size=(D, C))).argmax(1)
        promised = example_noise.promise(8.0, 1e-5, clip_features=CLIP)
        args = ff.Update(None, START), ff.examples(x, y), jax.random.key(0)
        want = ff.merge_payloads(RULE, [example_noise.clipped(RULE, promised).measure(*args)], START).params
        rule = example_noise.private(RULE, promised)
        got = ff.merge_payloads(rule, [rule.measure(*args)], START).params
        gaps.append(float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want)))
    assert gaps[1] < 0.02 < gaps[0]


def test_two_releases_keep_one_promise_together():
    promised = example_noise.promise(1.0, 1e-5, clip_features=CLIP)
    first, second = example_noise.split(promised, 0.3)
    assert first.second_alone and not second.second_alone
    assert example_noise.spent([first.noise_multiplier, second.noise_multiplier], 1e-5) == pytest.approx(1.0, rel=1e-9)
    assert example_noise.spent([second.noise_multiplier], 1e-5) < 1.0
    sent = measured(np.random.default_rng(0).normal(size=(9, D)), np.zeros(9, int))
    only = example_noise.noisy(sent, first).statistics
    assert not np.any(only.cross) and not np.any(only.totals) and np.any(only.second != sent.statistics.second)
    wanted = first.noise_multiplier * np.sqrt(2) * CLIP**2  # two examples' φφᵀ are at most √2 c² apart
    assert float(only.variances[0]) * 9 == pytest.approx(wanted**2)
    draws = [
        np.diagonal(example_noise.noisy(sent, first).statistics.second - sent.statistics.second) for _ in range(500)
    ]
    assert 9 * np.std(draws) == pytest.approx(wanted, rel=0.08)


def test_whitened_features_are_as_strong_in_every_direction_and_the_head_is_that_of_features():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(4000, D)) * [30, 3, 1, 0.3]
    y = (x @ draw.normal(size=(D, C))).argmax(1)
    data = ff.examples(x, y)
    quiet = example_noise.Promise(1.0, 1e-5, 1, 1e-16, clip_features=1e6, second_alone=True)
    args = ff.Update(None, START), data, jax.random.key(0)
    plain = example_noise.clipped(RULE, quiet)
    first = example_noise.noisy(plain.measure(*args), quiet)
    basis = example_noise.whitening(ff.merge.lift(RULE, first, START)["moments"])
    rule = example_noise.clipped(analytic(linear, ff.categorical(), basis=basis, ridge=1e-9), quiet)
    sent = rule.measure(*args)
    whitened = 4000 * np.asarray(sent.statistics.second)
    np.testing.assert_allclose(whitened / whitened[0, 0], np.eye(D), atol=0.1)
    want = ff.merge_payloads(analytic(linear, ff.categorical(), ridge=1e-9), [RULE.measure(*args)], START).params
    np.testing.assert_allclose(ff.merge_payloads(rule, [sent], START).params, want, atol=1e-5)


def test_what_no_promise_can_be_made_about_is_refused():
    with pytest.raises(ValueError, match="epsilon: got 0"):
        example_noise.promise(0.0, 1e-5, clip_features=1.0)
    with pytest.raises(ValueError, match="delta, releases: got 1"):
        example_noise.promise(1.0, 1.0, clip_features=1.0)
    with pytest.raises(ValueError, match="trust, sharers: got 'local', 3"):
        example_noise.promise(1.0, 1e-5, clip_features=1.0, sharers=3)
    with pytest.raises(ValueError, match="rule: got fedavg"):
        example_noise.private(ff.fedavg(linear, ff.categorical()), PROMISE)
    with pytest.raises(ValueError, match="likelihood: got gaussian"):
        example_noise.private(analytic(linear, ff.gaussian()), PROMISE)
    x, y = np.ones((3, D)), np.zeros(3, int)
    x[1, 1] = np.inf
    with pytest.raises(ValueError, match="second: got NaN"):
        example_noise.noisy(measured(x, y), PROMISE)
    sent = example_noise.noisy(measured(np.ones((3, D)), y), PROMISE)
    with pytest.raises(ValueError, match="got NoisyMoments, expected Moments without noise"):
        example_noise.noisy(sent, PROMISE)
    per_position = analytic(lambda w, x: x @ w, ff.categorical())
    with pytest.raises(ValueError, match="clip: got outputs of shape"):
        rule = example_noise.clipped(per_position, PROMISE)
        sequences = ff.examples(np.ones((3, 2, D)), np.zeros((3, 2), int))
        rule.measure(ff.Update(None, START), sequences, jax.random.key(0))


def test_exact_sums_lose_no_more_than_is_counted_also_in_float32():
    """With JAX's default types, of 3,000 examples: half a unit in the last place, where plain sums lose more."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(3000, D)).astype(np.float32), draw.integers(0, C, 3000)
    wide = x.astype(np.float64)
    rows = wide * np.minimum(1, CLIP / np.linalg.norm(wide, axis=1))[:, None]
    targets = np.eye(C)[y]
    want = [rows.T @ rows / 3000, rows.T @ targets / 3000, targets.mean(0)]
    with jax.enable_x64(False):
        rule = example_noise.clipped(RULE, PROMISE)
        start, data = jnp.zeros((D, C), jnp.float32), ff.examples(x, y)
        sent = example_noise.exact(rule, start, data, jax.random.key(0)).statistics
        plain = rule.measure(ff.Update(None, start), data, jax.random.key(0)).statistics
        for name, sums in zip(("second", "cross", "totals"), want, strict=True):
            assert getattr(sent, name).dtype == np.float32
            np.testing.assert_array_less(np.abs(getattr(sent, name) - sums), 1.001 * 2.0**-24 * np.abs(sums) + 1e-30)
        assert (np.abs(plain.second - want[0]) > 1.001 * 2.0**-24 * np.abs(want[0])).any()
