"""One round of every rule, with a likelihood that knows no right and wrong."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax.federate import _one_shot as one_shot


def test_a_gaussian_has_losses_and_no_accuracies():
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(20, 3))), jnp.asarray(rng.normal(size=(20, 2)))
    who = ff.cohort(x, y, [np.arange(10), np.arange(10, 20)])
    apply = lambda params, x: x @ params  # noqa: E731
    train = ff.LocalTraining(apply, ff.gaussian(), optax.sgd(0.1), 3, 4)
    problem = one_shot.Simulation(train, jnp.zeros((3, 2)), who, x, y)
    found = list(one_shot.compare(problem, {"fedavg": ff.fedavg(apply, ff.gaussian())}, one_shot.run_keys(0)))
    scored = {(one.kind, one.name): one.value for one in found if one.kind != "training"}
    assert {"best_local", "ensemble", "ensemble_by_size"} == {name for kind, name in scored if kind == "reference"}
    assert all("accuracy" not in value and np.isfinite(value["loss"]) for value in scored.values())
    losses = [scored["client", str(number)]["loss"] for number in range(2)]
    assert scored["reference", "best_local"] == {"loss": min(losses), "client": int(np.argmin(losses))}


@pytest.mark.slow
def test_classes_have_an_ensemble_by_their_shares():
    """p(c|x) ∝ Σ_i (n_ic / n_c) p_i(c|x), from the clients' models and rows by hand."""
    rng = np.random.default_rng(1)
    x, y = jnp.asarray(rng.normal(size=(30, 3))), rng.integers(0, 3, 30)
    parts = [np.flatnonzero(y != 0)[::2], np.setdiff1d(np.arange(30), np.flatnonzero(y != 0)[::2])]
    who = ff.cohort(x, y, parts)
    apply = lambda params, x: x @ params  # noqa: E731
    train = ff.LocalTraining(apply, ff.categorical(), optax.sgd(0.1), 3, 4)
    problem = one_shot.Simulation(train, jnp.zeros((3, 3)), who, x, jnp.asarray(y))
    keys = one_shot.run_keys(0)
    found = {one.name: one.value for one in one_shot.compare(problem, {}, keys)}
    trained, _ = ff.federate.train_clients(train, problem.start, who, keys.train)
    counts = np.stack([np.bincount(y[part], minlength=3) for part in parts])
    each = np.stack([np.exp(np.asarray(x @ params, float)) for params in trained.params])
    each /= each.sum(-1, keepdims=True)
    mixed = ((counts / counts.sum(0))[:, None] * each).sum(0)
    loss = -np.log((mixed / mixed.sum(1, keepdims=True))[np.arange(30), y]).mean()
    assert abs(found["ensemble_by_class"]["loss"] - loss) < 1e-5
    assert abs(found["ensemble_by_class"]["accuracy"] - np.mean(mixed.argmax(1) == y)) < 1e-6


@pytest.mark.slow
def test_a_tree_of_inputs_and_targets_that_do_not_count_are_compared_as_one_array_without_them():
    """Every example's last position is padding in one federation, and is cut off in the other."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 4, 3)), rng.integers(0, 2, (12, 4))
    several = {"a": x[..., :1], "b": x[..., 1:]}
    of_dict = lambda params, x: jnp.concatenate([x["a"], x["b"]], axis=-1) @ params  # noqa: E731

    def compared(apply, likelihood, x, y):
        train = ff.LocalTraining(apply, likelihood, optax.sgd(0.1), 1, 4)
        who = ff.cohort(x, y, [np.arange(5), np.arange(5, 12)])
        problem = one_shot.Simulation(train, jnp.zeros((3, 2)), who, x, y)
        found = one_shot.compare(problem, {}, one_shot.run_keys(0))
        return {one.name: one.value for one in found if one.kind == "reference"}

    found = compared(of_dict, ff.categorical(ignore=-100), several, np.where(np.arange(4) < 3, y, -100))
    expected = compared(lambda params, x: x @ params, ff.categorical(), x[:, :3], y[:, :3])
    assert set(found) == {"best_local", "ensemble", "ensemble_by_size", "ensemble_by_class"}
    for name, scores in expected.items():
        assert found[name] == pytest.approx(scores)
