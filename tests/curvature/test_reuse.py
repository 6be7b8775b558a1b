"""Weights that are read several times, and experts stacked in one array: laws of their factors."""

from functools import partial

import explicit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

import fedfisher_jax as ff

X = jnp.asarray(np.random.default_rng(0).integers(0, 7, (5, 3)))
TABLE, INNER = zoo.normal(1, 7, 4), zoo.normal(2, 4, 4)
FEATURES = zoo.normal(3, 7, 4)


def language_model(table, head, x, inner=INNER):
    return jnp.tanh(table[x] @ inner) @ head.T


def measured(apply, params, x, likelihood=None, **options):
    options = {"structure": "kronecker"} | options
    return jax.jit(lambda p: ff.fisher(apply, likelihood or ff.categorical(), p, ff.examples(x), **options))(params)


def untied_factors():
    """Factors of table and head as two arrays of the same numbers: [A, G] of the table, [A, G] of the head."""
    apply = lambda p, x: language_model(p["table"], p["head"], x)  # noqa: E731
    found = measured(apply, {"table": TABLE, "head": TABLE}, X)
    assert [layer.lookup for layer in found.layers] == [True, False]
    return found


def test_a_tied_heads_block_has_the_partial_traces_of_both_uses():
    """Against explicit Kronecker products of the factors of an untied model of the same numbers."""
    untied = untied_factors()
    found = measured(lambda table, x: language_model(table, table, x), TABLE, X)
    assert found.layers[0].lookup and found.inputs[0].shape == (7,) and found.outputs[0].shape == (4, 4)
    counts, hidden = jnp.diag(untied.inputs[0]), untied.inputs[1]
    rows = jnp.diag(jnp.diagonal(untied.outputs[1]))  # of the logits' second moments
    expected = (jnp.kron(counts, untied.outputs[0]) + jnp.kron(rows, hidden)).reshape(7, 4, 7, 4)
    block = found.to_dense().reshape(7, 4, 7, 4)
    for axes in ("iaja->ij", "iaib->ab", "iaia->"):
        ours, theirs = (np.einsum(axes, np.asarray(matrix)) for matrix in (block, expected))
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("size", [1e-3, 30.0])
def test_how_a_use_is_scaled_does_not_matter(size):
    """Activations times s, outputs divided by s: a sum of both uses' moments would depend on it."""
    plain = measured(lambda table, x: language_model(table, table, x), TABLE, X)
    scaled = measured(lambda table, x: (size * jnp.tanh(table[x] @ INNER)) @ table.T / size, TABLE, X)
    np.testing.assert_allclose(scaled.to_dense(), plain.to_dense(), rtol=1e-9, atol=1e-14)


def test_with_one_use_alone_it_is_that_use():
    """The other one has gradients of zero. A linear head on fixed features has exactly this Fisher."""
    table_alone = lambda p, x: p[x].mean(1) @ INNER + 0 * (FEATURES[x].mean(1) @ p.T)[:, :4]  # noqa: E731
    expected = measured(lambda p, x: p[x].mean(1) @ INNER, TABLE, X).to_dense()
    np.testing.assert_allclose(measured(table_alone, TABLE, X).to_dense(), expected, rtol=1e-10, atol=1e-14)
    head_alone = lambda p, x: FEATURES[x[:, 0]] @ p.T + 0 * p[x].sum((1, 2))[:, None]  # noqa: E731
    found = measured(head_alone, TABLE, X, ff.gaussian()).to_dense()
    exact = explicit.fisher(head_alone, ff.gaussian(), TABLE, X, jnp.zeros((5, 7)))
    np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-14)


def test_a_weight_in_two_layers_has_the_positions_of_both():
    """One position in the first layer, four in the second: sums of A, and a mean of G over five positions."""
    model = zoo.CASES["shared_weights"]()

    def apart(p, x):
        places = jnp.tanh(x @ p["w"] + p["b"])[:, None] + x[:, :, None]
        return jnp.tanh(places @ p["w2"] + p["b2"]).mean(1) @ p["v"]

    one = measured(model.apply, model.params, model.x)
    two = measured(apart, model.params | {"w2": model.params["w"], "b2": model.params["b"]}, model.x)
    assert [layer.matrix_shape for layer in one.layers] == [(5, 4), (4, 3)] and not one.rest
    np.testing.assert_allclose(one.inputs[0], two.inputs[0] + two.inputs[1], rtol=1e-10)
    np.testing.assert_allclose(one.outputs[0], (two.outputs[0] + 4 * two.outputs[1]) / 5, rtol=1e-10)


def test_a_weight_and_its_transpose():
    """An autoencoder's: both sides of both uses are dense matrices."""
    model = zoo.CASES["tied_weights"]()

    def apart(p, x):
        return jnp.tanh(jnp.tanh(x @ p["w"]) @ p["u"].T) @ p["v"]

    one = measured(model.apply, model.params, model.x)
    two = measured(apart, model.params | {"u": model.params["w"]}, model.x)
    by_leaf = {layer.weight: (a, g) for layer, a, g in zip(two.layers, two.inputs, two.outputs, strict=True)}
    (a, g), (h, d) = by_leaf[2], by_leaf[0]
    expected = (jnp.kron(a, g) + jnp.kron(d, h)).reshape(4, 4, 4, 4)
    block = jnp.kron(one.inputs[0], one.outputs[0]).reshape(4, 4, 4, 4)
    for axes in ("iaja->ij", "iaib->ab"):
        np.testing.assert_allclose(np.einsum(axes, block), np.einsum(axes, expected), rtol=1e-10)


def test_experts_are_layers_of_their_own():
    """Each of the stacked arrays' blocks is that of a model whose experts are arrays of their own."""
    model = zoo.CASES["stacked_experts"]()

    def apart(p, x):
        hidden = [jnp.tanh(own @ p["w"][e] + p["b"][e]) for e, own in enumerate((x, x**2))]
        return sum(h @ v for h, v in zip(hidden, p["v"], strict=True))

    stacked = measured(model.apply, model.params, model.x)
    separate = measured(apart, {name: list(leaf) for name, leaf in model.params.items()}, model.x)
    assert [layer.matrix_shape for layer in stacked.layers] == [(2, 5, 5), (2, 5, 3)] and not stacked.rest
    np.testing.assert_allclose(stacked.to_dense(), separate.to_dense(), rtol=1e-10, atol=1e-14)


def test_chosen_experts_know_the_positions_that_chose_them():
    """As arrays of their own whose inputs and outputs are masked, but g gᵀ is a mean over those that chose alone."""
    x = zoo.normal(4, 5, 3, 4)
    params = {"experts": zoo.normal(5, 2, 4, 6), "v": zoo.normal(6, 6, 3)}
    number = lambda x: (x[..., 0] > 0.3).astype(int)  # noqa: E731
    assert 0 < number(x).sum() < 7

    def chosen(p, x):
        return jnp.tanh(jnp.einsum("ntd,ntdh->nth", x, p["experts"][number(x)])).mean(1) @ p["v"]

    def masked(p, x):
        masks = [(number(x) == e)[..., None] for e in (0, 1)]
        return jnp.tanh(sum(m * ((m * x) @ w) for m, w in zip(masks, p["experts"], strict=True))).mean(1) @ p["v"]

    one = measured(chosen, params, x)
    two = measured(masked, params | {"experts": list(params["experts"])}, x)
    assert one.layers[0].matrix_shape == (2, 4, 6) and len(two.layers) == 3 and not one.rest
    order = [layer.weight for layer in two.layers]
    for e in (0, 1):
        share = np.asarray(number(x) == e).mean()
        a, g = (factors[order.index(e)] for factors in (two.inputs, two.outputs))
        np.testing.assert_allclose(one.inputs[0][e], a, rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(share * one.outputs[0][e], g, rtol=1e-10, atol=1e-15)


# Rules and files.


def both(p, x):
    """Two experts between a table and the head that it is."""
    rows = p["table"][x[:, 0]]
    hidden = jnp.tanh(jnp.einsum("ecd,edh->ech", jnp.stack([rows, rows**2]), p["experts"]))
    return hidden.sum(0) @ p["table"].T


@pytest.mark.parametrize("name", ["fedfisher_kfac", "regmean"])
def test_they_are_measured_sent_and_merged(name):
    params = {"table": TABLE, "experts": zoo.normal(5, 2, 4, 4)}
    found = ff.capture(both, params, X)
    assert [layer.matrix_shape for layer in found.layers] == [(7, 4), (2, 4, 4)] and not found.fallback
    make = partial(ff.fedfisher, structure="kronecker") if name == "fedfisher_kfac" else ff.merge.regmean
    rule, payloads = make(both, ff.categorical(), captured=found), []
    measure = jax.jit(rule.measure)
    for number in range(2):
        mine = jax.tree.map(lambda leaf, n=number: leaf + 0.1 * zoo.normal(7 + n, *leaf.shape), params)
        sent = measure(ff.Update(mine), ff.examples(X[2 * number :][:3]), jax.random.key(0))
        about = ff.payload.About(rule.name, "categorical", ff.payload.fingerprint(params))
        back, _ = ff.payload.loads(ff.payload.dumps(sent, about), params, layers=found.layers)
        jax.tree.map(np.testing.assert_array_equal, back.statistics, sent.statistics)
        payloads.append(back)
    merged = ff.merge_payloads(rule, payloads).params
    average = jax.tree.map(lambda *leaves: sum(leaves) / 2, *(sent.params for sent in payloads))
    gaps = {name: np.abs(merged[name] - average[name]).max() for name in params}
    assert gaps["experts"] > 1e-3 and (gaps["table"] > 1e-3 if name == "fedfisher_kfac" else gaps["table"] < 1e-9)


@pytest.mark.parametrize("times", [1, 2])
def test_ignored_positions_change_nothing_however_often_a_weight_is_read(times):
    def apply(params, x):
        for _ in range(times):
            x = jnp.tanh(x @ params["w"])
        return x @ params["v"]

    draw = np.random.default_rng(0)
    params = {"v": jnp.asarray(draw.normal(size=(2, 3))), "w": jnp.asarray(draw.normal(size=(2, 2)))}
    x, y = draw.normal(size=(1, 2, 2)), np.array([[0, 1]])
    more = np.concatenate([x, np.full((1, 2, 2), 5.0)], 1), np.concatenate([y, np.full((1, 2), -100)], 1)
    likelihood = ff.categorical(ignore=-100)
    for structure in ("kronecker", "gram"):
        found, expected = (
            ff.fisher(apply, likelihood, params, ff.examples(*map(jnp.asarray, data)), structure=structure)
            for data in (more, (x, y))
        )
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)


def test_an_ignored_example_of_a_classifier_is_in_neither_factor():
    x, likelihood = jnp.asarray([[1.0, 0.0], [0.0, 2.0]]), ff.categorical(ignore=-100)
    both = ff.fisher(
        lambda w, x: x @ w, likelihood, jnp.ones((2, 3)), ff.examples(x, jnp.asarray([1, -100])), structure="kronecker"
    )
    np.testing.assert_allclose(both.inputs[0], [[0.5, 0], [0, 0]])
    assert float(jnp.abs(both.diagonal()[1]).max()) == 0
