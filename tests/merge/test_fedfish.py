"""FedFish: its formulas entry by entry, and what they come to where Fishers or clients are alike."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_rounds
from small_rounds import LIKELIHOOD, NETWORK, TRAIN, one_round, plan_of

import fedfisher_jax as ff
from fedfisher_jax import merge
from fedfisher_jax.federate import _simulate as simulate
from fedfisher_jax.federate import rounds

problem = pytest.fixture(scope="module")(small_rounds.problem)


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
