"""Models whose examples mix, or that draw random numbers, are refused where batches of any size are promised."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import zoo

import fedfisher_jax as ff
from fedfisher_jax.tracing import _apart, require_apart
from fedfisher_jax.tracing._untouched import MARK, untouched

X, W = zoo.normal(0, 6, 4), zoo.normal(1, 4, 3)


class Net(nn.Module):
    """A network that was left in training mode, or not."""

    training: bool

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.training)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not self.training)(nn.relu(x)))


def network(training):
    variables = Net(False).init(jax.random.key(0), X)

    def apply(params, x):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        options = {"mutable": ["batch_stats"]} if training else {}
        found = Net(training).apply(given, x, rngs={"dropout": jax.random.key(1)}, **options)
        return found[0] if training else found

    return apply, variables["params"]


class Dropping(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=False)(x))


DROPPING = Dropping().init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X)
MIXED = {
    "batch norm": (*network(True), r"mix \(reduce_sum in Net/BatchNorm_0 depends .*running averages"),
    "dropout": (
        lambda p, x: Dropping().apply(p, x, rngs={"dropout": jax.random.key(1)}),
        DROPPING,
        r"random numbers drawn inside \(random_bits in Dropping/Dropout_0\).*switch dropout",
    ),
    "noise": (lambda p, x: x @ p + jax.random.normal(jax.random.key(0), (len(x), 3)), W, "random numbers drawn"),
    "by hand, one alone gives 0 / 0": (lambda p, x: (x @ p - (x @ p).mean(0)) / (x @ p).std(0), W, "mix"),
    "softmax over examples": (lambda p, x: jax.nn.softmax(x @ p, 0), W, "reduce_max"),
    "all with all": (lambda p, x: (x @ p) @ (x @ p).T @ jnp.ones((len(x), 3)), W, "dot_general"),
    "places": (lambda p, x: x @ p + jnp.arange(len(x))[:, None], W, "iota"),
    "neighbours": (lambda p, x: jnp.roll(x @ p, 1, 0), W, "mix"),
    "those before": (lambda p, x: jnp.cumsum(x @ p, 0), W, "cumsum"),
    "carried on": (lambda p, x: jax.lax.scan(lambda c, r: (c + r, c + r), jnp.zeros(4), x)[1] @ p, W, "scan"),
    "the number of examples": (lambda p, x: x @ p / len(x), W, "div"),
    "one for all": (lambda p, x: jax.lax.cond(x[0, 0] > 0, lambda: x @ p, lambda: 2 * x @ p), W, "mix"),
    "a fixed number of examples": (lambda p, x: x @ p + jnp.ones((6, 3)), W, f"fails for {MARK} examples"),
}
DOORS = {
    "capture": lambda apply, params: ff.capture(apply, params, X),
    "fisher": lambda apply, params: ff.fisher(apply, ff.categorical(), params, ff.examples(X), structure="full"),
    "evaluate": lambda apply, params: ff.evaluate(apply, ff.categorical(), params, X, jnp.zeros(6, int)),
    "top_eigenpairs": lambda apply, params: ff.fisher(
        apply, ff.categorical(), params, ff.examples(X), structure="low_rank", key=jax.random.key(0)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_is_refused_by_name(name):
    apply, params, complaint = MIXED[name]
    with pytest.raises(ValueError, match=f"apply: .*{complaint}"):
        require_apart(apply, params, X)


@pytest.mark.parametrize("door", DOORS)
def test_at_every_door(door):
    with pytest.raises(ValueError, match="examples that mix"):
        DOORS[door](*MIXED["softmax over examples"][:2])


def test_inside_a_traced_function():
    @jax.jit
    def inside(x, key, shift):
        return ff.evaluate(lambda p, x: x @ p + shift + jax.random.normal(key, (len(x), 3)), ff.gaussian(), W, x, x)

    with pytest.raises(ValueError, match="random numbers"):
        inside(X, jax.random.key(0), jnp.ones(3))


APART = {
    "running averages, no dropout": network(False),
    "one draw for all": (lambda p, x: x @ p + jax.random.normal(jax.random.key(0), (3,)), W),
    "one after the other": (lambda p, x: jax.lax.map(lambda row: row @ p, x), W),
    "its own largest": (lambda p, x: jnp.take_along_axis(x, x.argmax(1, keepdims=True), 1) * p[0], W),
    "not a number for any": (lambda p, x: jnp.log(-jnp.abs(x) @ abs(p)), W),
}


@pytest.mark.parametrize("name", APART)
def test_others_are_taken(name):
    require_apart(*APART[name], X)


@pytest.mark.parametrize("name", [name for name in zoo.CASES if name not in ("branches", "stacked_experts")])
def test_models_show_it_without_numbers(name, monkeypatch):
    monkeypatch.setattr(_apart, "_first_difference", lambda *_: pytest.fail("compiled"))
    model = zoo.CASES[name]()
    require_apart(model.apply, model.params, model.x)


def test_the_axis_is_followed_not_guessed():
    """A reshape that keeps the length but not the place of the axis mixes examples."""
    x = jax.ShapeDtypeStruct((MARK, 4), jnp.float32)
    assert untouched(jax.make_jaxpr(lambda x: x.reshape(MARK, 2, 2))(x).jaxpr)
    assert not untouched(jax.make_jaxpr(lambda x: x.reshape(4, MARK).T)(x).jaxpr)
    assert not untouched(jax.make_jaxpr(lambda x: jnp.sort(x, 0))(x).jaxpr)
    assert untouched(jax.make_jaxpr(lambda x: jnp.sort(x, 1))(x).jaxpr)


@pytest.mark.slow
def test_rounding_of_narrow_numbers_is_no_mixing():
    """In bfloat16 an example alone differs from one in a batch by more than in float32; what mixes, by far more."""
    layers = jnp.asarray(zoo.normal(2, 12, 96, 96) / 96**0.5, jnp.bfloat16)

    def apply(p, x):
        x = jnp.take_along_axis(x, jnp.argsort(x, -1), -1)  # which leaves doubt
        for layer in p:
            x = jax.nn.gelu(x @ layer) + x
        return x

    x = jnp.asarray(zoo.normal(3, 4, 96), jnp.bfloat16)
    require_apart(apply, layers, x)
    with pytest.raises(ValueError, match="mix"):
        require_apart(lambda p, x: apply(p, x) - apply(p, x).mean(0), layers, x)
