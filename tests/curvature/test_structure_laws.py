"""What every registered structure promises to files, noise, solvers and attacks."""

import explicit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

import fedfisher_jax as ff
from fedfisher_jax.curvature import STRUCTURES, Structure, Subspace, damped_inverse, quadratic, trace
from fedfisher_jax.curvature._leaves import leaves
from fedfisher_jax.curvature.structures._protocol import mean_diagonals, named, sign_of, with_arrays
from fedfisher_jax.curvature.structures._signs import require_sign

CASES = ("groups", "plain", "embedding", "tied_head", "stacked_experts")


def plain(params, x):
    """Two layers that are captured, the first with a bias, and a scale that is not."""
    hidden = jnp.tanh(x @ params["first"]["w"] + params["first"]["b"]) * params["scale"]
    return hidden @ params["second"]


def model(case):
    if case in zoo.CASES:
        found = zoo.CASES[case]()
        return found.apply, found.params, found.x
    first = {"w": zoo.normal(0, 4, 5), "b": zoo.normal(1, 5)}
    return plain, {"first": first, "scale": 1 + zoo.normal(2, 5), "second": zoo.normal(3, 5, 3)}, zoo.normal(4, 11, 4)


@pytest.fixture(scope="module", params=[(case, name) for case in CASES for name in STRUCTURES], ids="-".join)
def found(request):
    """Parameters and a Fisher as it is estimated."""
    case, name = request.param
    apply, params, x = model(case)
    options = {"structure": name, "key": jax.random.key(0), "subspace": Subspace(4)}
    return params, jax.jit(lambda p: ff.fisher(apply, ff.gaussian(), p, ff.examples(x), **options))(params)


def like(params, seed=9):
    return jax.tree.map(lambda leaf: zoo.normal(seed, *leaf.shape), params)


def test_algebra_is_that_of_the_dense_matrix(found):
    params, fisher = found
    dense, v = np.asarray(fisher.to_dense()), like(params)
    tolerance = 1e-12 * np.abs(dense).max()
    assert isinstance(fisher, Structure) and STRUCTURES[fisher.name] is type(fisher)
    np.testing.assert_allclose(dense, dense.T, atol=tolerance)
    np.testing.assert_allclose(explicit.flat(fisher.matvec(v)), dense @ explicit.flat(v), atol=100 * tolerance)
    np.testing.assert_allclose(explicit.flat(fisher.diagonal()), np.diag(dense), atol=tolerance)
    assert float(trace(fisher)) == pytest.approx(np.trace(dense)) and float(quadratic(fisher, v)) > 0
    np.testing.assert_allclose(fisher.scale(2.5).to_dense(), 2.5 * dense, atol=tolerance)
    np.testing.assert_array_equal(explicit.block_diagonal(dense, fisher, params), dense)


def test_named_arrays_make_the_structure_again(found):
    """From its name, its JSON and its arrays alone, as from a file."""
    params, fisher = found
    described = leaves(params)
    arrays = named(fisher, described)
    outlined = STRUCTURES[fisher.name].outline(fisher.static(), described, jax.tree.structure(params))
    assert jax.tree.structure(outlined) == jax.tree.structure(fisher)
    assert {n: a.shape for n, a in named(outlined, described).items()} == {n: a.shape for n, a in arrays.items()}
    again = with_arrays(outlined, [arrays[name] for name in outlined.names(described)])
    np.testing.assert_array_equal(again.to_dense(), fisher.to_dense())
    for odd in ([], {"": 0}, 3, None):
        with pytest.raises(ValueError, match="static: got "):
            STRUCTURES[fisher.name].outline(odd, described, jax.tree.structure(params))


def test_signs_hold(found):
    params, fisher = found
    for name, array in named(fisher, leaves(params)).items():
        require_sign(sign_of(type(fisher), name), np.asarray(array))


@pytest.mark.parametrize("damping", [1e-3, 0.3])
def test_damped_inverse_is_the_dense_one(found, damping):
    """λ of each block its own; blocks of which F knows nothing give zero."""
    params, fisher = found
    means, v = mean_diagonals(fisher), like(params)
    shifts = [damping * mean for mean in means]
    owner = {leaf: number for number, block in enumerate(fisher.blocks()) for leaf in block}
    filled = jax.tree.unflatten(
        jax.tree.structure(params),
        [jnp.full(leaf.shape, shifts[owner[n]]) for n, leaf in enumerate(jax.tree.leaves(params))],
    )
    known = explicit.flat(filled) > 0
    damped = np.asarray(fisher.to_dense()) + np.diag(np.where(known, explicit.flat(filled), 1))
    expected = np.where(known, np.linalg.solve(damped, explicit.flat(v)), 0)
    got = explicit.flat(jax.jit(lambda fisher, v: damped_inverse(fisher, shifts)(v))(fisher, v))
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())


def test_without_damping_it_is_the_pseudo_inverse(found):
    params, fisher = found
    v, blocks = like(params), fisher.blocks()
    once = damped_inverse(fisher, [0.0] * len(blocks))(v)
    expected = np.linalg.pinv(np.asarray(fisher.to_dense()), rcond=1e-10, hermitian=True) @ explicit.flat(v)
    np.testing.assert_allclose(explicit.flat(once), expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_other_functions_of_the_spectrum(found):
    """The square root, applied twice, is F."""
    params, fisher = found
    root = fisher.spectral(lambda values, noise, block: jnp.sqrt(values))
    v = like(params)
    expected = explicit.flat(fisher.matvec(v))
    np.testing.assert_allclose(explicit.flat(root(root(v))), expected, atol=1e-10 * np.abs(expected).max())


def test_additive_structures_are_linear_in_their_arrays(found):
    params, fisher = found
    other = fisher.scale(3.0)
    other = with_arrays(other, [array + 0.1 * jnp.abs(array) for array in jax.tree.leaves(other)])
    both = jax.tree.map(jnp.add, fisher, other)
    gap = np.abs(both.to_dense() - fisher.to_dense() - other.to_dense()).max()
    assert (gap < 1e-10 * np.abs(both.to_dense()).max()) == fisher.additive


def test_moments_are_partial_traces_up_to_a_factor(found):
    params, fisher = found
    apply, _, x = next(found for found in map(model, CASES) if set(found[1]) == set(params))
    for layer in getattr(fisher, "layers", ff.capture(apply, params, x).layers):
        if layer.groups > 1:
            if fisher.name == "diagonal":
                with pytest.raises(ValueError, match=f"layer: got {layer.groups} groups, expected one without"):
                    fisher.moment(layer, 0)
            continue
        for side in (0, 1):
            if fisher.name == "gram" and side:
                with pytest.raises(ValueError, match="no gradients"):
                    fisher.moment(layer, side)
                continue
            general = np.asarray(Structure.moment(fisher, layer, side))
            got = np.asarray(fisher.moment(layer, side))
            ratio = np.trace(general) / np.trace(got)
            np.testing.assert_allclose(ratio * got, general, atol=1e-10 * np.abs(general).max())


def test_balancing_changes_the_arrays_not_the_matrix(found):
    _, fisher = found
    dense = np.asarray(fisher.to_dense())
    np.testing.assert_allclose(fisher.balanced().to_dense(), dense, atol=1e-12 * np.abs(dense).max())


def test_names_are_taken_once_and_lookups_name_what_is_known():
    with pytest.raises(ValueError, match="name: got 'diagonal', which is that of Diagonal"):
        ff.curvature.register(type("Other", (ff.Full,), {"name": "diagonal"}))
    assert ff.curvature.register(ff.Diagonal) is ff.Diagonal
    with pytest.raises(ValueError, match="structure: got 'mine', expected one of diagonal, full, kronecker, gram"):
        ff.fisher(plain, ff.gaussian(), *model("plain")[1:2], ff.examples(model("plain")[2]), structure="mine")
