import itertools

import federation
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_ot_fusion import chained, shuffled

from fedfisher_jax import _metrics as metrics
from fedfisher_jax import capture, categorical, examples, merge_payloads
from fedfisher_jax._examples import Examples
from fedfisher_jax.curvature._chain import Units
from fedfisher_jax.merge import Update, pfnm, released_pfnm
from fedfisher_jax.merge._match_neurons import Prior, match
from fedfisher_jax.merge._outline import outline
from fedfisher_jax.merge._pfnm import MeasureCounts

NETS = ("dense", "convolutional")
NO_NEW_UNITS = Prior(gamma=1e-9, sigma=0.01)


def rule(name, prior=None):
    apply, _, _, captured = federation.net(name)
    return pfnm(apply, federation.LIKELIHOOD, prior=prior, captured=captured)


@pytest.mark.slow
@pytest.mark.parametrize("law", federation.IDENTITY + federation.FOLD)
@pytest.mark.parametrize("name", NETS)
def test_laws(name, law):
    law(rule(name, NO_NEW_UNITS), name)


@pytest.mark.parametrize("law", federation.FOLD)
def test_laws_when_the_network_grows(law):
    law(rule("dense"), "dense")


def test_counts_of_classes_are_measured():
    sent = federation.payloads(rule("dense").measure, "dense")
    for client, size in enumerate(federation.SIZES):
        y = np.asarray(federation.data((5,), client).y)[:size]
        np.testing.assert_array_equal(sent[client].statistics["counts"], np.bincount(y, minlength=3))


@pytest.mark.parametrize("length", [4, 5])
def test_counts_of_classes_of_sequences(length):
    y = np.tile([0, 0, 1, 0, 1][:length], (4, 1))
    data = Examples(jnp.zeros((4, length, 2)), jnp.asarray(y), jnp.arange(4), jnp.asarray(3))  # one is padding
    sent = MeasureCounts(lambda p, x: x @ p, federation.LIKELIHOOD)(Update(jnp.ones((2, 2))), data, None)
    np.testing.assert_array_equal(sent.statistics["counts"], 3 * np.bincount(y[0]))


@pytest.mark.parametrize("fill", [-1, -100])
def test_positions_that_do_not_count_are_of_no_class(fill):
    data = examples(jnp.zeros((2, 3, 2)), jnp.asarray([[0, 1, fill], [1, fill, fill]]))
    sent = MeasureCounts(lambda p, x: x @ p, categorical(ignore=fill))(Update(jnp.ones((2, 2))), data, None)
    np.testing.assert_array_equal(sent.statistics["counts"], [1, 2])


@pytest.mark.parametrize("name", NETS)
def test_equal_clients_up_to_the_order_of_neurons(name):
    apply, params, shape, _ = federation.net(name)
    locals_ = [params, shuffled(name, params, 1), shuffled(name, params, 2)]
    classes = apply(params, np.zeros((1, *shape))).shape[-1]
    sent = [outline(p, federation.data(shape, i), counts=jnp.arange(classes) + 1.0) for i, p in enumerate(locals_)]
    merged = merge_payloads(rule(name, NO_NEW_UNITS), sent)
    assert merged.apply is None
    x = np.random.default_rng(0).normal(size=(6, *shape))
    federation.close(apply(merged.params, x), apply(params, x))


@pytest.mark.parametrize("name", NETS)
def test_without_matches_it_is_the_clients_side_by_side(name):
    """Nothing in common: every unit is new, and the outputs are the clients', weighted by their examples of a class."""
    apply, params, shape, _ = federation.net(name)
    sent = federation.payloads(rule(name).measure, name)
    merged = merge_payloads(rule(name, Prior(gamma=1e9)), sent)
    assert merged.apply is not None
    own = chained(name).units
    assert [int(merged.diagnostics[f"units_{i}"]) for i in range(len(own) - 1)] == [3 * n for n in own[:-1]]
    x = np.random.default_rng(0).normal(size=(6, *shape))
    counts = np.stack([payload.statistics["counts"] for payload in sent])
    outputs = np.stack([apply(federation.perturbed(params, i), x) for i in range(3)])
    expected = np.einsum("jc,jnc->nc", counts / counts.sum(0), outputs)
    federation.close(merged.apply(merged.params, x), expected)


@pytest.mark.parametrize("seed", range(4))
def test_second_client_is_assigned_as_by_trying_everything(seed):
    draw = np.random.default_rng(seed)
    first, second = draw.normal(size=(2, 3)), draw.normal(size=(3, 3))
    prior = Prior(gamma=1.5, sigma=0.5, sigma0=2.0, mean=0.3)

    def log_evidence(vectors):
        """Compare the costs of units that copy one global unit, up to what is common to all assignments."""
        scale = 1 / 2.0 + len(vectors) / 0.5
        return np.sum((0.3 / 2.0 + sum(vectors) / 0.5) ** 2) / scale - np.sum((0.3 / 2.0) ** 2) * 2.0

    def score(places):
        total, fresh = 0.0, 0
        for unit, place in enumerate(places):
            if place < 2:
                total += log_evidence([first[place], second[unit]]) - log_evidence([first[place]]) + 2 * np.log(1 / 1)
        for unit in [u for u, place in enumerate(places) if place >= 2]:
            fresh += 1
            total += log_evidence([second[unit]]) + 2 * np.log(1.5 / 2) - 2 * np.log(fresh)
        return total

    choices = [c for c in itertools.product(range(3), repeat=3) if all(c.count(i) <= 1 for i in (0, 1))]
    best = np.array(max(choices, key=score))
    places, units = match([first, second], np.full(3, 0.3), prior, 0, draw)
    np.testing.assert_array_equal(np.minimum(places[1], 2), best)
    for number, unit in enumerate(units):
        shared = [c[p == number] for c, p in zip((first, second), places, strict=True)]
        np.testing.assert_allclose(unit, np.concatenate(shared).mean(0))


@pytest.mark.slow
def test_golden_model():
    """Units come in another order, as the orders of clients are other random numbers; the network is the same."""
    captured = capture(golden.network.apply, golden.params(0), jnp.zeros((1, 28, 28, 1), jnp.float32))
    sent = []
    for client in range(golden.NUM_CLIENTS):
        data = federation.data((28, 28, 1), 0)._replace(size=jnp.asarray(golden.array("sizes")[client]))
        counts = jnp.asarray(golden.array(f"client{client}/class_counts"), jnp.float32)
        sent.append(outline(golden.params(client), data, counts=counts))
    merged = merge_payloads(released_pfnm(golden.network.apply, federation.LIKELIHOOD, captured=captured), sent)
    state = golden.state_dict("agg/pfnm")
    theirs = []
    for name, layer in zip(("conv1", "conv2", "fc1", "fc2", "fc3"), merged.params, strict=True):
        weight = state[f"{name}.weight"]
        theirs.append(Units(weight.reshape(-1, *layer.weight.shape[:2]).transpose(1, 2, 0), state[f"{name}.bias"]))
        np.testing.assert_allclose(np.sort(layer.weight.ravel()), np.sort(weight.ravel()), atol=1e-6)
    x, y = golden.held_out()
    apply = jax.jit(merged.apply)
    np.testing.assert_allclose(apply(merged.params, x[:50]), apply(theirs, x[:50]), atol=1e-4)
    result = metrics.evaluate(merged.apply, federation.LIKELIHOOD, merged.params, x, y)
    assert float(result.accuracy) == pytest.approx(golden.ACCURACY["pfnm"], abs=1e-3)
