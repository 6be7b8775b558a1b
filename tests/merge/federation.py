"""Small clients for the tests of merge rules, and the laws that every rule keeps."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import zoo

from fedfisher_jax import capture, examples, merge_payloads
from fedfisher_jax._likelihood import categorical
from fedfisher_jax.merge import Update, combine, fold

LIKELIHOOD = categorical()
KEY = jax.random.key(0)
SIZES = (16, 20, 24)  # of the clients


def _dense(p, x):
    hidden = jnp.tanh(x @ p["a"]["w"] + p["a"]["b"])
    return jax.nn.relu(hidden @ p["b"]["w"] + p["b"]["b"]) @ p["c"]["w"] + p["c"]["b"]


@cache
def net(name):
    """(apply, params, shape of an example, captured layers) of a small network.

    "dense": two hidden layers with biases, five inputs, three classes. "convolutional": two convolutions, one of them
    with a bias, a pool, a flattening of height, width and channel, and a dense head.
    """
    if name == "dense":
        shapes = {"a": (5, 6), "b": (6, 4), "c": (4, 3)}
        params = {n: {"w": zoo.normal(i, *s), "b": zoo.normal(i + 9, s[1])} for i, (n, s) in enumerate(shapes.items())}
        apply, shape = _dense, (5,)
    else:
        case = zoo.CASES["linen_convolution"]()
        apply, params, shape = case.apply, case.params, case.x.shape[1:]
    return apply, params, shape, capture(apply, params, jnp.zeros((1, *shape)))


def perturbed(params, seed, size=0.3):
    flat, treedef = jax.tree.flatten(params)
    draw = np.random.default_rng(seed)
    return treedef.unflatten([leaf + size * draw.normal(size=leaf.shape) for leaf in flat])


def data(shape, seed):
    """The examples of client 0, 1 or 2, padded to a common length."""
    draw = np.random.default_rng([7, seed])
    everything = examples(draw.normal(size=(max(SIZES), *shape)), draw.integers(0, 3, max(SIZES)))
    return everything._replace(size=jnp.asarray(SIZES[seed]))


@cache
def payloads(measure, name, common=False):
    """What the three clients of a network send: different models, or one common model; different data."""
    _, params, shape, _ = net(name)
    compiled = jax.jit(lambda model, mine: measure(Update(model), mine, KEY))
    return [compiled(params if common else perturbed(params, i), data(shape, i)) for i in range(3)]


def close(one, other, atol=1e-9):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), one, other)


def one_client_is_returned(rule, name, atol=1e-9):
    close(merge_payloads(rule, payloads(rule.measure, name, True)[:1]).params, net(name)[1], atol)


def equal_clients_have_their_common_model(rule, name, atol=1e-9):
    close(merge_payloads(rule, payloads(rule.measure, name, True)).params, net(name)[1], atol)


def order_does_not_matter(rule, name, atol=1e-9):
    sent = payloads(rule.measure, name)
    close(merge_payloads(rule, sent).params, merge_payloads(rule, sent[::-1]).params, atol)


def fold_splits_anywhere(rule, name, atol=1e-9):
    lifted = [rule.lift(payload, None) for payload in payloads(rule.measure, name)]
    alone = [fold(rule, jax.tree.map(lambda leaf: leaf[None], part)) for part in lifted]
    left = combine(rule, combine(rule, alone[0], alone[1]), alone[2])
    right = combine(rule, alone[0], combine(rule, alone[1], alone[2]))
    whole = fold(rule, jax.tree.map(lambda *leaves: jnp.stack(leaves), *lifted))
    merged = [rule.solve(part, None).params for part in (left, right, whole)]
    close(merged[0], merged[2], atol)
    close(merged[1], merged[2], atol)


IDENTITY = (one_client_is_returned, equal_clients_have_their_common_model)
FOLD = (order_does_not_matter, fold_splits_anywhere)
