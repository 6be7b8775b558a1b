"""The authors' own arrays: Fisher information, merged parameters and test accuracies of one run of their code."""

from functools import cache

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import pad_rows

import fedfisher_jax as ff
from fedfisher_jax import solve
from fedfisher_jax._examples import Examples
from fedfisher_jax.curvature import Diagonal, Kronecker, Mixture
from fedfisher_jax.models import torch_layout

LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")
CLIENTS = range(golden.NUM_CLIENTS)
apply, likelihood = golden.network.apply, ff.categorical()
captured = ff.capture(apply, golden.template, jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32))


def offsets_first(matrix, name):
    """Their convolutions' A is ordered [channels, offsets], ours [offsets, channels]."""
    if not name.startswith("conv"):
        return matrix
    order = np.arange(len(matrix)).reshape(-1, 25).T.ravel()
    return matrix[np.ix_(order, order)]


def quantised(array, bits=15):
    """Released quantiser: `bits` plus a sign, one scale per tensor."""
    scale = np.abs(array).max() / (2**bits - 1)
    return (np.round(array / scale) * scale).astype(array.dtype)


def diagonal(client, transform=lambda array: array):
    """Their diagonal as one of ours."""
    flat, start, state = golden.array(f"client{client}/diag"), 0, {}
    for name, weight in golden.state_dict("init").items():
        state[name] = transform(flat[start : start + weight.size].reshape(weight.shape))
        start += weight.size
    return Diagonal(torch_layout.from_torch(golden.template, state))


def kronecker(client, prefix="kfac"):
    """Their factors as one of ours; compressed ones are not symmetric, and F·W = G W A is A'ᵀ V G'ᵀ with V = Wᵀ."""
    layers = {layer.weight: layer for layer in captured.layers}
    assert sorted(layers) == list(range(len(LAYERS)))
    factor = lambda side, name: jnp.asarray(golden.array(f"client{client}/{prefix}_{side}/{name}").T)  # noqa: E731
    a = tuple(offsets_first(factor("A", name), name) for name in LAYERS)
    g = tuple(factor("G", name) for name in LAYERS)
    return Kronecker(a, g, {}, tuple(layers[i] for i in range(len(LAYERS))), jax.tree.structure(golden.template))


def payloads(fisher_of, transform=lambda array: array):
    sizes = golden.array("sizes")
    models = [torch_layout.to_torch(golden.params(i)) for i in CLIENTS]
    return [
        ff.Payload(
            jnp.float32(sizes[i]),
            torch_layout.from_torch(golden.template, {name: transform(w) for name, w in models[i].items()}),
            fisher_of(i),
        )
        for i in CLIENTS
    ]


def distance(tree, expected):
    """Relative l2."""
    flat = [np.concatenate([np.ravel(x).astype(float) for x in jax.tree.leaves(t)]) for t in (tree, expected)]
    return np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])


def validation(params):
    """Accuracy on the 500 labelled training examples that the authors' server sees."""
    dataset, rows = golden.fashion_mnist(), golden.array("val_idx")
    return jnp.mean(jnp.argmax(apply(params, dataset.train_x[rows]), -1) == dataset.train_y[rows])


def require_accuracy(params, rule):
    accuracy = ff.evaluate(apply, likelihood, params, *map(jnp.asarray, golden.held_out())).accuracy
    assert float(accuracy) == pytest.approx(golden.ACCURACY[rule], abs=0.002)


@pytest.mark.slow
def test_fisher_information_of_a_client():
    """Both structures in one pass, on the smallest client's 4,849 examples."""
    client, dataset = 3, golden.fashion_mnist()
    rows = golden.array(f"client{client}/idx")
    data = ff.examples(jnp.asarray(dataset.train_x[rows]), jnp.asarray(dataset.train_y[rows]))
    found = ff.fishers(apply, likelihood, golden.params(client), data, captured=captured)
    for name, ours, theirs in zip(
        LAYERS, jax.tree.leaves(found["diagonal"]), jax.tree.leaves(diagonal(client)), strict=True
    ):
        assert distance(ours, theirs) < 1e-4, name
    expected = kronecker(client)
    for layer, a, g in zip(found["kronecker"].layers, found["kronecker"].inputs, found["kronecker"].outputs):
        name = LAYERS[layer.weight]
        a, g, b, h = (
            np.asarray(m, float) for m in (a, g, expected.inputs[layer.weight], expected.outputs[layer.weight])
        )
        inner = (np.sum(a * b) * np.sum(g * h)) / (np.sum(a * a) * np.sum(g * g))
        ratio = (np.sum(b * b) * np.sum(h * h)) / (np.sum(a * a) * np.sum(g * g))
        gap = np.sqrt(max(1 - 2 * inner + ratio, 0) / ratio)  # ‖A⊗G − B⊗H‖ / ‖B⊗H‖
        assert gap < 1e-4, name


def test_fedavg():
    merged = ff.merge_payloads(ff.fedavg(apply, likelihood), payloads(lambda _: None))
    assert distance(merged.params, golden.merged("fedavg")) < 1e-4
    require_accuracy(merged.params, "fedavg")


@pytest.mark.slow
def test_fisher_merge():
    """Their payloads are quantised at 15 bits and a sign, and they average where Σ p F < 1e-6."""
    sent = payloads(lambda i: diagonal(i, quantised), quantised)
    merged = ff.merge_payloads(ff.fisher_merge(apply, likelihood, floor=1e-6), sent)
    assert distance(merged.params, golden.merged("fisher_merge")) < 1e-4
    require_accuracy(merged.params, "fisher_merge")


def test_diagonal_paper_loop():
    rule = ff.fedfisher(apply, likelihood, structure="diagonal", solver=ff.paper_loop(validation=validation))
    merged = ff.merge_payloads(rule, payloads(lambda i: diagonal(i, quantised), quantised))
    assert distance(merged.params, golden.merged("fedfisher_diag")) < 1e-4
    require_accuracy(merged.params, "fedfisher_diag")


@pytest.mark.slow
def test_kronecker_paper_loop():
    solver = ff.paper_loop(ff.released_adam("kronecker"), validation=validation)
    merged = ff.merge_payloads(ff.fedfisher(apply, likelihood, solver=solver), payloads(kronecker))
    assert distance(merged.params, golden.merged("fedfisher_kfac_uncompressed")) < 1e-4
    trace = golden.array("val_trace/fedfisher_kfac_uncompressed")  # in %
    assert float(merged.diagnostics["validation"]) == pytest.approx(trace.max() / 100, abs=1e-6)
    require_accuracy(merged.params, "fedfisher_kfac_uncompressed")


@pytest.mark.slow
def test_compressed_kronecker_paper_loop():
    """From the authors' decompressed factors, which carry p_i each: Σ (1/p_i)(p_i A_i ⊗ p_i G_i) = Σ p_i F_i."""
    shares = golden.array("p").astype(np.float32)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(kronecker(i, "kfac_comp") for i in CLIENTS))
    curvature = Mixture(stacked, jnp.asarray(1 / shares))
    flat, start, state = golden.array("kfac_comp_grad_sum"), 0, {}
    for name, weight in golden.state_dict("init").items():
        state[name] = flat[start : start + weight.size].reshape(weight.shape)
        start += weight.size
    product = torch_layout.from_torch(golden.template, state)
    sent = [payload.params for payload in payloads(lambda _: None, quantised)]
    anchor = jax.tree.map(lambda *leaves: sum(p * leaf for p, leaf in zip(shares, leaves, strict=True)), *sent)
    pull = jax.tree.map(jnp.subtract, product, curvature.matvec(anchor))
    problem = solve.Objective(curvature, pull, anchor, jnp.float32(0))
    solution = ff.paper_loop(ff.released_adam("kronecker"), validation=validation)(problem)
    assert distance(solution.params, golden.merged("fedfisher_kfac")) < 1e-4
    require_accuracy(solution.params, "fedfisher_kfac")


@cache
def merged_by_default():
    return ff.merge_payloads(ff.fedfisher(apply, likelihood), payloads(kronecker)).params


def accuracy_of(params):
    return float(ff.evaluate(apply, likelihood, params, *map(jnp.asarray, golden.held_out())).accuracy)


@pytest.mark.slow
def test_default_solver_needs_no_labels_and_is_as_good():
    assert accuracy_of(merged_by_default()) > golden.ACCURACY["fedfisher_kfac_uncompressed"]


@pytest.mark.slow
@pytest.mark.parametrize(("features", "expected"), [((), 0.822), (("fc1",), 0.835)])
def test_recalibrated_heads_are_those_of_the_prototypes(features, expected):
    """On the inputs of the last layer and of the first dense one; each client's moments from its own examples."""
    dataset, start = golden.fashion_mnist(), merged_by_default()
    x, y = jnp.asarray(dataset.train_x), jnp.asarray(dataset.train_y)
    rule = ff.merge.recalibrate(apply, likelihood, features=features, captured=captured)
    rows, sizes = pad_rows([golden.array(f"client{i}/idx") for i in CLIENTS])
    measure = jax.jit(lambda data: rule.measure(ff.Update(None, start), data, jax.random.key(0)))
    sent = [measure(Examples(x, y, jnp.asarray(r), jnp.asarray(n))) for r, n in zip(rows, sizes, strict=True)]
    assert accuracy_of(ff.merge_payloads(rule, sent, start).params) == pytest.approx(expected, abs=0.003)
