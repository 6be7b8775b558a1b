import explicit
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from jax.flatten_util import ravel_pytree

import fedfisher_jax as ff
from fedfisher_jax.curvature import Diagonal, Fisher, Full, Kronecker, Layer, Mixture, num_bytes, quadratic, trace

MODEL = zoo.CASES["groups"]()  # a grouped convolution with bias, a dense layer without
LAYERS = ff.capture(MODEL.apply, MODEL.params, MODEL.x).layers
SHAPES = tuple(leaf.shape for leaf in jax.tree.leaves(MODEL.params))
TREEDEF = jax.tree.structure(MODEL.params)


def positive(seed, *shape):
    root = zoo.normal(seed, *shape)
    return root @ jnp.swapaxes(root, -1, -2)


def build(name, seed=0):
    """A random Fisher of a structure."""
    if name == "diagonal":
        return Diagonal(jax.tree.map(lambda leaf: zoo.normal(seed, *leaf.shape) ** 2, MODEL.params))
    if name == "full":
        size = ravel_pytree(MODEL.params)[0].size
        return Full(positive(seed, size, size), SHAPES, TREEDEF)
    if name == "kronecker":
        matrices = [layer.to_matrix(jax.tree.leaves(MODEL.params)).shape for layer in LAYERS]
        return Kronecker(
            tuple(positive(seed, *shape[:-2], shape[-2], shape[-2]) for shape in matrices),
            tuple(positive(seed + 1, *shape[:-2], shape[-1], shape[-1]) for shape in matrices),
            {},
            LAYERS,
            TREEDEF,
        )
    if name == "kronecker_and_rest":  # only the first layer is one
        whole = build("kronecker", seed)
        rest = {n: zoo.normal(seed, *SHAPES[n]) ** 2 for n in range(len(SHAPES)) if n not in LAYERS[0].leaves}
        return Kronecker(whole.inputs[:1], whole.outputs[:1], rest, LAYERS[:1], TREEDEF)
    kind = name.removeprefix("mixture_of_")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[build(kind, seed + i) for i in range(3)])
    return Mixture(stacked, jnp.array([0.2, 0.5, 0.3]))


PLAIN = ["diagonal", "full", "kronecker", "kronecker_and_rest"]
ALL = [*PLAIN, *[f"mixture_of_{name}" for name in PLAIN]]
V = jax.tree.map(lambda leaf: zoo.normal(9, *leaf.shape), MODEL.params)


@pytest.fixture(scope="module")
def dense():
    return {name: np.asarray(build(name).to_dense()) for name in ALL}


@pytest.mark.parametrize("name", ALL)
def test_algebra_agrees_with_the_dense_matrix(name, dense):
    fisher, matrix, v = build(name), dense[name], explicit.flat(V)
    assert isinstance(fisher, Fisher)
    assert jax.tree.structure(fisher.matvec(V)) == TREEDEF == jax.tree.structure(fisher.diagonal())
    assert [leaf.shape for leaf in jax.tree.leaves(fisher.diagonal())] == list(SHAPES)
    np.testing.assert_allclose(explicit.flat(fisher.matvec(V)), matrix @ v, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(explicit.flat(fisher.diagonal()), np.diag(matrix), rtol=1e-12)
    assert float(quadratic(fisher, V)) == pytest.approx(v @ matrix @ v, rel=1e-10)
    assert float(trace(fisher)) == pytest.approx(np.trace(matrix), rel=1e-10)
    np.testing.assert_allclose(fisher.scale(2.5).to_dense(), 2.5 * matrix, rtol=1e-12, atol=1e-15 * matrix.max())


@pytest.mark.parametrize("name", ALL)
def test_symmetric_and_positive_semi_definite(name, dense):
    np.testing.assert_allclose(dense[name], dense[name].T, atol=1e-12)
    values = np.linalg.eigvalsh(dense[name])
    assert values[0] > -1e-12 * values[-1] and values[-1] > 0


@pytest.mark.parametrize("name", ALL)
def test_blocks_are_a_partition_and_nothing_lies_between_them(name, dense):
    fisher = build(name)
    assert sorted(leaf for block in fisher.blocks() for leaf in block) == list(range(len(SHAPES)))
    np.testing.assert_array_equal(explicit.block_diagonal(dense[name], fisher, MODEL.params), dense[name])


def test_blocks_are_as_small_as_they_can_be():
    assert build("diagonal").blocks() == ((0,), (1,), (2,))
    assert build("full").blocks() == ((0, 1, 2),)
    kernel, bias, head = (sorted(MODEL.params).index(name) for name in ("k", "b", "w"))
    assert build("kronecker").blocks() == ((kernel, bias), (head,))


def test_kronecker_blocks_are_the_products_of_their_factors(dense):
    """The dense layer without bias: its leaf is [inputs, outputs], row by row."""
    fisher = build("kronecker")
    size = int(np.prod(SHAPES[-1]))
    np.testing.assert_allclose(
        dense["kronecker"][-size:, -size:], np.kron(fisher.inputs[1], fisher.outputs[1]), rtol=1e-12
    )


def test_mixture_is_the_weighted_sum(dense):
    for name in PLAIN:
        expected = sum(w * build(name, i).to_dense() for i, w in enumerate((0.2, 0.5, 0.3)))
        np.testing.assert_allclose(dense[f"mixture_of_{name}"], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ALL)
def test_pytree(name):
    fisher = build(name)
    leaves, treedef = jax.tree.flatten(fisher)
    again = jax.tree.unflatten(treedef, leaves)
    assert jax.tree.structure(again) == treedef and hash(treedef) == hash(jax.tree.structure(build(name, 5)))
    through = jax.jit(lambda fisher: fisher.scale(1.0))(fisher)
    assert jax.tree.structure(through) == treedef
    np.testing.assert_array_equal(explicit.flat(through.diagonal()), explicit.flat(fisher.diagonal()))


@pytest.mark.parametrize("name", PLAIN)
def test_a_leading_axis_is_vmap(name):
    each = [build(name, i) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    found = jax.vmap(lambda fisher: fisher.scale(2.0).matvec(V))(stacked)
    for i, fisher in enumerate(each):
        one = explicit.flat(jax.tree.map(lambda leaf, i=i: leaf[i], found))
        np.testing.assert_allclose(one, 2 * explicit.flat(fisher.matvec(V)), rtol=1e-10, atol=1e-13)


def test_bytes_are_those_of_the_numbers_that_are_kept():
    size = explicit.flat(MODEL.params).size
    assert num_bytes(build("diagonal")) == 8 * size
    assert num_bytes(build("full")) == 8 * size**2
    kernel = 2 * ((2 * 2 * 2 + 1) ** 2 + 3**2)  # two groups: four offsets of two channels and the bias; three outputs
    head = SHAPES[-1][0] ** 2 + SHAPES[-1][1] ** 2
    assert num_bytes(build("kronecker")) == 8 * (kernel + head)


def test_optimiser_trees_pass_through():
    """The result of matvec can be added to parameters of other types: mixed precision stays what it is."""
    params = {"w": jnp.ones((2, 2), jnp.float32), "b": jnp.ones(2, jnp.float64)}
    fisher = Diagonal(jax.tree.map(lambda leaf: 2 * leaf, params))
    assert jax.tree.map(lambda leaf: leaf.dtype, fisher.matvec(params)) == jax.tree.map(lambda x: x.dtype, params)
    assert float(optax.tree.sum(fisher.matvec(params))) == 12


@pytest.mark.parametrize("name", ["groups", "attention", "linen_dense_general", "channels_first_groups"])
def test_layers_see_parameters_as_matrices_and_back(name):
    model = zoo.CASES[name]()
    leaves = jax.tree.leaves(model.params)
    for layer in ff.capture(model.apply, model.params, model.x).layers:
        back = layer.from_matrix(layer.to_matrix(leaves))
        assert set(back) == set(layer.leaves)
        for leaf, value in back.items():
            np.testing.assert_array_equal(value, leaves[leaf])


def test_a_dense_matrix_of_narrow_numbers_has_every_entry():
    """Places of entries are no numbers of the factors' type: bfloat16 has but 256 integers in a row."""
    eye = jnp.eye(20, dtype=jnp.bfloat16)
    layer = Layer(0, None, (20, 20), (), ())
    found = Kronecker((eye,), (eye,), {}, (layer,), jax.tree.structure({"w": 0})).to_dense()
    np.testing.assert_array_equal(found.astype(float), np.eye(400))


@pytest.mark.parametrize("name", ["kronecker", "kronecker_and_rest"])
def test_parts_are_the_blocks_of_the_whole(name):
    fisher, leaves = build(name), [zoo.normal(n, *shape) for n, shape in enumerate(SHAPES)]
    expected = jax.tree.leaves(fisher.matvec(TREEDEF.unflatten(leaves)))
    seen = []
    for numbers, part in fisher.parts():
        seen += numbers
        for n, value in zip(numbers, part.matvec(tuple(leaves[n] for n in numbers)), strict=True):
            np.testing.assert_allclose(value, expected[n], rtol=1e-12)
    assert sorted(seen) == list(range(len(SHAPES)))


def test_the_nearest_product_of_a_sum_has_its_traces_with_tables_too():
    """A table's input factor is a diagonal, kept as such; each factor gets 1 % of its mean diagonal entry."""
    params = {"head": zoo.normal(0, 4, 3), "table": zoo.normal(1, 5, 4)}
    apply = lambda p, x: p["table"][x].mean(1) @ p["head"]  # noqa: E731
    found = [
        ff.fisher(apply, ff.categorical(), params, ff.examples(jnp.asarray(x)), structure="kronecker")
        for x in ([[0, 1], [2, 2]], [[3, 1], [0, 0]])
    ]
    assert sorted(layer.lookup for layer in found[0].layers) == [False, True]
    weights = jnp.asarray([0.3, 0.7])
    near = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found).nearest_sum(weights)
    expected = sum(w * f.to_dense() for w, f in zip(weights, found, strict=True))
    for part in (slice(0, 12), slice(12, 32)):  # head, table
        traces = jnp.trace(near.to_dense()[part, part]), jnp.trace(expected[part, part])
        np.testing.assert_allclose(traces[0], 1.01**2 * traces[1], rtol=1e-10)
    rows = jnp.diag(expected)[12:].reshape(5, 4).sum(1)  # a partial trace
    found = jnp.diag(near.to_dense())[12:].reshape(5, 4).sum(1)
    np.testing.assert_allclose(found / found.sum(), (rows / rows.sum() + 0.002) / 1.01, rtol=1e-10)
