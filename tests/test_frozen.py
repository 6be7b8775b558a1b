"""Parameters that nobody trains never move, and what is measured of the others is that part of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explicit import fisher, flat

import fedfisher_jax as ff

KEY, RNG = jax.random.key(0), np.random.default_rng(0)
SHAPES = {"b": (4,), "c": (2,), "v": (4, 2), "w": (3, 4)}
PARAMS = {name: jnp.asarray(RNG.normal(size=shape)) for name, shape in SHAPES.items()}
X = RNG.normal(size=(2, 30, 3))  # of two clients
PARTS = {"all but a weight": "bcv", "all but a bias": "cvw", "biases": "bc", "a weight": "w"}


def two_layers(params, inputs):
    return jnp.tanh(inputs @ params["w"] + params["b"]) @ params["v"] + params["c"]


def part(kept, params=PARAMS):
    return ff.trainable(two_layers, params, lambda path: path in kept)


def places(kept):
    """Which entries of the whole vector of parameters are trained."""
    return flat({name: jnp.full(shape, name in kept) for name, shape in SHAPES.items()})


@pytest.mark.slow
@pytest.mark.parametrize("kept", PARTS.values(), ids=PARTS)
def test_the_fisher_of_a_part_is_that_part_of_the_fisher(kept):
    model, data, at = part(kept), ff.examples(X[0]), places(kept)
    structures = ("diagonal", "kronecker", "full")
    found = ff.fishers(model.apply, ff.gaussian(), model.params, data, structures=structures)
    matrix = np.asarray(fisher(two_layers, ff.gaussian(), PARAMS, X[0], np.zeros((30, 2))))[at][:, at]
    np.testing.assert_allclose(found["full"].matrix, matrix, atol=1e-12)
    np.testing.assert_allclose(flat(found["diagonal"].diagonal()), np.diag(matrix), atol=1e-12)
    whole = ff.fisher(two_layers, ff.gaussian(), PARAMS, data, structure="kronecker")
    kron = np.asarray(whole.to_dense())[at][:, at]
    alone = flat({n: jnp.full(SHAPES[n], n == "b" and "w" not in kept or n == "c" and "v" not in kept) for n in kept})
    kron[alone] = kron[:, alone] = 0  # a bias without its weight is no layer, and has a diagonal
    kron[alone, alone] = np.diag(matrix)[alone]
    np.testing.assert_allclose(found["kronecker"].to_dense(), kron, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("structure, kept", [("kronecker", "bcv"), ("kronecker", "cvw"), ("full", "bc")])
def test_a_part_is_merged_to_the_minimum_over_it_and_the_rest_stays(structure, kept):
    at, exact = places(kept), ff.conjugate_gradients(damping=0.0, iterations=500, tolerance=1e-13)
    tuned = [
        PARAMS | {name: PARAMS[name] + 0.3 * RNG.normal(size=SHAPES[name]) for name in kept} for _ in range(len(X))
    ]
    model = part(kept)
    rule = ff.fedfisher(model.apply, ff.gaussian(), structure=structure, solver=exact)
    sent = [
        rule.measure(ff.Update({n: p[n] for n in kept}), ff.examples(x), KEY) for p, x in zip(tuned, X, strict=True)
    ]
    files = [
        ff.payload.dumps(one, ff.payload.About(rule.name, "gaussian", ff.payload.fingerprint(PARAMS))) for one in sent
    ]
    read = [ff.payload.loads(file, model.params, start=ff.payload.fingerprint(PARAMS))[0] for file in files]
    merged = model.whole(ff.merge_payloads(rule, read).params)
    for name in set(SHAPES) - set(kept):
        np.testing.assert_array_equal(merged[name], PARAMS[name])
    matrices = [np.asarray(one.statistics.to_dense()) for one in sent]
    expected = np.linalg.solve(sum(matrices), sum(f @ flat(p)[at] for f, p in zip(matrices, tuned, strict=True)))
    np.testing.assert_allclose(flat(merged)[at], expected, atol=1e-6)


def test_parameters_that_are_only_not_trained_do_move():
    """What `trainable` is for: all clients agree on the weight, and the minimum of Q lies elsewhere."""
    rule = ff.fedfisher(two_layers, ff.gaussian(), structure="full")
    tuned = [PARAMS | {"b": PARAMS["b"] + 0.3 * RNG.normal(size=4)} for _ in X]
    sent = [rule.measure(ff.Update(p), ff.examples(x), KEY) for p, x in zip(tuned, X, strict=True)]
    assert jnp.abs(ff.merge_payloads(rule, sent).params["w"] - PARAMS["w"]).max() > 1e-2


def test_two_parameters_of_one_path_are_refused():
    """Each would stand for the other."""
    params = {"a": {"b": jnp.ones(2)}, "a/b": jnp.zeros(2)}
    with pytest.raises(ValueError, match="params: expected leaves with different paths"):
        ff.trainable(two_layers, params, lambda path: True)


@pytest.mark.slow
def test_frozen_parameters_stay_where_they_are_and_the_rest_is_trained_and_merged():
    start = {"w": jax.random.normal(KEY, (4, 8)), "b": jnp.zeros(8), "v": jax.random.normal(KEY, (8, 3))}
    x, y = RNG.normal(size=(40, 4)), RNG.integers(0, 3, 40)

    def apply(params, inputs):
        return jax.nn.relu(inputs @ params["w"] + params["b"]) @ params["v"]

    model = ff.trainable(apply, start, lambda path: path == "b")
    parts = [ff.examples(x[:20], y[:20]), ff.examples(x[20:], y[20:])]
    training = ff.LocalTraining(model.apply, ff.categorical(), optax.sgd(0.3), epochs=3, batch_size=10)
    trained = [ff.train(training, model.params, d, KEY).params for d in parts]
    rule = ff.fedfisher(model.apply, ff.categorical())
    sent = [rule.measure(ff.Update(p), d, KEY) for p, d in zip(trained, parts, strict=True)]
    merged = model.whole(ff.merge_payloads(rule, sent).params)
    for name in ("w", "v"):
        np.testing.assert_array_equal(merged[name], start[name])
    assert jnp.abs(merged["b"]).max() > 0
    np.testing.assert_array_equal(apply(merged, x), model.apply({"b": merged["b"]}, x))
    with pytest.raises(ValueError, match="none of b, v, w"):
        ff.trainable(apply, start, lambda path: False)
