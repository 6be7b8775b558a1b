from functools import cache, partial

import explicit
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax import models
from fedfisher_jax._likelihood import check_targets

V, T = 5, 4
CATEGORICAL = ff.categorical()
X = jnp.asarray(np.random.default_rng(0).integers(0, V, (3, T)))
Y = jnp.asarray(np.random.default_rng(1).integers(0, V, (3, T)))


@cache
def network(tied=False, use_bias=True):
    return models.build_transformer(V, T, width=4, depth=1, heads=2, expansion=2, tied=tied, use_bias=use_bias)


@cache
def start(tied=False, use_bias=True):
    """Float64 and no zeros, so that every leaf has a gradient."""
    leaves, treedef = jax.tree.flatten(network(tied, use_bias).init(jax.random.key(0)))
    draw = np.random.default_rng(2)
    return treedef.unflatten([jnp.asarray(leaf + 0.3 * draw.normal(size=leaf.shape)) for leaf in leaves])


@cache
def captured(tied=False):
    return ff.capture(network(tied).apply, start(tied), X)


@partial(jax.jit, static_argnames=("tied", "structures", "kind"))
def measure(params, *, tied=False, structures=("diagonal",), kind="exact"):
    options = {"structures": structures, "kind": kind, "captured": captured(tied)}
    return ff.fishers(network(tied).apply, CATEGORICAL, params, ff.examples(X, Y), **options)


def count(**options):
    shapes = jax.eval_shape(models.build_transformer(11, 7, **options).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


# The network.


def test_parameter_counts():
    options = {"width": 6, "depth": 3, "heads": 2, "expansion": 4}
    block = 4 * 36 + 2 * 4 * 36 + 2 * 6
    untied = (11 + 7 + 11) * 6 + 6 + 3 * block
    assert count(**options) == untied and count(tied=True, **options) == untied - 66
    assert count(use_bias=True, **options) == untied + 6 + 3 * (4 * 6 + 24 + 6 + 2 * 6)


@pytest.mark.parametrize("tied", [False, True])
def test_the_future_does_not_change_the_past(tied):
    net = models.build_transformer(9, 6, width=8, depth=2, heads=2, tied=tied)
    params, x = net.init(jax.random.key(0)), jnp.asarray(np.random.default_rng(0).integers(0, 9, (2, 6)))
    apply = jax.jit(net.apply)
    outputs = apply(params, x)
    assert outputs.shape == (2, 6, 9) and outputs.dtype == jnp.float32
    for place in range(6):
        changed = apply(params, x.at[0, place].add(1) % 9)
        moved = jnp.abs(changed - outputs).max(-1)
        np.testing.assert_array_equal(moved[1], 0)  # nor another example
        np.testing.assert_array_equal(moved[0, :place], 0)
        assert (moved[0, place:] > 1e-6).all()


def test_a_shorter_text_has_the_same_outputs():
    apply = jax.jit(network().apply)
    np.testing.assert_allclose(apply(start(), X[:, :2]), apply(start(), X)[:, :2], rtol=1e-12)


def test_positions_matter():
    outputs = jax.jit(network().apply)(start(), jnp.full((3, T), 2))[0]
    assert (np.abs(np.diff(outputs, axis=0)).max(-1) > 1e-3).all()


def test_tied_is_untied_with_copied_weights():
    params = start(tied=True)
    copied = params | {"head": {"kernel": params["embedding"].T}}

    def outputs_and_gradient(apply, p):
        outputs, pull = jax.vjp(lambda p: apply(p, X), p)
        return outputs, pull(jnp.sin(outputs))[0]

    run = jax.jit(outputs_and_gradient, static_argnums=0)
    (one, tied), (other, both) = run(network(True).apply, params), run(network().apply, copied)
    np.testing.assert_allclose(one, other, rtol=1e-12)
    np.testing.assert_allclose(tied["embedding"], both["embedding"] + both["head"]["kernel"].T, rtol=1e-9, atol=1e-12)


def test_the_block_is_what_the_papers_write():
    """One head, computed position by position."""
    net = models.build_transformer(V, T, width=4, depth=1, heads=1, expansion=2)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, float), net.init(jax.random.key(1)))
    block, stream = params["block1"], params["embedding"][np.asarray(X[0])] + params["positions"]

    def norm(x, gain):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * gain

    seen = norm(stream, block["norm1"]["scale"])
    q, k, v = (seen @ block[name]["kernel"] for name in ("query", "key", "value"))
    for t in range(T):
        weights = np.exp(q[t] @ k[: t + 1].T / 2)
        stream[t] += (weights / weights.sum()) @ v[: t + 1] @ block["out"]["kernel"]
    hidden = norm(stream, block["norm2"]["scale"]) @ block["fc1"]["kernel"]
    stream = stream + np.asarray(jax.nn.gelu(hidden)) @ block["fc2"]["kernel"]
    expected = norm(stream, params["norm"]["scale"]) @ params["head"]["kernel"]
    found = jax.jit(net.apply)(jax.tree.map(jnp.asarray, params), X)
    np.testing.assert_allclose(found[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab": 0}, "vocab: got 0"),
        ({"depth": 0}, "depth: got 0"),
        ({"width": 6, "heads": 4}, "heads: got 4, expected a divisor of the width, 6"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        models.build_transformer(**{"vocab": V, "length": T} | options)


@pytest.mark.parametrize("x", [jnp.zeros((2, T)), jnp.zeros((2, T + 1), int), jnp.zeros(T, int)])
def test_other_inputs_are_refused(x):
    with pytest.raises(ValueError, match=f"x: got .*T at most {T}"):
        network().apply(start(), x)


# The library on positions.


def test_training_and_evaluation_add_up_positions():
    check_targets(CATEGORICAL, (3, T, V), Y)
    apply, params = network().apply, start()
    found = ff.evaluate(apply, CATEGORICAL, params, X, Y)
    log_p = np.asarray(jax.nn.log_softmax(jax.jit(apply)(params, X)))
    each = np.array([[log_p[n, t, Y[n, t]] for t in range(T)] for n in range(3)])
    assert float(found.loss) == pytest.approx(-each.sum(1).mean(), rel=1e-12)
    assert float(found.accuracy) == pytest.approx(float((log_p.argmax(-1) == Y).mean()))
    train = partial(ff.train, ff.LocalTraining(apply, CATEGORICAL, optax.adam(0.02), epochs=60, batch_size=2))
    trained = jax.jit(train)(params, ff.examples(X, Y), jax.random.key(0))
    after = ff.evaluate(apply, CATEGORICAL, trained.params, X, Y)
    assert float(after.accuracy) > 0.9 and float(after.loss) < 0.3 * float(found.loss)


@pytest.mark.slow
def test_what_falls_back_is_reported():
    plain, tied = captured(), captured(True)
    weights = {"query", "key", "value", "out", "fc1", "fc2"}
    assert len(plain.layers) == len(weights) + 2
    gains = {f"['block1']['{norm}']['{leaf}']" for norm in ("norm1", "norm2") for leaf in ("scale", "bias")}
    gains |= {"['norm']['scale']", "['norm']['bias']", "['positions']"}
    assert set(plain.fallback) == gains
    assert set(tied.fallback) == gains
    assert len(tied.layers) == len(weights) + 1  # the embedding is the head, too


@pytest.mark.parametrize("tied", [False, True])
def test_exact_diagonal_is_the_explicit_one(tied):
    found = measure(start(tied), tied=tied)["diagonal"]
    expected = np.diag(explicit.fisher(network(tied).apply, CATEGORICAL, start(tied), X, Y))
    np.testing.assert_allclose(explicit.flat(found.values), expected, rtol=1e-9, atol=1e-14)


@cache
def empirical():
    return measure(start(), structures=("diagonal", "kronecker"), kind="empirical")


def test_empirical_diagonal_is_the_mean_square_of_gradients():
    each = np.asarray(explicit.gradients(network().apply, CATEGORICAL, start(), X, Y))
    found = explicit.flat(empirical()["diagonal"].values)
    np.testing.assert_allclose(found, (each**2).mean(0), rtol=1e-9, atol=1e-14)


def test_kronecker_factors_of_the_head_are_second_moments():
    """Activations from the model without its head; the head's output gradients are those of the loss."""
    params = start()
    found = empirical()["kronecker"]
    assert found.layers[-1].shape == (4, V)  # no other layer has V outputs
    logits = jax.jit(network().apply)(params, X)
    gradients = jax.nn.softmax(logits) - jax.nn.one_hot(Y, V, dtype=logits.dtype)
    hidden = np.linalg.lstsq(np.asarray(params["head"]["kernel"]).T, np.asarray(logits).reshape(-1, V).T, rcond=None)[0]
    np.testing.assert_allclose(found.outputs[-1], np.einsum("nto,ntp->op", gradients, gradients) / 3 / T, rtol=1e-9)
    np.testing.assert_allclose(found.inputs[-1], hidden @ hidden.T / 3, rtol=1e-7)
