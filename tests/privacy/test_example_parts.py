"""Privacy of every example in Fishers, moments and gradients: sensitivity by brute force, accountants, merges."""

import dataclasses
import math

import audits
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedfisher_jax as ff
from fedfisher_jax import payload as files
from fedfisher_jax.curvature.structures._protocol import sign_of
from fedfisher_jax.merge import exchanges, natural_gradient, pseudo_data, regmean
from fedfisher_jax.merge._sent import Along
from fedfisher_jax.payload._structures import model_leaves
from fedfisher_jax.privacy import _example_parts as example_parts
from fedfisher_jax.privacy import _noisy_parts as noisy_parts
from fedfisher_jax.privacy import dp_training, example_noise

D, C, N = 3, 4, 5
START = jnp.asarray(np.random.default_rng(7).normal(size=(D, C)))
MODEL = (lambda w, x: x @ w), ff.categorical()
CLIPS = example_parts.Clips(fisher=0.3, features=0.7, gradients=0.2)
RULES = {
    "diagonal": ff.fedfisher(*MODEL, structure="diagonal"),
    "gram": regmean(*MODEL),
    "kronecker": ff.fedfisher(*MODEL),
    "class moments": pseudo_data(*MODEL, low=-1.0, high=1.0),
    "gradient": exchanges(natural_gradient(*MODEL, squares=False))[0],
    "quadratic": exchanges(natural_gradient(*MODEL, squares=False))[1],
}
LIMITS = {  # of every array, in the order of its leaves
    "diagonal": [0.3],
    "gram": [0.3],
    "kronecker": [0.3, 0.3],
    "class moments": [0.3, 0.3, 1.0, 0.7, 0.49, None],
    "gradient": [1.0, 0.2, 0.3, 0.3],
    "quadratic": [0.2, 0.04],
}
SIGNS = {
    "quadratic": [4, 2],
    "gradient": [4, 4, 2, 2],
    "class moments": [2, 2, 2, 4, 2],
}  # how far apart two parts of norm one are at most, squared


DIRECTIONS = np.random.default_rng(8).normal(size=(2, D, C))
SENT = {"quadratic": Along(START, jnp.asarray(DIRECTIONS), jnp.ones((1, 1)))}


@pytest.fixture(scope="module")
def measures():
    """Clipped and plain measures of `size` of the rows, one program each."""

    def compiled(measure, name):
        update = ff.Update(START, SENT.get(name, START))
        return jax.jit(lambda x, y, rows, n: measure(update, ff.Examples(x, y, rows, n), jax.random.key(0)))

    made = {name: compiled(example_parts.MeasureParts(rule.measure, CLIPS), name) for name, rule in RULES.items()}
    return made | {f"plain {name}": compiled(rule.measure, name) for name, rule in RULES.items()}


def people(draw, spread=2):
    """Examples whose parts may be far above and below the clips."""
    return draw.normal(size=(N + 1, D)) * 10 ** draw.uniform(-spread, spread, (N + 1, 1)), draw.integers(0, C, N + 1)


def released(sent, name):
    """The sums in the mechanism's scale: each array over its clip, weighted by √w, w in proportion to √(entries)."""
    arrays = jax.tree.leaves(sent.statistics)
    kept = [(a, c) for a, c in zip(arrays, LIMITS[name], strict=True) if c is not None]
    total = sum(math.sqrt(a.size) for a, _ in kept)
    return float(sent.weight) * jnp.concatenate([math.sqrt(math.sqrt(a.size) / total) * a.ravel() / c for a, c in kept])


@pytest.mark.parametrize("name", RULES)
def test_no_example_moves_the_sums_farther_than_the_sensitivity(name, measures):
    draw, added, replaced, rows = np.random.default_rng(0), [], [], np.arange(N + 1)
    arrays = jax.tree.leaves(measures[name](*map(jnp.asarray, (*people(draw), rows, N))).statistics)
    sizes = [math.sqrt(a.size) for a, c in zip(arrays, LIMITS[name], strict=True) if c is not None]
    signs = SIGNS.get(name, [2] * len(sizes))
    bound = math.sqrt(sum(s * w for s, w in zip(signs, sizes, strict=True)) / sum(sizes))
    for _ in range(100):
        x, y = map(jnp.asarray, people(draw))
        others = np.r_[np.arange(N - 1), N]  # the last of N examples is another one
        first, less, second = (
            released(measures[name](x, y, jnp.asarray(r), n), name)
            for r, n in ((rows, N), (rows, N - 1), (np.r_[others, 0], N))
        )
        added.append(np.linalg.norm(first - less))
        replaced.append(np.linalg.norm(first - second))
    assert 0.95 < max(added) <= 1 + 1e-9  # parts above all clips reach it
    if name != "class moments":  # it trains, so its promise is about one that is added
        assert 0.5 * bound < max(replaced) <= bound + 1e-9


@pytest.mark.parametrize("name", RULES)
def test_parts_below_the_clips_add_up_to_the_plain_statistics(name, measures):
    x, y = people(np.random.default_rng(1), 0)
    args = (*map(jnp.asarray, (0.05 * x, y, np.arange(N + 1), 4)),)
    wide = example_parts.MeasureParts(RULES[name].measure, example_parts.Clips(1e3, 1e3, 1e3))
    got = jax.jit(wide)(ff.Update(START, SENT.get(name, START)), ff.Examples(*args), jax.random.key(0))
    want = measures[f"plain {name}"](*args)
    if name == "gradient":  # log 4 and a little, which has a clip of one
        assert got.statistics.loss == 1 < want.statistics.loss
        want = want._replace(statistics=dataclasses.replace(want.statistics, loss=jnp.ones(())))
    for ours, plain in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-10, atol=1e-14)
    clipped = measures["gram"](*args[:3], 1).statistics.inputs[0]
    a = np.asarray(args[0][0])
    np.testing.assert_allclose(clipped, np.outer(a, a) * min(1, 0.3 / (a @ a)), rtol=1e-12)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("replaced", [True, False])
def test_the_noise_of_every_array_is_the_multiplier_times_the_sensitivity(name, replaced, measures):
    """Draws of ones show the deviations; in the mechanism's scale all are one number."""
    sent = measures[name](*map(jnp.asarray, (*people(np.random.default_rng(2)), np.arange(N + 1), N)))
    noise = example_parts.Noise(3.0, CLIPS, replaced)
    ones = noisy_parts.with_noise(sent, noise, np.ones)
    gap = released(ones, name) - released(sent, name)
    sizes = [math.sqrt(a.size) for a, c in zip(jax.tree.leaves(sent.statistics), LIMITS[name], strict=True) if c]
    signs = SIGNS.get(name, [2] * len(sizes))
    moved = math.sqrt(sum(s * w for s, w in zip(signs, sizes, strict=True)) / sum(sizes)) if replaced else 1.0
    np.testing.assert_allclose(gap, 3.0 * moved, rtol=1e-6)


def test_an_array_without_entries_needs_no_noise():
    def found(**values):
        noise = example_parts.Noise(3.0, CLIPS, False)
        return example_parts.deviations(ff.Diagonal(values), files.leaves(values), noise)

    alone = found(w=jnp.ones(3))
    assert found(b=jnp.ones(0), w=jnp.ones(3)) == [0.0, *alone] and alone[0] > 0


@pytest.mark.parametrize("name", ["kronecker", "gradient"])
def test_an_audit_finds_no_more_than_promised_and_more_with_half_of_the_noise(name, measures):
    """A canary that is added to a silo's factors, or replaces an example of a gradient; the worst of 60 pairs."""
    replaced, draw, rows = name == "gradient", np.random.default_rng(5), np.arange(N + 1)
    other = (np.r_[np.arange(N - 1), N, 0], N) if replaced else (rows, N - 1)
    pairs = []
    for _ in range(60):
        x, y = map(jnp.asarray, people(draw))
        pair = [measures[name](x, y, jnp.asarray(r), n) for r, n in ((rows, N), other)]
        pairs.append((float(jnp.linalg.norm(released(pair[0], name) - released(pair[1], name))), pair))
    _, pair = max(pairs, key=lambda found: found[0])
    promised = example_noise.promise(8.0, 1e-5)

    def audit(part):
        noise = example_parts.Noise(part * promised.noise_multiplier, CLIPS, replaced)
        noisy = lambda sent, draw: noisy_parts.with_noise(sent, noise, draw)  # noqa: E731
        return audits.gaussian(pair, noisy, lambda sent: released(sent, name), promised.delta)

    assert 0 < audit(1.0) <= 8.0 < audit(0.5)


def test_training_and_statistics_keep_one_promise_by_dp_accounting():
    accounting = pytest.importorskip("dp_accounting")
    from dp_accounting import pld

    beside = dp_training.Beside(share=0.3)
    found = dp_training.promise(2.0, 1e-5, 200, batch_size=40, epochs=1, clip_gradients=1.0, beside=beside)
    step = accounting.PoissonSampledDpEvent(0.2, accounting.GaussianDpEvent(found.noise_multiplier))
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3).compose(step, 5)
    spent = accountant.compose(accounting.GaussianDpEvent(found.noise_statistics)).get_epsilon(0.9e-5)
    assert 1.7 < spent <= 2.0  # Rényi divergences are not exact
    alone = pld.PLDAccountant().compose(accounting.GaussianDpEvent(found.noise_statistics * math.sqrt(0.3)))
    assert alone.get_epsilon(0.9e-5) == pytest.approx(2.0, rel=0.01)  # with all of the privacy


PROMISE = dp_training.promise(
    2.0, 1e-5, 40, batch_size=10, epochs=1, clip_gradients=1.0, beside=dp_training.Beside(clip_fisher=0.3)
)


@pytest.mark.parametrize("name", ["diagonal", "gram", "kronecker", "class moments"])
def test_a_payload_with_noise_is_what_it_must_be_and_merges(name, measures):
    args = *map(jnp.asarray, (*people(np.random.default_rng(3), 0), np.arange(N + 1))), N
    rule, sent = RULES[name], []
    if name == "class moments":
        rule = pseudo_data(*MODEL, low=-1.0, high=1.0, draws=ff.merge.Draws(steps=2))
    for _ in range(2):
        one = example_noise.noisy(measures[name](*args), PROMISE)
        for array_name, array in zip(
            one.statistics.names(model_leaves(one)), jax.tree.leaves(one.statistics), strict=True
        ):
            sign = sign_of(type(one.statistics), array_name)
            if sign == "semidefinite":
                assert np.linalg.eigvalsh(array).min() > -1e-9
                np.testing.assert_allclose(array, np.swapaxes(array, -1, -2))
            assert sign != "nonnegative" or (np.asarray(array) >= 0).all()
        sent.append(one)
    moved = [one._replace(params=one.params + n) for n, one in enumerate(sent)]
    assert not np.array_equal(*(jax.tree.leaves(one.statistics)[0] for one in sent))  # no seed
    merged = ff.merge_payloads(rule, moved, START).params
    assert jnp.isfinite(merged).all()
    if name == "diagonal":
        assert ((merged > START) & (merged < START + 1)).all()
    if name == "class moments":  # one distribution: the covariance of each class is semi-definite, too
        found = sent[0].statistics
        whole = np.asarray(found.second) * np.asarray(found.share)[:, None, None]
        outer = np.einsum("ci,cj->cij", found.first, found.first)
        assert np.linalg.eigvalsh(whole - outer).min() > -1e-9


@pytest.mark.parametrize("trust", ["local", "central"])
def test_natural_gradients_merge_whoever_adds_the_noise(trust, measures):
    """With next to no noise the directions are those of clipped parts; with some they differ and are finite."""
    rule, args = RULES["gradient"], (*people(np.random.default_rng(4), 0), np.arange(N + 1), N)
    sent = [measures["gradient"](*map(jnp.asarray, args))] * 2
    merged = lambda one, payloads: np.asarray(ff.merge_payloads(one, payloads, START).params.directions)  # noqa: E731
    promised = example_noise.promise(4.0, 1e-5, clip_gradients=0.2, clip_fisher=0.3, trust=trust)
    found = []
    for multiplier in (1e-12, promised.noise_multiplier):
        kept = promised._replace(noise_multiplier=multiplier)
        if trust == "local":
            found.append(merged(rule, [example_noise.noisy(one, kept) for one in sent]))
        else:
            found.append(merged(example_noise.private(rule, kept), sent))
    np.testing.assert_allclose(found[0], merged(rule, sent), rtol=1e-6)
    assert np.isfinite(found[1]).all() and np.abs(found[1] - found[0]).max() > 1e-3


def test_what_no_promise_can_be_made_about_is_refused_by_name():
    sums = example_noise.promise(1.0, 1e-5)
    for rule, promised, words in (
        (ff.fedfisher(*MODEL, structure="low_rank"), PROMISE, "eigenvectors of a Fisher, which one example"),
        (pseudo_data(*MODEL), PROMISE, "expected pseudo-data,low=L,high=H"),
        (ff.fedfish(*MODEL, estimator="squares"), PROMISE, "got fedfish, expected one that measures sums"),
        (natural_gradient(*MODEL), sums, "2 exchanges, expected one of its parts"),
        (RULES["gram"], sums, "which sends a trained model: use dp_training.promise"),
        (RULES["gradient"], PROMISE, "which sends sums alone: use promise"),
        (RULES["gradient"], sums._replace(trust="distributed"), "trust: got 'distributed' for natural-gradient-1"),
        (RULES["gram"], PROMISE._replace(noise_statistics=0.0), "got a share of 0 for statistics"),
        (ff.merge.recalibrate(*MODEL), PROMISE, "expected that of after_training"),
    ):
        with pytest.raises(ValueError, match=words):
            example_noise.private(rule, promised)
    asked = {"batch_size": 10, "epochs": 1, "clip_gradients": 1.0}
    for share, words in ((1.0, "expected a number between 0 and 1"), (0.99, "leaves nothing for training")):
        with pytest.raises(ValueError, match=words):
            dp_training.promise(1.0, 1e-5, 40, **asked, beside=dp_training.Beside(share))
