"""Rounds: what one does is what its rule says, whatever the strategy; several go on where they were stopped."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax import merge, models
from fedfisher_jax._files import only_writer
from fedfisher_jax.federate import _checkpoints as resume
from fedfisher_jax.federate import _simulate as simulate
from fedfisher_jax.federate import _variants as variants
from fedfisher_jax.federate import clip_to_clients, rounds, server_adam

SIZES = [17, 4, 3, 15, 9]
NETWORK = models.build("mlp", (6,), 3, hidden=(5,))
LIKELIHOOD = ff.categorical()
TRAIN = ff.LocalTraining(NETWORK.apply, LIKELIHOOD, optax.sgd(0.1), epochs=2, batch_size=4)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(sum(SIZES), 6)), rng.integers(0, 3, sum(SIZES))
    parts = np.split(rng.permutation(sum(SIZES)), np.cumsum(SIZES)[:-1])
    start = jax.tree.map(lambda leaf: leaf.astype(float), NETWORK.init(jax.random.key(0)))
    return start, ff.cohort(x, y, parts)


def plan_of(rule, sampled=len(SIZES), **settings):
    return rounds.Federation(TRAIN, rule, sampled, **settings)


def one_round(problem, plan, strategy="sequential", **how):
    start, who = problem
    state = rounds.init(plan, start, len(SIZES), jax.random.key(1))
    return rounds.step(plan, state, who, strategy=strategy, **how)


FEDAVG = ff.fedavg(NETWORK.apply, LIKELIHOOD)
KFAC = ff.fedfisher(NETWORK.apply, LIKELIHOOD)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "kronecker"])
def test_a_round_is_the_one_shot_merge(problem, name):
    start, who = problem
    rule = ff.fedavg(NETWORK.apply, LIKELIHOOD) if name == "fedavg" else ff.fedfisher(NETWORK.apply, LIKELIHOOD)
    plan = plan_of(rule)
    state = rounds.init(plan, start, len(SIZES), jax.random.key(1))
    after, metrics = rounds.step(plan, state, who, strategy="sequential")
    key = jax.random.fold_in(jax.random.fold_in(state.key, 0), 1)
    trained, _ = simulate.train_clients(TRAIN, start, who, key, strategy="sequential")
    payloads, _ = simulate.measure_clients(
        rule.measure, ff.Update(trained.params, start), who, key, strategy="sequential"
    )
    chex.assert_trees_all_close(after.params, simulate.merge_clients(rule, payloads).params, rtol=1e-9)
    np.testing.assert_allclose(metrics.loss, trained.loss.mean(), rtol=1e-9)
    assert int(after.round) == 1


@pytest.mark.slow
@pytest.mark.parametrize("rule", [FEDAVG, KFAC], ids=lambda rule: rule.name)
@pytest.mark.parametrize("strategy", ["vectorised", "threads", "devices"])
def test_strategies_agree(problem, rule, strategy):
    plan = plan_of(rule, sampled=3, variant=variants.scaffold(0.1), barrier=True, optimizer=optax.adam(0.1))
    expected, result = one_round(problem, plan), one_round(problem, plan, strategy)
    chex.assert_trees_all_close(result[0]._replace(key=0), expected[0]._replace(key=0), rtol=1e-7, atol=1e-9)
    chex.assert_trees_all_close(result[1][:4], expected[1][:4], rtol=1e-7, atol=1e-9)


def test_scan_is_step_after_step(problem):
    start, who = problem
    plan = plan_of(FEDAVG, sampled=2, optimizer=optax.sgd(0.5, 0.9))
    first = rounds.init(plan, start, len(SIZES), jax.random.key(2))
    state, losses = first, []
    for _ in range(3):
        state, metrics = rounds.step(plan, state, who, strategy="sequential")
        losses.append(float(metrics.loss))
    scanned, metrics = rounds.scan(plan, first, who, 3)
    chex.assert_trees_all_close(scanned._replace(key=0), state._replace(key=0), rtol=1e-9)
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-9)


def test_samples_differ_between_rounds_and_hold_nobody_twice(problem):
    plan = plan_of(FEDAVG, sampled=3)
    state = rounds.init(plan, problem[0], len(SIZES), jax.random.key(0))
    draws = [np.asarray(rounds.sample(plan, state._replace(round=jnp.asarray(r)), 5)) for r in range(40)]
    assert all(len(set(draw)) == 3 for draw in draws)
    assert np.bincount(np.concatenate(draws), minlength=5).min() > 10


def test_the_server_optimiser_sees_the_step_back_as_its_gradient(problem):
    merged = one_round(problem, plan_of(FEDAVG))[0].params
    half = one_round(problem, plan_of(FEDAVG, optimizer=optax.sgd(0.5)))[0].params
    chex.assert_trees_all_close(half, jax.tree.map(lambda a, b: (a + b) / 2, merged, problem[0]), rtol=1e-12)
    whole = one_round(problem, plan_of(FEDAVG, optimizer=optax.sgd(1.0)))[0].params
    chex.assert_trees_all_close(whole, merged, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_the_servers_step_is_clipped_to_the_clients_steps(problem):
    """To 0.2 √Σ ‖θ_i − θ‖² exactly, in its direction; a step that is short enough is not touched."""
    start, who = problem
    merged = one_round(problem, plan_of(FEDAVG))[0].params
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 0), 1)
    trained = simulate.train_clients(TRAIN, start, who, key, strategy="sequential")[0].params
    moved = jax.tree.map(lambda end, begin: end - begin, trained, start)
    longest = 0.2 * float(optax.tree.norm(moved))
    whole = optax.tree.sub(merged, start)
    assert longest < float(optax.tree.norm(whole))
    for rule in (FEDAVG, KFAC):
        clipped, told = one_round(problem, plan_of(rule, optimizer=optax.chain(clip_to_clients(0.2), optax.sgd(1.0))))
        np.testing.assert_allclose(told.moved, longest, rtol=1e-9)
        if rule is FEDAVG:
            expected = optax.tree.scale(longest / float(optax.tree.norm(whole)), whole)
            chex.assert_trees_all_close(optax.tree.sub(clipped.params, start), expected, rtol=1e-9, atol=1e-12)
    same = one_round(problem, plan_of(FEDAVG, optimizer=optax.chain(clip_to_clients(), optax.sgd(1.0))))[0].params
    chex.assert_trees_all_close(same, merged, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="times: got 0"):
        clip_to_clients(0.0)


FISH = ff.fedfish(NETWORK.apply, LIKELIHOOD)
FIPA = ff.fipa(NETWORK.apply, LIKELIHOOD, rank=2)


@pytest.mark.parametrize(
    ("rule", "strategy", "factor"),
    [
        (FEDAVG, "sequential", 100.0),
        pytest.param(FISH, "vectorised", 1.0, marks=pytest.mark.slow),
        pytest.param(FIPA, "threads", 1.0, marks=pytest.mark.slow),
        pytest.param(KFAC, "sequential", -1.0, marks=pytest.mark.slow),
    ],
    ids=["fedavg", "fedfish", "fipa", "fedfisher"],
)
def test_the_length_of_least_loss_is_taken(rule, strategy, factor, problem):
    """By losses of all clients' examples in one; a step that is far too long is cut, a wrong one is not taken."""
    start, who = problem
    server, lengths = optax.sgd(factor), (0.0, 0.01, 0.25, 1.0, 2.0)
    whole = optax.tree.sub(one_round(problem, plan_of(rule, optimizer=server), strategy)[0].params, start)
    found, told = one_round(problem, plan_of(rule, optimizer=server, lengths=lengths), strategy)
    trials = [optax.tree.add(start, optax.tree.scale(length, whole)) for length in lengths]
    losses = [float(ff.evaluate(NETWORK.apply, LIKELIHOOD, trial, who.x, who.y).loss) for trial in trials]
    best = int(np.argmin(losses))
    search = told.diagnostics["line_search"]
    np.testing.assert_allclose(search["losses"], losses, rtol=1e-9)
    assert float(search["length"]) == lengths[best] and {100.0: 0 < best < 3, 1.0: best > 1, -1.0: best == 0}[factor]
    chex.assert_trees_all_close(found.params, trials[best], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(told.moved, lengths[best] * float(optax.tree.norm(whole)), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("length", [-1.0, float("nan"), float("inf")])
def test_lengths_are_refused(length):
    with pytest.raises(ValueError, match=f"lengths: got {length}"):
        plan_of(FEDAVG, lengths=(1.0, length))


def test_bits_of_a_round_are_payloads_and_a_loss_for_each_length(problem):
    start, who = problem
    size, few = sum(leaf.size for leaf in jax.tree.leaves(start)), ff.examples(who.x, who.y)
    plan = plan_of(FISH, lengths=(0.5, 1.0), variant=variants.scaffold(0.1))
    assert rounds.bits_up(plan, start, few) == 64 * (2 * size + size + 2)


def test_the_servers_adam_is_the_formula():
    """Two steps by hand, with its own little momentum."""
    made, (rate, b1, b2) = server_adam(), (0.01, 0.5, 0.99)
    slopes, state, found = (jnp.asarray([3.0, -0.5]), jnp.asarray([-1.0, 2.0])), made.init(jnp.zeros(2)), []
    mean, square = np.zeros(2), np.zeros(2)
    for number, slope in enumerate(slopes, start=1):
        step, state = made.update(slope, state)
        mean, square = b1 * mean + (1 - b1) * slope, b2 * square + (1 - b2) * slope**2
        expected = -rate * (mean / (1 - b1**number)) / (np.sqrt(square / (1 - b2**number)) + 1e-8)
        np.testing.assert_allclose(step, expected, rtol=1e-12)
        found.append(step)
    assert abs(float(found[1][0])) < 0.01


@pytest.mark.slow
def test_every_client_may_have_its_own_epochs(problem):
    start, who = problem
    epochs = jnp.array([0, 1, 4, 0, 2])
    after = one_round(problem, plan_of(FEDAVG), epochs=epochs)[0].params
    shares = np.array(SIZES) / sum(SIZES)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 0), 1)
    mean = jax.tree.map(jnp.zeros_like, start)
    for number, share in enumerate(shares):
        train = simulate.TrainClient(dataclasses.replace(TRAIN, epochs=int(epochs[number])))
        mine = jax.tree.map(lambda leaf, n=number: leaf[n], who.members)
        model = train(simulate.Shared(who.shared, key, start), mine).params
        mean = jax.tree.map(lambda a, b, s=share: a + s * b, mean, model)
    chex.assert_trees_all_close(after, mean, rtol=1e-9)


@pytest.mark.parametrize("strategy", ["sequential", "vectorised", "threads"])
def test_only_models_that_diverge_are_refused(problem, strategy):
    """A Gaussian has no accuracy and an untrained client no loss: both are NaN, and no fault."""
    start, who = problem
    targets = jnp.stack([who.x[:, 0], who.x[:, 1], who.x[:, 2]], axis=1)
    who = dataclasses.replace(who, y=targets)
    train = dataclasses.replace(TRAIN, likelihood=ff.gaussian())
    plan = rounds.Federation(train, ff.fedavg(NETWORK.apply, ff.gaussian()), len(SIZES), barrier=True)
    state = rounds.init(plan, start, len(SIZES), jax.random.key(1))
    epochs = jnp.array([0, 1, 2, 1, 0])
    after, metrics = rounds.step(plan, state, who, epochs=epochs, strategy=strategy)
    chex.assert_tree_all_finite(after.params)
    assert np.isfinite(metrics.loss) and np.isfinite(metrics.barrier_loss) and np.isnan(metrics.barrier_accuracy)
    if strategy == "threads":
        far = dataclasses.replace(plan, training=dataclasses.replace(train, optimizer=optax.sgd(1e200)))
        with pytest.raises(ValueError, match=r"client [123]: NaN or infinity in its round's training"):
            rounds.step(far, state, who, epochs=epochs, strategy=strategy)


@pytest.mark.slow
def test_barrier_is_the_difference_of_losses_on_the_clients_data(problem):
    start, who = problem
    plan = plan_of(FEDAVG, barrier=True)
    after, metrics = one_round(problem, plan)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 0), 1)
    trained, _ = simulate.train_clients(TRAIN, start, who, key, strategy="sequential")
    gaps = []
    for number, size in enumerate(SIZES):
        rows = who.rows[who.members.start[number] :][:size]
        own = jax.tree.map(lambda leaf, n=number: leaf[n], trained.params)
        new, old = (ff.evaluate(NETWORK.apply, LIKELIHOOD, p, who.x[rows], who.y[rows]) for p in (after.params, own))
        gaps.append([float(new.loss - old.loss), float(old.accuracy - new.accuracy)])
    expected = np.mean(gaps, axis=0)
    np.testing.assert_allclose([metrics.barrier_loss, metrics.barrier_accuracy], expected, rtol=1e-9, atol=1e-12)


def test_rules_that_change_the_network_cannot_be_repeated(problem):
    grown = ff.Rule(
        "grown", ff.fedavg(NETWORK.apply, LIKELIHOOD).measure, lambda p, start: p,
        lambda s, start: ff.Merged(jax.tree.map(lambda leaf: leaf[0], s.params), {}, NETWORK.apply), "stack", jit=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="grown changes the network"):
        one_round(problem, plan_of(grown))
    with pytest.raises(ValueError, match="sampled"):
        rounds.init(plan_of(FEDAVG, sampled=6), problem[0], 5, jax.random.key(0))
    with pytest.raises(ValueError, match="participation"):
        rounds.fraction(0.0, 5)
    with pytest.raises(ValueError, match="strategy"):
        plan, (start, who) = plan_of(FEDAVG), problem
        rounds.scan(plan, rounds.init(plan, start, 5, jax.random.key(0)), who, 2, strategy="threads")


# FedFish.


@pytest.mark.slow
def test_fedfish_is_fisher_merge_without_eps(problem):
    """One round, the merged model taken as it is; the exact Fisher."""
    fish = merge.fedfish(NETWORK.apply, LIKELIHOOD, eps=0.0)
    found = one_round(problem, plan_of(fish, optimizer=optax.sgd(1.0)))[0].params
    expected = one_round(problem, plan_of(ff.fisher_merge(NETWORK.apply, LIKELIHOOD)))[0].params
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-12)


def test_equal_fishers_give_fedavg():
    start = {"w": jnp.asarray([1.0, -2.0, 0.5])}
    rule = merge.fedfish(NETWORK.apply, LIKELIHOOD, eps=0.0)
    moved = jnp.asarray([[1.0, 2.0, 3.0], [-1.0, 0.0, 5.0]])
    weight, squares = jnp.asarray([1.0, 3.0]), jnp.asarray([[0.2, 3.0, 0.0], [0.2, 3.0, 0.0]])
    payloads = ff.Payload(weight, {"w": start["w"] + moved}, ff.Diagonal({"w": squares}))
    summary = merge.fold(rule, jax.vmap(lambda payload: rule.lift(payload, start))(payloads))
    merged = rule.solve(summary, start)
    np.testing.assert_allclose(merged.params["w"], start["w"] + (moved[0] + 3 * moved[1]) / 4, rtol=1e-15)
    np.testing.assert_allclose(merged.diagnostics["share_averaged"], 1 / 3)


def test_eps_and_floor():
    """Entry by entry: much known, little known (the step shrinks), and less than the floor (the plain average)."""
    payload = ff.Payload(jnp.asarray(2.0), jnp.ones(3), ff.Diagonal(jnp.asarray([1.0, 0.1, 0.01])))
    rule = merge.fedfish(NETWORK.apply, LIKELIHOOD, eps=0.1, floor=0.05)
    found = rule.solve(rule.lift(payload, jnp.zeros(3)), jnp.zeros(3)).params
    np.testing.assert_allclose(found, [1 / 1.1, 0.5, 1.0], rtol=1e-12)


def test_divided_by_its_mean_a_clients_fisher_counts_by_its_examples_alone():
    """A client whose Fisher is a thousand times larger decides as it is, and not once both have mean 1."""
    start, moved = jnp.zeros(2), jnp.asarray([[1.0, 2.0], [-1.0, 4.0]])
    fishers = jnp.asarray([[1.0, 3.0], [3000.0, 1000.0]])
    payloads = ff.Payload(jnp.asarray([1.0, 1.0]), moved, ff.Diagonal(fishers))
    found = {}
    for scale in ("as_is", "mean"):
        rule = merge.fedfish(NETWORK.apply, LIKELIHOOD, eps=0.0, scale=scale)
        summary = merge.fold(rule, jax.vmap(lambda payload, r=rule: r.lift(payload, start))(payloads))
        found[scale] = rule.solve(summary, start).params
    np.testing.assert_allclose(found["mean"], [(0.5 - 1.5) / 2, (1.5 * 2 + 0.5 * 4) / 2], rtol=1e-12)
    np.testing.assert_allclose(found["as_is"], [(1 - 3000) / 3001, (3 * 2 + 1000 * 4) / 1003], rtol=1e-12)
    nothing = ff.Payload(jnp.asarray(1.0), moved[0], ff.Diagonal(jnp.zeros(2)))
    np.testing.assert_allclose(rule.solve(rule.lift(nothing, start), start).params, moved[0])


def test_squares_are_the_last_epochs_minibatch_gradients():
    """Zero rate: every step's gradient is taken at the start, so the last epoch's are those of one pass."""
    rng = np.random.default_rng(1)
    x, y = jnp.asarray(rng.normal(size=(6, 6))), jnp.asarray(rng.integers(0, 3, 6))
    start = jax.tree.map(lambda leaf: leaf.astype(float), NETWORK.init(jax.random.key(3)))
    data = ff.examples(x, y)
    training = ff.LocalTraining(NETWORK.apply, LIKELIHOOD, optax.sgd(0.0), epochs=3, batch_size=1, squares=True)
    found = ff.train(training, start, data, jax.random.key(0)).squares
    each = ff.fisher(NETWORK.apply, LIKELIHOOD, start, data, kind="empirical").values
    chex.assert_trees_all_close(found, each, rtol=1e-9)


@pytest.mark.parametrize("options", [{"estimator": "squares"}, {"estimator": "empirical"}, {"structure": "kronecker"}])
def test_one_client_gets_its_own_model(problem, options):
    start, who = problem
    x, y = who.x, who.y
    if "structure" in options:
        options = {**options, "solver": ff.conjugate_gradients(damping=0.1, tolerance=1e-12)}
    rule = merge.fedfish(NETWORK.apply, LIKELIHOOD, eps=0.0, **options)
    who = ff.cohort(x, y, [np.arange(10)])
    plan = rounds.Federation(TRAIN, rule, 1)
    state = rounds.init(plan, start, 1, jax.random.key(1))
    after = rounds.step(plan, state, who, strategy="sequential")[0]
    key = jax.random.fold_in(jax.random.fold_in(state.key, 0), 1)
    own = simulate.train_clients(TRAIN, start, who, key, strategy="sequential")[0].params
    chex.assert_trees_all_close(after.params, jax.tree.map(lambda leaf: leaf[0], own), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"estimator": "guess"},
        {"structure": "full"},
        {"structure": "kronecker", "estimator": "squares"},
        {"scale": "median"},
        {"eps": -1.0},
        {"batch_size": 7, "estimator": "squares"},
    ],
    ids=str,
)
def test_fedfish_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        merge.fedfish(NETWORK.apply, LIKELIHOOD, **wrong)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["sequential", "vectorised"])
def test_one_program_tells_of_a_model_that_diverged_and_nothing_of_it_is_kept(problem, strategy, tmp_path):
    start, who = problem
    far = dataclasses.replace(TRAIN, optimizer=optax.sgd(1e200))
    plan = dataclasses.replace(plan_of(FEDAVG), training=far)
    state = rounds.init(plan, start, len(SIZES), jax.random.key(1))
    _, metrics = rounds.step(plan, state, who, strategy=strategy)
    assert np.isinf(metrics.loss) and not np.isfinite(metrics.moved)
    with pytest.raises(ValueError, match="round 1: NaN or infinity after a round's training"):
        resume.run_rounds(plan, state, who, 2, tmp_path, strategy=strategy)
    assert not resume.read_lines(tmp_path / "rounds.jsonl")
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]


# Stopped and started again.


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_parameters(problem, tmp_path):
    """A process is killed in round 7 of 10; another one goes on; the result is that of an undisturbed run."""
    worker = Path(__file__).with_name("rounds_worker.py")

    def launch(folder, kill):
        env = {**os.environ, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, str(worker), str(folder), str(kill)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert launch(tmp_path / "killed", 7).returncode == -signal.SIGKILL
    assert len(resume.read_lines(tmp_path / "killed" / "rounds.jsonl")) == 6
    resumed, whole = launch(tmp_path / "killed", 0), launch(tmp_path / "whole", 0)
    assert resumed.returncode == whole.returncode == 0, resumed.stderr + whole.stderr
    assert resumed.stdout == whole.stdout != ""
    lines = [resume.read_lines(tmp_path / name / "rounds.jsonl") for name in ("killed", "whole")]
    assert lines[0] == lines[1] and [line["round"] for line in lines[0]] == list(range(1, 11))


def test_rounds_go_on_from_a_state_that_has_some_behind_it(problem, tmp_path):
    """A warm-up in a folder of its own, and the rest in another, are the rounds of one run."""
    start, who = problem
    plan = plan_of(FEDAVG)
    state = rounds.init(plan, start, len(SIZES), jax.random.key(1))
    run = lambda state, count, name: resume.run_rounds(plan, state, who, count, tmp_path / name, strategy="sequential")  # noqa: E731
    whole, lines = run(state, 3, "whole")
    warm, first = run(state, 1, "warm")
    for count in (2, 3, 3):  # the rest is interrupted after a round, and then begun once more where it is done
        rest, others = run(warm, count, "rest")
    assert [*first, *others] == lines and int(rest.round) == 3
    jax.tree.map(np.testing.assert_array_equal, rest.params, whole.params)


def test_too_few_rounds_are_refused(problem, tmp_path):
    start, who = problem
    plan = plan_of(FEDAVG)
    state = rounds.init(plan, start, len(SIZES), jax.random.key(1))
    resume.run_rounds(plan, state, who, 2, tmp_path, strategy="sequential")
    with pytest.raises(ValueError, match="rounds: got 1"):
        resume.run_rounds(plan, state, who, 1, tmp_path, strategy="sequential")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [lines[0], lines[1][:9], lines[2]], "line 2: got .*expected an object with round"),
        (lambda lines: [lines[0], "{}", lines[2]], "line 2: got"),
        (lambda lines: [lines[0], lines[2]], "line 2: got round 3, expected 2"),
        (lambda lines: [lines[0].replace('"round": 1', '"round": "1"'), *lines[1:]], "line 1: got round 1"),
    ],
)
def test_a_damaged_line_of_rounds_is_named_before_a_round_is_run(change, words, problem, tmp_path):
    start, who = problem
    plan = plan_of(FEDAVG)
    state = rounds.init(plan, start, len(SIZES), jax.random.key(1))
    resume.run_rounds(plan, state, who, 3, tmp_path, strategy="sequential")
    log = tmp_path / "rounds.jsonl"
    log.write_text("\n".join(change(log.read_text().splitlines())) + "\n")
    with pytest.raises(ValueError, match=rf"rounds\.jsonl: {words}"):
        resume.run_rounds(plan, state, who, 4, tmp_path, strategy="sequential")


@pytest.mark.parametrize("text", ["{", "[1]", "3", ""])
def test_a_damaged_note_of_whose_folder_it_is(text, problem, tmp_path):
    start, who = problem
    plan = plan_of(FEDAVG)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        resume.run_rounds(plan, rounds.init(plan, start, len(SIZES), jax.random.key(1)), who, 1, tmp_path)


def test_memory_follows_the_sampled_clients_not_the_registered_ones(problem):
    """What the compiled round needs beside its arguments, with 60 and with 600 registered clients, 50 sampled."""
    start, who = problem
    x, y = who.x, who.y

    def temporary(registered):
        plan = plan_of(FEDAVG, sampled=50)
        who = ff.cohort(x, y, [np.arange(4) + n % 40 for n in range(registered)])
        state = rounds.init(plan, start, registered, jax.random.key(0))
        program = rounds._one_program.lower(plan, "vectorised", state, who, None).compile()
        return program.memory_analysis().temp_size_in_bytes

    few, many = temporary(60), temporary(600)
    assert many - few < 50 * 600  # the draw itself looks at every number
    assert few > 50 * 8 * sum(leaf.size for leaf in jax.tree.leaves(start))


def test_a_folder_of_another_run_is_refused_with_what_differs(problem, tmp_path):
    start, who = problem
    plan = plan_of(FEDAVG)
    run = lambda plan, who, seed: resume.run_rounds(  # noqa: E731
        plan, rounds.init(plan, start, len(SIZES), jax.random.key(seed)), who, 2, tmp_path, strategy="sequential"
    )
    first, _ = run(plan, who, 1)
    again, _ = run(plan, who, 1)
    chex.assert_trees_all_equal(again.params, first.params)
    faster = dataclasses.replace(plan, training=dataclasses.replace(TRAIN, optimizer=optax.sgd(50.0)))
    more = dataclasses.replace(plan, training=dataclasses.replace(TRAIN, epochs=5))
    others = dataclasses.replace(who, x=who.x + 1)
    for other, words in (
        ((plan, who, 2), "key "),
        ((faster, who, 1), "optimizer "),
        ((more, who, 1), "epochs 2 there, 5 here"),
        ((plan, others, 1), "data "),
        ((dataclasses.replace(plan, variant=variants.fedprox(0.5)), who, 1), "variant none there"),
        ((plan_of(KFAC), who, 1), "rule fedavg there, fedfisher-kfac here"),
    ):
        with pytest.raises(ValueError, match=f"holds another run: .*{words}"):
            run(*other)
    with only_writer(tmp_path), pytest.raises(ValueError, match="another run is writing"):
        run(plan, who, 1)


@pytest.mark.slow
def test_rounds_of_optimisers_that_need_the_loss_are_kept_apart_too(problem, tmp_path):
    start, who = problem
    newton = dataclasses.replace(TRAIN, optimizer=optax.lbfgs(memory_size=2))
    plan = dataclasses.replace(plan_of(FEDAVG), training=newton)
    state = rounds.init(plan, start, len(SIZES), jax.random.key(1))
    resume.run_rounds(plan, state, who, 1, tmp_path, strategy="sequential")
    strong, weak = (dataclasses.replace(plan_of(FEDAVG), variant=variants.fedprox(mu)) for mu in (0.5, 0.1))
    resume.run_rounds(strong, state, who, 1, tmp_path / "prox", strategy="sequential")
    with pytest.raises(ValueError, match="variant "):
        resume.run_rounds(weak, state, who, 1, tmp_path / "prox", strategy="sequential")
