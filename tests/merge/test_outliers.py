"""What is odd about a client is said in words, and what is honest is not."""

import jax
import jax.numpy as jnp
import numpy as np
from samples import payload

import fedfisher_jax as ff
from fedfisher_jax.curvature import Diagonal
from fedfisher_jax.merge import _outliers as outliers

SILOS = range(6)


def said(**changes):
    sent = {n: changes.get(f"at{n}", lambda one: one)(payload("diagonal", n)) for n in SILOS}
    looks = {n: outliers.look(one) for n, one in sent.items()}
    return outliers.words_on_outliers(looks, {n: int(one.weight) for n, one in sent.items()})


def test_honest_silos_are_not_odd_and_others_are_named():
    far = lambda one: one._replace(params=jax.tree.map(lambda leaf: 10 * leaf, one.params))  # noqa: E731
    loud = lambda one: one._replace(statistics=one.statistics.scale(1e6))  # noqa: E731
    many = lambda one: one._replace(weight=jnp.asarray(1e12))  # noqa: E731
    assert said() == []
    for change, words in ((far, "times as far"), (loud, "Fisher information"), (many, "claims 6.67e+10 times as many")):
        (word,) = said(at3=change)
        assert word.startswith("silo 3: ") and words in word


def test_sketches_keep_distances():
    draw = np.random.default_rng(0)
    sent = [ff.Payload(1.0, {"w": jnp.asarray(scale * draw.normal(size=(50, 40)))}) for scale in (1.0, 1.0, 2.0, 5.0)]
    flat = np.stack([np.asarray(one.params["w"]).ravel() for one in sent])
    want = [np.median([np.linalg.norm(a - b) for j, b in enumerate(flat) if j != i]) for i, a in enumerate(flat)]
    np.testing.assert_allclose(outliers.from_others([outliers.look(one) for one in sent]), want, rtol=0.15)
    assert outliers.from_others([outliers.look(sent[0])]) == [None]


def test_a_predicted_loss_is_that_of_a_quadratic():
    sent = ff.Payload(1.0, jnp.asarray([1.0, 2.0]), Diagonal(jnp.asarray([3.0, 4.0])))
    found = outliers.predicted_losses(sent, jnp.asarray([1.0, 1.0]), jnp.zeros(2))
    assert found == {"before": (3 * 1 + 4 * 4) / 2, "after": 4 / 2}
