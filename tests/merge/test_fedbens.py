import federation
import jax
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from fedfisher_jax import examples, fisher, merge_payloads
from fedfisher_jax.merge import FreshModes, MeasureFisher, Update, fedbens, from_starts
from fedfisher_jax.merge._fedbens import MeasureModes, _log_determinant, _square

APPLY, PARAMS, SHAPE, CAPTURED = federation.net("dense")
FEW = {"steps": 20, "captured": CAPTURED}
RULE = fedbens(APPLY, federation.LIKELIHOOD, **FEW)


@pytest.mark.slow
@pytest.mark.parametrize("law", federation.IDENTITY + federation.FOLD)
def test_laws(law):
    law(RULE, "dense")


def test_log_density_is_that_of_the_dense_matrix():
    data = federation.data(SHAPE, 0)
    measured = jax.jit(RULE.measure)(Update(PARAMS), data, federation.KEY).statistics[0]
    other = federation.perturbed(PARAMS, 1)
    matrix = 12 * np.asarray(measured.to_dense()) + 0.5 * np.eye(ravel_pytree(PARAMS)[0].size)
    gap = np.asarray(ravel_pytree(other)[0] - ravel_pytree(PARAMS)[0])
    np.testing.assert_allclose(_log_determinant(measured, 12.0, 0.5), np.linalg.slogdet(matrix)[1], rtol=1e-10)
    np.testing.assert_allclose(_square(other, 0.5, measured, PARAMS, 12.0), gap @ matrix @ gap, rtol=1e-10)


def test_one_mode_each_goes_to_the_mode_of_the_product():
    rule = fedbens(APPLY, federation.LIKELIHOOD, optimizer=optax.adam(0.01, b2=0.99), steps=6000, captured=CAPTURED)
    sent = federation.payloads(rule.measure, "dense")
    merged = merge_payloads(rule, sent)
    vectors = np.stack([ravel_pytree(payload.params[0])[0] for payload in sent])
    matrices = [float(payload.weight) * np.asarray(payload.statistics[0].to_dense()) for payload in sent]
    right = sum(m @ v for m, v in zip(matrices, vectors, strict=True))
    right += 10 * (vectors.sum(0) - 2 * np.median(vectors, 0))
    expected = np.linalg.solve(sum(matrices) + 10 * np.eye(len(right)), right)
    np.testing.assert_allclose(ravel_pytree(merged.params)[0], expected, atol=1e-3)


def two_modes(shift):
    """Per client a model near `PARAMS` and one `shift` away from it."""
    measure = MeasureModes(MeasureFisher(APPLY, federation.LIKELIHOOD, "kronecker", captured=CAPTURED))
    compiled = jax.jit(measure.of)
    for client in range(3):
        near = federation.perturbed(PARAMS, client)
        far = jax.tree.map(lambda leaf: leaf + shift, near)
        yield compiled((near, far), federation.data(SHAPE, client), federation.KEY)


@pytest.mark.slow
def test_far_modes_are_merged_apart_and_predict_together():
    sent = list(two_modes(30.0))
    merged = merge_payloads(RULE, sent)
    for number in range(2):
        alone = [
            payload._replace(
                params=payload.params[number : number + 1], statistics=payload.statistics[number : number + 1]
            )
            for payload in sent
        ]
        federation.close(merged.params[number], merge_payloads(RULE, alone).params, 1e-6)
    x = np.random.default_rng(0).normal(size=(5, *SHAPE))
    probabilities = np.mean([jax.nn.softmax(APPLY(params, x)) for params in merged.params], axis=0)
    np.testing.assert_allclose(jax.nn.softmax(merged.apply(merged.params, x)), probabilities, atol=1e-9)
    assert int(merged.diagnostics["modes"]) == 2
    assert merged.diagnostics["log_density_end"] > merged.diagnostics["log_density_start"]


def test_near_modes_share_what_they_know():
    """Two copies of every local model are one: log ½ + log ½ is all they change."""
    sent = list(two_modes(0.0))
    doubled = merge_payloads(RULE, sent)
    alone = merge_payloads(RULE, [p._replace(params=p.params[:1], statistics=p.statistics[:1]) for p in sent])
    federation.close(doubled.params[0], alone.params, 1e-6)
    federation.close(doubled.params[1], alone.params, 1e-6)


def test_clients_train_from_further_starts():
    starts = (federation.perturbed(PARAMS, 1), federation.perturbed(PARAMS, 2))
    train = lambda p, data, key: jax.tree.map(lambda leaf: leaf + data.size + jax.random.uniform(key), p)  # noqa: E731
    rule = fedbens(APPLY, federation.LIKELIHOOD, others=from_starts(starts, train), **FEW)
    data = federation.data(SHAPE, 0)
    sent = jax.jit(rule.measure)(Update(PARAMS), data, federation.KEY)
    federation.close(sent.params[0], PARAMS, 0)
    for number in (1, 2):
        expected = train(starts[number - 1], data, jax.random.fold_in(federation.KEY, number))
        federation.close(sent.params[number], expected, 1e-12)
    own = fisher(APPLY, federation.LIKELIHOOD, sent.params[2], data, structure="kronecker", captured=CAPTURED)
    federation.close(sent.statistics[2], own, 1e-10)


def test_fresh_starts_are_common_to_clients():
    init = lambda key: {"w": jax.random.normal(key, (3,))}  # noqa: E731
    untrained = lambda p, data, key: p  # noqa: E731
    others = FreshModes(init, untrained, 3, count=2)
    first, second = others(federation.data(SHAPE, 0), federation.KEY)
    federation.close((first, second), others(federation.data(SHAPE, 1), jax.random.key(5)), 0)
    assert not np.allclose(first["w"], second["w"])
    again, another = (FreshModes(init, untrained, seed, count=2) for seed in (3, 4))
    assert others == again and hash(others) == hash(again)
    assert not np.allclose(first["w"], another(federation.data(SHAPE, 0), federation.KEY)[0]["w"])
    drawn_before = [init(key)["w"] for key in jax.random.split(jax.random.key(3), 8)]  # a run's own start is among them
    assert not any(np.allclose(model["w"], start) for model in (first, second) for start in drawn_before)


@pytest.mark.parametrize("name", ["precision", "temperature", "steps"])
def test_refusals(name):
    with pytest.raises(ValueError, match=f"{name}: got 0.*, expected a positive number"):
        fedbens(APPLY, federation.LIKELIHOOD, **{name: 0 if name == "steps" else 0.0})


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_the_only_mode_has_the_clients_types(kind):
    rule = fedbens(lambda p, x: x @ p["w"], federation.LIKELIHOOD, steps=5)
    params = {"w": jax.numpy.ones((3, 3), kind)}
    data = examples(np.eye(3, dtype=kind), np.arange(3))
    merged = merge_payloads(rule, [rule.measure(Update(params), data, federation.KEY)] * 2)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(merged.params)} == {kind}
