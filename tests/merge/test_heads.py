"""Heads in closed form: against explicit ridge regression, any split, exact write-back, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import pad_rows

import fedfisher_jax as ff
from fedfisher_jax.curvature._leaves import leaves as leaves_of
from fedfisher_jax.federate import compare, run_keys
from fedfisher_jax.merge import catalogue, combine, fold
from fedfisher_jax.merge._fold import lift
from fedfisher_jax.merge._head_place import find_place, require_exact
from fedfisher_jax.privacy import secure_merge

KEY, RNG = jax.random.key(0), np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(60, 5)))
PARTS = [np.arange(4), np.arange(4, 31), np.arange(31, 32), np.arange(32, 60)]
TARGETS = {
    "categorical": (ff.categorical(), jnp.asarray(RNG.integers(0, 3, 60))),
    "gaussian": (ff.gaussian(), jnp.asarray(RNG.normal(size=(60, 3)))),
    "bernoulli": (ff.bernoulli(), jnp.asarray(RNG.integers(0, 2, (60, 3)))),
}
PLACES = {
    "last": (),
    "inputs": ("a",),
    "inputs and units": ("a", "b:3"),
    "units": ("b/w",),
    "units and more": ("b", "c:2"),
}


def params(bias):
    shapes = {"a": (5, 10), "b": (10, 9), "c": (9, 3)}
    draw = lambda *shape: jnp.asarray(RNG.normal(size=shape) / 2)  # noqa: E731
    return {n: {"w": draw(*s)} | ({"b": draw(s[1])} if bias else {}) for n, s in shapes.items()}


START = {bias: params(bias) for bias in (False, True)}


def layer(p, x):
    return x @ p["w"] + p["b"] if "b" in p else x @ p["w"]


def apply(p, x, activation=jax.nn.relu):
    return layer(p["c"], activation(layer(p["b"], activation(layer(p["a"], x)))))


def features(p, x, place):
    """The features of a place, by hand."""
    h1 = np.maximum(layer(p["a"], x), 0)
    h2 = np.maximum(layer(p["b"], h1), 0)
    parts = {
        "last": [h2],
        "inputs": [x],
        "inputs and units": [x, h1[:, :3]],
        "units": [h1],
        "units and more": [h1, h2[:, :2]],
    }[place]
    return np.concatenate([*parts, *([np.ones((len(x), 1))] if "b" in p["c"] else [])], axis=1)


def measured(rule, y, start, parts):
    """What clients with these rows send; one program for all of them."""
    rows, sizes = pad_rows([np.asarray(part) for part in parts])
    measure = jax.jit(lambda row, size: rule.measure(ff.Update(None, start), ff.Examples(X, y, row, size), KEY))
    return [measure(jnp.asarray(row), jnp.asarray(size)) for row, size in zip(rows, sizes, strict=True)]


def explicit_ridge(phi, targets, relative):
    shift = relative * np.sum(phi**2) / phi.shape[1]
    return np.linalg.solve(phi.T @ phi + shift * np.eye(phi.shape[1]), phi.T @ targets)


CASES = [("categorical", place, bias) for place in PLACES for bias in (False, True)]
CASES += [(kind, place, True) for kind in ("gaussian", "bernoulli") for place in ("last", "inputs and units")]


@pytest.mark.parametrize(("kind", "place", "bias"), CASES)
def test_the_merged_model_is_ridge_regression_on_all_data(kind, place, bias):
    likelihood, y = TARGETS[kind]
    start = START[bias]
    rule = ff.merge.recalibrate(apply, likelihood, features=PLACES[place], ridge=1e-3)
    merged = ff.merge_payloads(rule, measured(rule, y, start, PARTS), start)
    wanted = {"categorical": lambda: np.eye(3)[y], "gaussian": lambda: y, "bernoulli": lambda: 2 * y - 1}[kind]()
    phi = features(start, X, place)
    head = explicit_ridge(phi, np.asarray(wanted, float), 1e-3)
    np.testing.assert_allclose(apply(merged.params, X), phi @ head, atol=1e-10)
    others = jnp.asarray(RNG.normal(size=(20, 5)) * 50)
    np.testing.assert_allclose(apply(merged.params, others), features(start, others, place) @ head, atol=1e-8)
    assert jax.tree.structure(merged.params) == jax.tree.structure(start)


@pytest.mark.parametrize("place", ["last", "inputs and units"])
def test_sums_over_any_partition_are_the_pooled_ones(place):
    likelihood, y = TARGETS["categorical"]
    rule = ff.merge.recalibrate(apply, likelihood, features=PLACES[place])
    stack = lambda sent: jax.tree.map(lambda *x: jnp.stack(x), *[lift(rule, one, START[True]) for one in sent])  # noqa: E731
    (pooled,) = measured(rule, y, START[True], [np.arange(60)])
    expected = lift(rule, pooled, START[True])
    shuffled = np.array_split(np.random.default_rng(1).permutation(60), 13)
    for parts in (PARTS, shuffled, [[n] for n in range(60)]):
        sent = measured(rule, y, START[True], [np.asarray(part) for part in parts])
        halves = combine(rule, fold(rule, stack(sent[:2])), fold(rule, stack(sent[2:])))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), halves, expected)
    phi = features(START[True], X, place)
    np.testing.assert_allclose(expected["moments"].second, phi.T @ phi, rtol=1e-12)
    np.testing.assert_allclose(expected["moments"].totals, np.bincount(y), rtol=1e-12)


def test_secure_sums_give_the_same_model():
    likelihood, y = TARGETS["categorical"]
    rule = ff.merge.recalibrate(apply, likelihood, ridge=1e-3)
    sent = measured(rule, y, START[True], PARTS)
    plain, secure = ff.merge_payloads(rule, sent, START[True]), secure_merge(rule, sent, START[True])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), secure.params, plain.params)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_other_activations_with_the_identity(activation):
    network = functools.partial(apply, activation=getattr(jax.nn, activation))
    likelihood, y = TARGETS["gaussian"]
    rule = ff.merge.analytic(network, likelihood, features=("a",))
    merged = ff.merge_payloads(rule, measured(rule, y, START[True], PARTS), START[True])
    phi = np.concatenate([X, np.ones((60, 1))], axis=1)
    np.testing.assert_allclose(network(merged.params, X), phi @ explicit_ridge(phi, np.asarray(y), 1e-4), atol=1e-9)


REFUSED = {
    "tanh": (jnp.tanh, ("a",), "cannot hold a head on these features"),
    "leaky": (jax.nn.leaky_relu, ("a",), "cannot hold a head on these features"),
    "relu6 saturates": (jax.nn.relu6, ("a",), "cannot hold a head on these features"),
    "no room": (jax.nn.relu, ("a", "b:5"), "a/w needs 11 units, but it has 10"),
    "no such layer": (jax.nn.relu, ("d",), "got 'd', expected dense layers among a/w, b/w, c/w"),
    "units alone": (jax.nn.relu, ("b:3",), "expected all inputs of a dense layer"),
    "not neighbours": (jax.nn.relu, ("a", "c"), "maybe some of the one that follows it"),
    "too many units": (jax.nn.relu, ("b", "c:10"), "needs 16 units|expected at most 9"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_features_without_a_place_are_refused_before_any_work(name):
    activation, chosen, words = REFUSED[name]
    likelihood, y = TARGETS["categorical"]
    network = functools.partial(apply, activation=activation)
    rule = ff.merge.analytic(network, likelihood, features=chosen)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(rule.measure, ff.Update(None, START[True]), ff.examples(X, y), KEY)


def test_outputs_that_are_not_the_last_layers_are_refused():
    likelihood, y = TARGETS["categorical"]
    rule = ff.merge.recalibrate(lambda p, x: 2 * apply(p, x), likelihood)
    with pytest.raises(ValueError, match="cannot hold a head"):
        rule.measure(ff.Update(None, START[False]), ff.examples(X, y), KEY)


def test_the_check_sees_a_wrong_head():
    """`require_exact` compares the written model with φW: a model whose other layers also count fails it."""
    skip = lambda p, x: apply(p, x) + 0.01 * x[:, :3]  # noqa: E731
    captured = ff.capture(skip, START[False], X)
    place = find_place(captured, leaves_of(START[False]), ("a",))
    with pytest.raises(ValueError, match="cannot hold a head"):
        require_exact(place, jax.tree.leaves(START[False]), jnp.ones((5, 3)))


def test_a_sequence_of_positions_gives_a_row_each():
    sequence = lambda p, x: apply(p, x.reshape(-1, 5)).reshape(*x.shape[:2], 3)  # noqa: E731
    likelihood, y = TARGETS["categorical"]
    rule = ff.merge.recalibrate(lambda p, x: jax.vmap(lambda one: apply(p, one))(x), likelihood, ridge=1e-3)
    data = ff.examples(X.reshape(20, 3, 5), y.reshape(20, 3))
    sent = rule.measure(ff.Update(None, START[True]), data, KEY)
    merged = ff.merge_payloads(rule, [sent], START[True])
    phi = features(START[True], X, "last")
    expected = phi @ explicit_ridge(phi, np.eye(3)[y], 1e-3)
    np.testing.assert_allclose(sequence(merged.params, X.reshape(20, 3, 5)).reshape(60, 3), expected, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 3), (3,)])
@pytest.mark.parametrize("make", [ff.merge.analytic, ff.merge.recalibrate])
def test_targets_that_do_not_count_are_not_fitted(make, shape):
    """As zeros they would halve the first column; targets are of a sequence's positions, or of an example each."""
    x, y = jnp.asarray([[1.0, 0], [0, 1], [1, 0]]).reshape(*shape, 2), jnp.asarray([0, 1, -100]).reshape(shape)
    rule = make(lambda p, x: x @ p, ff.categorical(ignore=-100))
    sent = rule.measure(ff.Update(None, jnp.zeros((2, 2))), ff.examples(x, y), KEY)
    merged = ff.merge_payloads(rule, [sent], jnp.zeros((2, 2))).params
    np.testing.assert_allclose(merged, np.eye(2) / (1 + 1e-4), rtol=1e-6)


def test_padding_may_hold_anything():
    likelihood, y = TARGETS["categorical"]
    rule = ff.merge.recalibrate(apply, likelihood, batch_size=7)
    mask = jnp.arange(60) % 3 != 0
    hidden = ff.examples(jnp.where(mask[:, None], X, jnp.nan), y, mask)
    found = rule.measure(ff.Update(None, START[True]), hidden, KEY)
    shown = rule.measure(ff.Update(None, START[True]), ff.examples(X[mask], y[mask]), KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, shown)
    assert found.params is None and float(found.weight) == 40


@pytest.mark.slow
def test_it_composes_and_its_results_have_its_name():
    """The second exchange is measured at the first one's model: against both steps by hand."""
    import optax

    likelihood, y = TARGETS["categorical"]
    training = ff.LocalTraining(apply, likelihood, optax.sgd(0.1), 2, 8)
    simulation = ff.federate.Simulation(training, START[True], ff.cohort(X, y, PARTS), X, y)
    names = ("analytic", "fedavg", "fedavg+recalibrate@b,c:2", "fedavg+recalibrate")
    captured = ff.capture(apply, START[True], X)
    rules = {n: catalogue.named_rule(n, apply, likelihood, offers={"captured": captured}) for n in names}
    found = {r.name: r.value for r in compare(simulation, rules, run_keys(0)) if r.kind == "rule"}
    assert list(found) == list(names)
    assert found["fedavg+recalibrate"]["diagnostics"]["recalibrate"]["features"] == 10
    trained, _ = ff.federate.train_clients(training, START[True], ff.cohort(X, y, PARTS), run_keys(0).train)
    shares = np.array([len(part) / 60 for part in PARTS])
    average = jax.tree.map(lambda leaf: jnp.tensordot(shares, leaf, 1), trained.params)
    phi = features(average, X, "units and more")
    right = np.argmax(phi @ explicit_ridge(phi, np.eye(3)[y], 1e-4), 1) == y
    assert found["fedavg+recalibrate@b,c:2"]["accuracy"] == pytest.approx(float(right.mean()), abs=1e-6)


def test_settings_that_do_not_work():
    with pytest.raises(ValueError, match="ridge: got 0"):
        ff.merge.analytic(apply, ff.categorical(), ridge=0.0)
    with pytest.raises(ValueError, match="features: got 'fc1', expected a sequence"):
        ff.merge.analytic(apply, ff.categorical(), features="fc1")
    with pytest.raises(
        TypeError,
        match="option: got 'batchsize', expected one of basis, batch_size, captured, clip, features, ridge, start",
    ):
        ff.merge.recalibrate(apply, ff.categorical(), batchsize=3)
    rule = ff.merge.recalibrate(apply, ff.categorical())
    with pytest.raises(ValueError, match="start: got None"):
        rule.measure(ff.Update(START[True]), ff.examples(X, TARGETS["categorical"][1]), KEY)


def test_bernoulli_targets_may_be_bytes():
    apply, start = (lambda w, x: x @ w), jnp.zeros((3, 2))
    rule, y = ff.merge.analytic(apply, ff.bernoulli()), np.array([[0, 1], [1, 0], [0, 0]])
    found = [
        ff.merge_payloads(
            rule,
            [rule.measure(ff.Update(None, start), ff.examples(np.eye(3), y.astype(kind)), jax.random.key(0))],
            start,
        )
        for kind in (np.uint8, np.int32, np.float32)
    ]
    np.testing.assert_allclose(found[0].params, 2 * y - 1, atol=1e-3)
    for other in found[1:]:
        np.testing.assert_array_equal(other.params, found[0].params)


@pytest.mark.parametrize("name", ["analytic", "natural_gradient", "pseudo_data"])
@pytest.mark.parametrize(
    ("y", "words"), [([0, 1, 7], "y: got 7"), ([0, 1, -100], "y: got -100"), (None, "y: got None")]
)
def test_rules_that_read_labels_refuse_those_that_are_none(name, y, words):
    apply, start = (lambda w, x: x @ w), jnp.zeros((3, 3))
    rule = ff.merge.exchanges(getattr(ff.merge, name)(apply, ff.categorical()))[0]
    data = (
        ff.examples(np.eye(3, dtype=np.float32)) if y is None else ff.examples(np.eye(3, dtype=np.float32), np.array(y))
    )
    with pytest.raises(ValueError, match=words):
        rule.measure(ff.Update(start, start), data, jax.random.key(0))
