import itertools

import federation
import flax.linen as nn
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from scipy.optimize import linprog

from fedfisher_jax import _metrics as metrics
from fedfisher_jax import capture, merge_payloads
from fedfisher_jax.curvature import _chain as chain
from fedfisher_jax.merge import fedavg, ot_fusion, released_ot_fusion
from fedfisher_jax.merge._ot_fusion import align, fuse, transport
from fedfisher_jax.merge._outline import outline

NETS = ("dense", "convolutional")


def fusion(name, **options):
    apply, _, _, captured = federation.net(name)
    return ot_fusion(apply, federation.LIKELIHOOD, captured=captured, **options)


def probes(name):
    return np.random.default_rng(5).normal(size=(6, *federation.net(name)[2]))


def chained(name):
    _, params, _, captured = federation.net(name)
    return chain.find(captured, jax.tree.structure(params))


def shuffled(name, params, seed):
    """The same function with its hidden units in another order, through the chain's own layout."""
    return reordered(chained(name), params, seed)


def reordered(found, params, seed):
    draw = np.random.default_rng(seed)
    layers = found.split(params)
    for number in range(len(layers) - 1):
        order = draw.permutation(layers[number].weight.shape[-1])
        weight, bias = layers[number]
        layers[number] = chain.Units(weight[..., order], None if bias is None else bias[order])
        layers[number + 1] = layers[number + 1]._replace(weight=layers[number + 1].weight[order])
    return found.join(layers)


@pytest.mark.parametrize("law", federation.IDENTITY + federation.FOLD)
@pytest.mark.parametrize("name", NETS)
def test_laws_with_the_largest_client_as_reference(name, law):
    law(fusion(name), name)


@pytest.mark.slow
@pytest.mark.parametrize("features", ["weights", "activations"])
@pytest.mark.parametrize("name", NETS)
def test_equal_clients_up_to_the_order_of_neurons(name, features):
    apply, params, shape, _ = federation.net(name)
    rule = fusion(name, features=features, probes=probes(name) if features == "activations" else None)
    locals_ = [params, shuffled(name, params, 1), shuffled(name, params, 2)]
    assert (
        np.abs(np.concatenate([np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, locals_[:2]), strict=True)])).max()
        > 0.1
    )
    x = probes(name)
    federation.close(apply(locals_[0], x), apply(locals_[1], x))
    sent = [outline(p, federation.data(shape, i)) for i, p in enumerate(locals_)]
    merged = merge_payloads(rule, sent)
    assert int(merged.diagnostics["reference"]) == 2
    federation.close(merged.params, locals_[2])
    federation.close(merge_payloads(fusion(name, reference=0), sent).params, params)


@pytest.mark.slow
def test_places_of_a_kernel_that_see_padding_alone_do_not_matter():
    """On a map of 2 x 2, four of nine places of a strided 3 x 3 kernel lie outside of the image."""
    network = nn.Sequential(
        [nn.Conv(4, (3, 3), 2), nn.relu, nn.Conv(6, (3, 3), 2), nn.relu, lambda x: x.reshape(len(x), -1), nn.Dense(3)]
    )
    x = np.random.default_rng(0).normal(size=(7, 4, 4, 1))
    params = jax.tree.map(lambda leaf: leaf.astype(float), network.init(jax.random.key(0), x))
    captured = capture(network.apply, params, jnp.asarray(x))
    found = chain.find(captured, jax.tree.structure(params))
    other = reordered(found, params, 1)
    federation.close(network.apply(other, x), network.apply(params, x))
    sent = [outline(p, federation.data((4, 4, 1), i)) for i, p in enumerate((params, other))]
    merged = merge_payloads(ot_fusion(network.apply, federation.LIKELIHOOD, captured=captured), sent)
    federation.close(network.apply(merged.params, x), network.apply(params, x))


@pytest.mark.slow
def test_without_permutations_it_is_fedavg():
    apply, params, shape, _ = federation.net("dense")
    near = [federation.perturbed(params, i, 0.01) for i in range(3)]
    sent = [outline(p, federation.data(shape, i)) for i, p in enumerate(near)]
    average = merge_payloads(fedavg(apply, federation.LIKELIHOOD), [p._replace(statistics=None) for p in sent]).params
    federation.close(merge_payloads(fusion("dense"), sent).params, average)
    federation.close(merge_payloads(fusion("dense", align_output=True), sent).params, average)


def test_one_hidden_layer_by_trying_every_permutation():
    draw = np.random.default_rng(0)
    first, second = (
        [
            chain.Units(draw.normal(size=(1, 3, 4)), draw.normal(size=4)),
            chain.Units(draw.normal(size=(4, 1, 2)), draw.normal(size=2)),
        ]
        for _ in range(2)
    )

    def distance(order):
        own = np.concatenate([first[0].weight.reshape(3, 4), first[0].bias[None]])[:, list(order)]
        other = np.concatenate([second[0].weight.reshape(3, 4), second[0].bias[None]])
        return ((own - other) ** 2).sum()

    best = list(min(itertools.permutations(range(4)), key=distance))
    moved = align(first, second)
    federation.close(moved[0].weight, first[0].weight[..., best])
    federation.close(moved[1].weight, first[1].weight[best])
    federation.close(moved[1].bias, first[1].bias)


@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (6, 4)])
def test_transport_is_optimal(shape):
    cost = np.random.default_rng(0).random(shape)
    plan = transport(cost)
    np.testing.assert_allclose(plan.sum(1), 1 / shape[0], atol=1e-12)
    np.testing.assert_allclose(plan.sum(0), 1 / shape[1], atol=1e-12)
    n, m = shape
    rows = [np.kron(row, np.ones(m)) for row in np.eye(n)] + [np.kron(np.ones(n), row) for row in np.eye(m)]
    dual = linprog(-np.r_[np.full(n, 1 / n), np.full(m, 1 / m)], np.array(rows).T, cost.ravel(), bounds=(None, None))
    np.testing.assert_allclose((plan * cost).sum(), -dual.fun, atol=1e-10)


@pytest.mark.slow
def test_widths_may_differ():
    """A net whose hidden units stand twice or thrice is the same net, and stays so fused with itself either way."""
    apply, params, _, _ = federation.net("dense")
    found = chained("dense")
    small = found.split(params)
    wide = list(small)
    for number, times in ((0, 2), (1, 3)):
        weight, bias = wide[number]
        wide[number] = chain.Units(jnp.repeat(weight, times, -1), jnp.repeat(bias, times))
        wide[number + 1] = wide[number + 1]._replace(weight=jnp.repeat(wide[number + 1].weight, times, 0) / times)
    x = probes("dense")
    federation.close(found.apply(wide, x), apply(params, x))
    for points in (None, x):
        down = fuse(found, [small, wide], [1, 3], 0, points)
        up = fuse(found, [small, wide], [1, 3], 1, points)
        assert [w.weight.shape for w in down] == [w.weight.shape for w in small]
        assert [w.weight.shape for w in up] == [w.weight.shape for w in wide]
        federation.close(found.apply(down, x), apply(params, x))
        federation.close(found.apply(up, x), apply(params, x))


def test_refusals():
    apply, likelihood = federation.net("dense")[0], federation.LIKELIHOOD
    with pytest.raises(ValueError, match="features: got 'colours', expected weights or activations"):
        ot_fusion(apply, likelihood, features="colours")
    with pytest.raises(ValueError, match="probes: expected inputs with features='activations'"):
        ot_fusion(apply, likelihood, features="activations")
    with pytest.raises(ValueError, match="reference: got 3, expected a client from 0 to 2"):
        merge_payloads(fusion("dense", reference=3), federation.payloads(fusion("dense").measure, "dense"))
    residual = zoo.CASES["residual_reads_the_output_twice"]()
    sent = [outline(residual.params, federation.data(residual.x.shape[1:], 0))]
    with pytest.raises(ValueError, match=r"expected a sequential network, but what \['v'\] reads|depends on more than"):
        merge_payloads(ot_fusion(residual.apply, likelihood), sent)


def golden_payloads():
    for client in range(golden.NUM_CLIENTS):
        data = federation.data((28, 28, 1), 0)._replace(size=jnp.asarray(golden.array("sizes")[client]))
        yield outline(golden.params(client), data)


@pytest.mark.slow
def test_golden_model():
    captured = capture(golden.network.apply, golden.params(0), jnp.zeros((1, 28, 28, 1)))
    rule = released_ot_fusion(golden.network.apply, federation.LIKELIHOOD, captured=captured)
    merged = merge_payloads(rule, list(golden_payloads())).params
    federation.close(merged, golden.merged("otfusion"), 1e-6)
    x, y = golden.held_out()
    result = metrics.evaluate(golden.network.apply, federation.LIKELIHOOD, merged, x, y)
    assert float(result.accuracy) == pytest.approx(golden.ACCURACY["otfusion"], abs=1e-3)
