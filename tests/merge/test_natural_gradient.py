"""Natural-gradient steps: against dense matrices, for any split of the data, and as a part of other rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import fedfisher_jax as ff
from fedfisher_jax.federate import compare, run_keys
from fedfisher_jax.merge import catalogue, natural_gradient
from fedfisher_jax.merge._natural_gradient import lengths_of
from fedfisher_jax.merge._sent import model_of

KEY, RNG = jax.random.key(0), np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(40, 4)))
Y = jnp.asarray(RNG.integers(0, 3, 40))
PARTS = [np.arange(3), np.arange(3, 24), np.arange(24, 40)]
LIKELIHOOD = ff.categorical()
START = {"a": jnp.asarray(RNG.normal(size=(4, 5)) / 2), "b": jnp.asarray(RNG.normal(size=(5, 3)) / 2)}
DAMPINGS, SHRINK = (0.1, 1.0), 0.02


def apply(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


def rule(squares=True, **options):
    how = {"steps": 2, "dampings": DAMPINGS, "shrink": SHRINK, "kind": "exact"} | options
    return natural_gradient(apply, LIKELIHOOD, squares=squares, **how)


def run(made, parts):
    """All exchanges of a rule with clients of these rows."""
    sent = START
    for part in ff.merge.exchanges(made):
        clients = [ff.examples(X[rows], Y[rows]) for rows in parts]
        sent = ff.merge_payloads(part, [part.measure(ff.Update(None, sent), c, KEY) for c in clients], sent).params
    return sent


def dense_steps(squares):
    """Both steps on the pooled data from explicit Jacobians, Kronecker products and inverses."""
    flat, unravel = ravel_pytree(START)
    last = []
    for _ in range(2):
        outputs = lambda p: apply(unravel(p), X)  # noqa: E731
        f, jacobian = np.asarray(outputs(flat)), np.asarray(jax.jacobian(outputs)(flat))  # [n, C], [n, C, d]
        p = np.asarray(jax.nn.softmax(f))
        errors = (f if squares else p) - np.eye(3)[Y]
        curvature = np.broadcast_to(np.eye(3), (40, 3, 3)) if squares else [np.diag(q) - np.outer(q, q) for q in p]
        gradient = np.einsum("nc,nci->i", errors, jacobian) / 40
        full = np.einsum("nci,ncd,ndj->ij", jacobian, curvature, jacobian) / 40
        params = unravel(flat)
        hidden = np.tanh(X @ params["a"])
        back = np.asarray(params["b"]) * (1 - hidden**2)[:, :, None]  # [n, 5, C]
        factors = [
            (X.T @ X / 40, np.einsum("nic,ncd,njd->ij", back, curvature, back) / 40),
            (hidden.T @ hidden / 40, np.mean(curvature, 0)),
        ]
        blocks = np.split(np.arange(35), [20])
        directions = []
        for damping in DAMPINGS:
            for where, (a, g) in zip(blocks, factors, strict=True):
                block = np.kron(a, g)
                shift = damping * np.trace(block) / len(block)
                d = np.zeros(35)
                d[where] = np.linalg.solve(block + shift * np.eye(len(block)), gradient[where])
                directions.append(d)
        d = np.stack(directions + last, 1)
        m = d.T @ full @ d
        step = d @ np.linalg.solve(m + SHRINK * np.diag(np.diag(m)), d.T @ gradient)
        flat = flat - step
        last = [np.where(np.isin(np.arange(35), where), -step, 0) for where in blocks]
    return unravel(flat)


@pytest.mark.slow
@pytest.mark.parametrize("squares", [True, False])
def test_steps_are_those_of_dense_matrices(squares):
    found = run(rule(squares), [np.arange(40)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), found, dense_steps(squares))


@pytest.mark.slow
def test_the_result_is_the_same_for_every_split_and_order():
    made, pooled = rule(), dense_steps(True)
    for parts in (PARTS, PARTS[::-1]):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), run(made, parts), pooled)


def test_directions_without_curvature_have_no_length():
    slopes, curvatures = jnp.asarray([2.0, 0.0]), jnp.asarray([[4.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(lengths_of(slopes, curvatures, 0.25), [2 / 5, 0])


@pytest.mark.slow
def test_it_follows_other_rules_and_all_of_its_bits_count():
    training = ff.LocalTraining(apply, LIKELIHOOD, optax.sgd(0.1), 1, 8)
    simulation = ff.federate.Simulation(training, START, ff.cohort(X, Y, PARTS), X, Y)
    name = "fedavg+natural-gradient,steps=2,kind=exact"
    made = catalogue.named_rule(name, apply, LIKELIHOOD, offers={"captured": ff.capture(apply, START, X)})
    assert len(ff.merge.exchanges(made)) == 5
    (found,) = (r.value for r in compare(simulation, {name: made}, run_keys(0)) if r.kind == "rule")
    gradient = 1 + 35 + (4 * 4 + 5 * 5) + (5 * 5 + 3 * 3)  # the loss, a gradient, two pairs of factors
    along = (6 + 6 * 6) + (8 + 8 * 8)  # two layers' parts of three directions; of the last step, too
    assert found["bits_up"] == 64 * (35 + 2 * gradient + along)
    losses = [found["diagnostics"][f"natural-gradient-{step}"]["loss"] for step in (1, 2)]
    assert losses[1] < losses[0]


@pytest.mark.slow
def test_rounds_have_it_too():
    """Nobody trains, so the average is the start."""
    training = ff.LocalTraining(apply, LIKELIHOOD, optax.sgd(0.1), 0, 8)
    federation = ff.Federation(training, ff.then(ff.fedavg(apply, LIKELIHOOD), rule(steps=1)), 3)
    state = ff.rounds.init(federation, START, 3, KEY)
    state, _ = ff.rounds.step(federation, state, ff.cohort(X, Y, PARTS), strategy="sequential")
    expected = run(rule(steps=1), PARTS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), state.params, expected)


@pytest.mark.slow
def test_models_of_16_bits_stay_such():
    half, seen = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), START), []
    sent = half
    for part in ff.merge.exchanges(rule(steps=1)):
        clients = [ff.examples(X[rows], Y[rows]) for rows in PARTS]
        sent = ff.merge_payloads(part, [part.measure(ff.Update(None, sent), c, KEY) for c in clients], sent).params
        seen.append(jax.tree.map(lambda leaf: leaf.dtype, model_of(sent)))
    assert all(one == jax.tree.map(lambda leaf: leaf.dtype, half) for one in seen)
    squares = lambda params: float(jnp.mean((apply(params, X) - jnp.eye(3)[Y]) ** 2))  # noqa: E731
    exact, wide = squares(run(rule(steps=1), PARTS)), jax.tree.map(lambda leaf: leaf.astype(float), sent)
    assert exact < squares(wide) < exact + 0.1 * (squares(START) - exact)


def test_settings_that_do_not_work():
    with pytest.raises(ValueError, match="steps: got 0"):
        natural_gradient(apply, LIKELIHOOD, steps=0)
    with pytest.raises(ValueError, match=r"dampings\[1\]: got 0"):
        natural_gradient(apply, LIKELIHOOD, dampings=(1.0, 0.0))
    with pytest.raises(TypeError, match="option: got 'rate'"):
        natural_gradient(apply, LIKELIHOOD, rate=3)
    step = natural_gradient(apply, LIKELIHOOD)
    with pytest.raises(ValueError, match="start: got None"):
        ff.merge.exchanges(step)[0].measure(ff.Update(START), ff.examples(X, Y), KEY)
