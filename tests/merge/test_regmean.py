import federation
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax import _metrics as metrics
from fedfisher_jax import capture, categorical, examples, fisher, gaussian, merge_payloads
from fedfisher_jax.curvature.structures._gram import Gram
from fedfisher_jax.merge import Payload, Update, regmean, regmean_kron, released_regmean
from fedfisher_jax.merge._regmean import MeasureGrams, low_rank
from fedfisher_jax.solve._least_squares import least_squares

NETS = ("dense", "convolutional")


@pytest.mark.slow
@pytest.mark.parametrize("law", federation.IDENTITY + federation.FOLD)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("constructor", [regmean, regmean_kron])
def test_laws(constructor, name, law):
    apply, _, _, captured = federation.net(name)
    law(constructor(apply, federation.LIKELIHOOD, captured=captured), name)


@pytest.mark.parametrize("law", federation.FOLD)
def test_laws_with_compression(law):
    """It quantises, so one client does not come back unchanged."""
    apply, _, _, captured = federation.net("convolutional")
    law(released_regmean(apply, federation.LIKELIHOOD, captured=captured), "convolutional")


def _dense_inputs(params, x):
    first = np.tanh(x @ params["a"]["w"] + params["a"]["b"])
    return [x, first, np.maximum(first @ params["b"]["w"] + params["b"]["b"], 0)]


@pytest.mark.parametrize("bias", [False, True])
def test_dense_layers_solve_the_pooled_regression(bias):
    """The paper's rule keeps biases out of the regression and averages them; the Kronecker view takes them in."""
    apply, params, shape, captured = federation.net("dense")
    locals_ = [federation.perturbed(params, i) for i in range(3)]
    options = {"off_diagonal": 1.0, "solver": least_squares(), "captured": captured}
    rule = (regmean_kron if bias else regmean)(apply, federation.LIKELIHOOD, **options)
    merged = merge_payloads(rule, federation.payloads(rule.measure, "dense")).params
    for number, name in enumerate("abc"):
        inputs, targets = [], []
        for client, p in enumerate(locals_):
            x = np.asarray(federation.data(shape, client).x)[: federation.SIZES[client]]
            rows, weight = _dense_inputs(p, x)[number], p[name]["w"]
            if bias:
                rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
                weight = np.concatenate([weight, p[name]["b"][None]])
            inputs.append(rows)
            targets.append(rows @ weight)
        best = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(targets), rcond=None)[0]
        np.testing.assert_allclose(merged[name]["w"], best[:-1] if bias else best, atol=1e-8)
        average = np.average([p[name]["b"] for p in locals_], axis=0, weights=federation.SIZES)
        np.testing.assert_allclose(merged[name]["b"], best[-1] if bias else average, atol=1e-8)


def test_off_diagonal_factor():
    apply, params, shape, captured = federation.net("dense")
    rule = regmean(apply, federation.LIKELIHOOD, off_diagonal=0.3, captured=captured)
    merged = merge_payloads(rule, federation.payloads(rule.measure, "dense")).params
    rows = [np.asarray(federation.data(shape, i).x)[:n] for i, n in enumerate(federation.SIZES)]
    grams = [x.T @ x * (0.3 + 0.7 * np.eye(5)) for x in rows]
    moved = [gram @ federation.perturbed(params, i)["a"]["w"] for i, gram in enumerate(grams)]
    np.testing.assert_allclose(merged["a"]["w"], np.linalg.solve(sum(grams), sum(moved)), atol=1e-9)


def test_convolutions_are_averaged_by_the_paper_and_regressed_by_our_variant():
    apply, params, _, captured = federation.net("convolutional")
    rules = [f(apply, federation.LIKELIHOOD, captured=captured) for f in (regmean, regmean_kron)]
    paper, ours = (merge_payloads(rule, federation.payloads(rule.measure, "convolutional")).params for rule in rules)
    kernels = [federation.perturbed(params, i)["params"]["layers_0"]["kernel"] for i in range(3)]
    average = np.average(kernels, axis=0, weights=federation.SIZES)
    np.testing.assert_allclose(paper["params"]["layers_0"]["kernel"], average, atol=1e-12)
    assert np.abs(ours["params"]["layers_0"]["kernel"] - average).max() > 1e-3


def test_padding_is_not_measured():
    apply, params, shape, captured = federation.net("convolutional")
    padded = federation.data(shape, 0)
    alone = examples(padded.x[: federation.SIZES[0]], padded.y[: federation.SIZES[0]])
    measure = MeasureGrams(apply, federation.LIKELIHOOD, False, batch_size=5, captured=captured)
    sent = [measure(Update(params), mine, federation.KEY) for mine in (alone, padded)]
    federation.close(*sent, 1e-12)


def test_a_layer_whose_positions_are_not_the_targets_keeps_all_of_them_as_in_a_fisher():
    apply = lambda p, x: jnp.tanh(x.reshape(len(x), 3, 4) @ p["a"]).reshape(len(x), 2, 3) @ p["b"]  # noqa: E731
    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=(4, 2))), "b": jnp.asarray(rng.normal(size=(3, 2)))}
    data = examples(rng.normal(size=(5, 12)), np.array([[0, -1], [1, 1], [1, -1], [0, 0], [-1, 1]]))
    found = MeasureGrams(apply, categorical(ignore=-1), False)(Update(params), data, federation.KEY).statistics
    expected = fisher(apply, categorical(ignore=-1), params, data, structure="gram")
    federation.close(found, expected, 1e-12)
    with pytest.raises(ValueError, match="y: got None, expected targets"):
        regmean(apply, categorical(ignore=-1)).measure(Update(params), data._replace(y=None), federation.KEY)


def test_gram_algebra_agrees_with_its_matrix():
    apply, params, _, captured = federation.net("dense")
    measure = MeasureGrams(apply, federation.LIKELIHOOD, True, captured=captured)
    gram = federation.payloads(measure, "dense")[0].statistics
    assert isinstance(gram, Gram)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    dense = np.stack([jax.flatten_util.ravel_pytree(gram.matvec(unravel(row)))[0] for row in np.eye(flat.size)])
    np.testing.assert_allclose(dense, dense.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(dense), jax.flatten_util.ravel_pytree(gram.diagonal())[0], atol=1e-12)
    assert np.linalg.eigvalsh(dense).min() > -1e-12


def test_a_factor_out_of_range_is_refused():
    with pytest.raises(ValueError, match="off_diagonal: got 1.5, expected a number from 0 to 1"):
        regmean(golden.network.apply, federation.LIKELIHOOD, off_diagonal=1.5)


@pytest.mark.slow
def test_golden_second_moments_are_measured():
    data = examples(*golden.data(3))
    grams = jax.jit(MeasureGrams(golden.network.apply, federation.LIKELIHOOD, True, 512))(
        Update(golden.params(3)), data, federation.KEY
    ).statistics.inputs
    for name, gram in zip(("fc1", "fc2", "fc3"), grams, strict=True):  # theirs carry √10 for ten classes
        expected = golden.array(f"client3/kfac_A/{name}") / np.sqrt(10)
        np.testing.assert_allclose(gram, expected, rtol=0, atol=1e-5 * expected.max())


def golden_payloads():
    """The model comes from the authors' own second moments, which saves a pass over the data."""
    captured = capture(golden.network.apply, golden.params(0), jnp.zeros((1, 28, 28, 1)))
    leaves, treedef = jax.tree.flatten(golden.params(0))
    shapes = tuple(leaf.shape for leaf in leaves)
    for client in range(golden.NUM_CLIENTS):
        moments = [golden.array(f"client{client}/kfac_A/{name}") / np.sqrt(10) for name in ("fc1", "fc2", "fc3")]
        gram = Gram(tuple(map(jnp.asarray, moments)), captured.layers[2:], shapes, treedef)
        yield Payload(jnp.asarray(golden.array("sizes")[client], jnp.float32), golden.params(client), gram)


@pytest.mark.slow
def test_golden_model_of_the_released_settings():
    """Convolutions agree to rounding. Dense layers cannot: of client 2 the authors take a random 16,000 examples."""
    rule = released_regmean(golden.network.apply, federation.LIKELIHOOD)
    merged = merge_payloads(rule, list(golden_payloads())).params
    expected = golden.merged("regmean")
    gaps = jax.tree.map(lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)), merged, expected)
    for name, bound in {"conv1": 2e-6, "conv2": 2e-6, "fc1": 0.13, "fc2": 0.03, "fc3": 0.02}.items():
        assert gaps[name]["kernel"] < bound
    x, y = golden.held_out()
    result = metrics.evaluate(golden.network.apply, federation.LIKELIHOOD, merged, x, y)
    assert float(result.accuracy) == pytest.approx(golden.ACCURACY["regmean"], abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("examples_", [3, 10])
def test_where_few_examples_tell_nothing_the_average_stays_in_float32(examples_):
    """The eigenvalues of a singular moment are rounding errors there, and their inverses are large."""
    rng = np.random.default_rng(0)
    apply = lambda params, x: x @ params["w"]  # noqa: E731
    x = jnp.asarray(rng.normal(size=(examples_, 40)), jnp.float32)
    rule = regmean(apply, federation.LIKELIHOOD, off_diagonal=1.0)
    models = [{"w": jnp.asarray(rng.normal(size=(40, 4)) / 8, jnp.float32)} for _ in range(2)]
    sent = [rule.measure(Update(model), examples(x), jax.random.key(0)) for model in models]
    sent = [one._replace(weight=one.weight.astype(jnp.float32)) for one in sent]
    alone, both = merge_payloads(rule, sent[:1]).params["w"], merge_payloads(rule, sent).params["w"]
    np.testing.assert_allclose(alone, models[0]["w"], atol=1e-6)
    np.testing.assert_allclose(both, (models[0]["w"] + models[1]["w"]) / 2, atol=1e-6)


def test_the_released_compression_takes_stacked_experts_one_by_one():
    root = np.random.default_rng(0).normal(size=(5, 5))
    moment = jnp.asarray(root @ root.T)
    found, alone = low_rank(jnp.stack([moment, moment]), 2), low_rank(moment, 2)
    np.testing.assert_allclose(found, jnp.stack([alone, alone]), rtol=1e-12)
    assert np.linalg.matrix_rank(alone) == 2


def test_released_form_of_one_output_without_bias_keeps_a_pair():
    rule = released_regmean(lambda w, x: x @ w, gaussian())
    start = jnp.ones((3, 1))
    measured = rule.measure(Update(start, start), examples(jnp.eye(3), jnp.ones((3, 1))), jax.random.key(0))
    assert jnp.isfinite(merge_payloads(rule, [measured, measured], start=start).params).all()
