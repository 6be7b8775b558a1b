"""What the library's doors refuse before any work, at no cost under jit; and arithmetic that models of 16 bits keep."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax.federate import measure_clients, merge_clients, scaffold, train_clients

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(30, 5)), jnp.float32)
LABELS = RNG.integers(0, 3, 30)
START, KEY = jnp.zeros((5, 3)), jax.random.key(0)
PARTS = [np.arange(15), np.arange(15, 30)]


def apply(params, x):
    return x @ params


def training(likelihood=ff.categorical(), optimizer=optax.sgd(0.1), epochs=2, batch_size=8):
    return ff.LocalTraining(apply, likelihood, optimizer, epochs, batch_size)


UNFIT = {
    "labels from 1": (ff.categorical(), LABELS + 1),
    "one label beyond the classes": (ff.categorical(), np.where(np.arange(30) == 7, 3, LABELS)),
    "-1 for unknown": (ff.categorical(), np.where(np.arange(30) == 7, -1, LABELS)),
    "labels as floats": (ff.categorical(), LABELS.astype(float)),
    "regression of another shape": (ff.gaussian(), RNG.normal(size=30)),
    "a target that is not finite": (ff.gaussian(), np.full((30, 3), np.nan)),
    "-1 and 1 for 0 and 1": (ff.bernoulli(), 2.0 * RNG.integers(0, 2, (30, 3)) - 1),
}


@pytest.mark.parametrize("name", UNFIT)
def test_targets_that_do_not_fit_are_refused_at_every_door(name):
    likelihood, y = UNFIT[name]
    cohort = ff.cohort(X, y, PARTS)
    with pytest.raises(ValueError, match="^y: got"):
        train_clients(training(likelihood), START, cohort, KEY)
    federation = ff.Federation(training(likelihood), ff.fedavg(apply, likelihood), sampled=2)
    state = ff.rounds.init(federation, START, 2, KEY)
    for strategy in ("sequential", "threads"):
        with pytest.raises(ValueError, match="^y: got"):
            ff.rounds.step(federation, state, cohort, strategy=strategy)
    with pytest.raises(ValueError, match="^y: got"):
        ff.rounds.scan(federation, state, cohort, 2)
    with pytest.raises(ValueError, match="^y: got"):
        ff.evaluate(apply, likelihood, START, X, jnp.asarray(y))


def test_rows_that_nobody_reads_may_hold_anything():
    y = np.where(np.arange(30) < 3, -1, LABELS)
    cohort = ff.cohort(X, y, [np.arange(3, 15), np.arange(15, 30)])
    trained, _ = train_clients(training(), START, cohort, KEY)
    assert np.isfinite(trained.params).all()
    ff.evaluate(apply, ff.categorical(), START, X, jnp.asarray(y), mask=jnp.arange(30) >= 3)


def test_a_likelihood_of_ones_own_is_left_alone():
    own = dataclasses.replace(ff.gaussian(), name="mine")
    train_clients(training(own), START, ff.cohort(X, np.ones((30, 3)), PARTS), KEY)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([np.array([0, 1]), np.array([100, 25])], "client 1 has row 100, expected rows from 0 to 29"),
        ([np.array([0, -1])], "client 0 has row -1"),
        ([np.ones(30, bool)], "client 0 has rows of bool"),
        ([np.array([0.5])], "client 0 has rows of float64"),
        ([np.array([0]), np.array([], int)], "client 1 has rows of shape"),
        ([], "expected at least one client"),
    ],
)
def test_rows_that_are_none_are_refused(parts, words):
    with pytest.raises(ValueError, match=words):
        ff.cohort(X, LABELS, parts)


def test_numbers_that_do_not_match_the_clients_are_refused():
    with pytest.raises(ValueError, match="y: expected 30 targets"):
        ff.cohort(X, LABELS[:3], PARTS)
    with pytest.raises(ValueError, match="numbers: got shape"):
        ff.cohort(X, LABELS, PARTS, numbers=[1])
    for wrong in ({"batch_size": 0}, {"batch_size": -3}, {"epochs": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got"):
            train_clients(training(**wrong), START, ff.cohort(X, LABELS, PARTS), KEY)
    federation = ff.Federation(training(), ff.fedavg(apply, ff.categorical()), 2, variant=scaffold(0.5))
    state, cohort = ff.rounds.init(federation, START, 3, KEY), ff.cohort(X, LABELS, PARTS)
    with pytest.raises(ValueError, match="cohort: got 2 clients, expected the 3 that were registered"):
        ff.rounds.step(federation, state, cohort, strategy="sequential")
    plain = ff.Federation(training(), ff.fedavg(apply, ff.categorical()), 2)
    with pytest.raises(ValueError, match=r"epochs: got shape \(1,\)"):
        ff.rounds.step(plain, ff.rounds.init(plain, START, 2, KEY), cohort, epochs=jnp.array([1]))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([0, -1], r"got \[0, -1\], expected whole numbers from 0 to 2147483647"),
        ([0, 2**31], r"got \[0, 2147483648\], expected whole numbers"),
        ([7, 7], r"got \[7, 7\], expected different ones"),
    ],
)
def test_clients_that_would_share_their_random_draws_are_refused(numbers, words):
    with pytest.raises(ValueError, match=f"numbers: {words}"):
        ff.cohort(X, LABELS, PARTS, numbers=numbers)


@pytest.mark.parametrize("size", [0, -3])
@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "full", "gram", "low_rank"])
def test_a_fisher_in_batches_of_nothing_is_refused(structure, size):
    with pytest.raises(ValueError, match=f"batch_size: got {size}"):
        ff.fisher(apply, ff.categorical(), START, ff.examples(X, LABELS), structure=structure, batch_size=size, key=KEY)


@pytest.mark.parametrize("strategy", ["sequential", "threads"])
def test_a_sample_of_clients_is_measured_as_in_the_whole(strategy):
    cohort, rule = ff.cohort(X, LABELS, PARTS), ff.fedfisher(apply, ff.categorical())
    update = ff.Update(jnp.stack([START, START + 1]), START)
    whole, _ = measure_clients(rule.measure, update, cohort, KEY, strategy=strategy)
    sampled = cohort.sample(np.array([1]))
    alone, _ = measure_clients(rule.measure, ff.Update(update.params[1:], START), sampled, KEY, strategy=strategy)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[1:], b, rtol=1e-6)


@pytest.mark.parametrize("weight", [-3.0, 0.0, np.nan, np.inf])
def test_weights_that_are_none_are_refused_where_stacked_payloads_are_merged(weight):
    rule, models = ff.fedavg(apply, ff.categorical()), jnp.ones((2, 5, 3))
    sent = ff.Payload(jnp.asarray([1.0, weight]), models)
    with pytest.raises(ValueError, match=f"payloads: client 1 has weight {weight}, expected a positive number"):
        merge_clients(rule, sent)
    good = sent._replace(weight=jnp.asarray([1.0, 3.0]))
    np.testing.assert_allclose(jax.jit(lambda payloads: merge_clients(rule, payloads).params)(good), models[0])


def test_no_targets_are_no_label_0():
    bare, model = ff.examples(X), (apply, ff.categorical())
    for structure in ("diagonal", "kronecker", "low_rank"):
        with pytest.raises(ValueError, match="y: got None"):
            ff.fisher(*model, START, bare, structure=structure, kind="empirical", key=KEY)
    with pytest.raises(ValueError, match="y: got None"):
        ff.train(training(), START, bare, KEY)
    with pytest.raises(ValueError, match="y: got None"):
        ff.fedfish(*model, estimator="empirical").measure(ff.Update(START, START), bare, KEY)
    for kind in ("exact", "monte_carlo"):
        found = [ff.fisher(*model, START, data, kind=kind, key=KEY).values for data in (bare, ff.examples(X, LABELS))]
        np.testing.assert_array_equal(*found)
    assert ff.fedavg(*model).measure(ff.Update(START), bare, KEY).weight == 30


def test_what_is_masked_out_may_be_nan():
    mask = jnp.arange(30) % 3 != 0
    hidden = ff.examples(jnp.where(mask[:, None], X, jnp.nan), LABELS, mask)
    settings = training(epochs=2, batch_size=4)
    found = ff.train(settings, START, hidden, KEY).params
    shown = ff.train(settings, START, ff.examples(X, LABELS, mask), KEY).params
    np.testing.assert_array_equal(found, shown)
    fishers = [ff.fisher(apply, ff.categorical(), found, d).values for d in (hidden, ff.examples(X, LABELS, mask))]
    np.testing.assert_array_equal(*fishers)


@pytest.mark.parametrize(
    "optimizer",
    [optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()), optax.lbfgs()],
    ids=["plateau", "lbfgs"],
)
def test_optimisers_that_need_the_loss_train(optimizer):
    data, y = ff.examples(X, LABELS), jnp.asarray(LABELS)
    before = ff.evaluate(apply, ff.categorical(), START, X, y).loss
    found = ff.train(ff.LocalTraining(apply, ff.categorical(), optimizer, epochs=30, batch_size=30), START, data, KEY)
    assert ff.evaluate(apply, ff.categorical(), found.params, X, y).loss < 0.95 * before


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("size", [10_000, 60_000])
def test_scores_of_16_bit_models_are_summed_in_float32(dtype, size):
    x = jnp.asarray(RNG.normal(size=(size, 5)), dtype)
    params, y = jnp.asarray(RNG.normal(size=(5, 3)), dtype), RNG.integers(0, 3, size)
    y[: size // 500] = 1
    logits = np.asarray(apply(params, x), np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(size), y]
    found = ff.evaluate(apply, ff.categorical(), params, x, jnp.asarray(y))
    np.testing.assert_allclose(found.loss, losses.mean(), rtol=1e-4)  # compiled, a product is rounded elsewhere
    assert abs(float(found.accuracy) - (logits.argmax(1) == y).mean()) < 1e-4
    alone = ff.ensemble(apply, ff.categorical(), params[None], x, jnp.asarray(y))
    np.testing.assert_allclose(alone.loss, losses.mean(), rtol=1e-4)


@pytest.mark.parametrize("strategy", ["sequential", "vectorised", "threads"])
def test_a_fold_of_3000_ones_in_16_bits_is_3000(strategy):
    ones = jnp.ones(3000, jnp.bfloat16)
    total, _ = ff.fold_clients(lambda shared, one: one, None, ones, combine="add", group=1000, strategy=strategy)
    assert float(total) == 3000


@pytest.mark.slow
def test_small_clients_read_short_rows_beside_a_large_one():
    """20 clients of 10 examples beside one of 20,000: the index table follows examples, and results are the same."""
    sizes = [20_000, *[10] * 20]
    x, y = RNG.normal(size=(sum(sizes), 5)).astype(np.float32), RNG.integers(0, 3, sum(sizes))
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    cohort = ff.cohort(x, y, parts)
    assert cohort.rows.size == sum(sizes) and cohort.lengths[0] < 2000 and cohort.lengths[-1] == 20_000
    for strategy in ("sequential", "vectorised", "threads"):
        trained, _ = train_clients(training(epochs=1), START, cohort, KEY, strategy=strategy)
        alone, _ = train_clients(training(epochs=1), START, cohort.sample(np.array([7])), KEY, strategy="sequential")
        np.testing.assert_allclose(trained.params[7], alone.params[0], rtol=1e-5, atol=1e-6)
    rule = ff.fedfisher(apply, ff.categorical())
    sent = [
        measure_clients(rule.measure, ff.Update(trained.params, START), cohort, KEY, strategy=strategy)[0]
        for strategy in ("sequential", "vectorised")
    ]
    merged = [merge_clients(rule, payloads).params for payloads in sent]
    np.testing.assert_allclose(merged[0], merged[1], rtol=1e-4, atol=1e-5)


def test_rules_of_several_exchanges_and_what_is_no_rule_are_refused_by_every_merge():
    several = ff.then(ff.fedavg(apply, ff.categorical()), ff.fedfisher(apply, ff.categorical()))
    sent = [ff.Payload(jnp.asarray(1.0), jnp.ones((3, 2)))] * 2
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sent)
    for merge, what in ((merge_clients, stacked), (ff.merge_payloads, sent), (ff.merge.merge_one_by_one, sent)):
        with pytest.raises(ValueError, match="which is 2 exchanges, expected one of its parts"):
            merge(several, what)
        with pytest.raises(TypeError, match="rule"):
            merge(ff.fedavg, what)


def test_a_fisher_of_the_heaviest_columns_in_batches_of_nothing_is_refused():
    data = ff.examples(np.eye(3, dtype=np.float32), np.arange(3))
    with pytest.raises(ValueError, match="batch_size: got 0"):
        ff.fisher(lambda w, x: x @ w, ff.categorical(), jnp.zeros((3, 3)), data, batch_size=0, skip=0.1)
