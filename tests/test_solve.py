"""Solvers against explicit float64 linear algebra."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from fedfisher_jax import solve
from fedfisher_jax._examples import examples
from fedfisher_jax._likelihood import categorical, gaussian
from fedfisher_jax.curvature import Diagonal, Full, Kronecker, Layer, Mixture
from fedfisher_jax.merge import Payload, Update, fedfisher, fisher_merge, merge_payloads

WEIGHTS = np.array([3.0, 1.0, 6.0])
SHARES = WEIGHTS / WEIGHTS.sum()
LIKE = {"b": np.zeros(3), "w": np.zeros((4, 3))}
TREEDEF = jax.tree.structure(LIKE)
LAYER = Layer(1, None, (4, 3), (), (("reshape", (4, 3)),))


def psd(rng, size, rank):
    half = rng.normal(size=(size, rank))
    return half @ half.T / rank


def clients(structure, rank=30):
    """Three clients' (stacked Fisher, stacked parameters) with float64 entries."""
    rng = np.random.default_rng(0)
    if structure == "diagonal":
        fishers = [Diagonal({"b": rng.uniform(0.1, 2, 3), "w": rng.uniform(0.1, 2, (4, 3))}) for _ in WEIGHTS]
    elif structure == "full":
        fishers = [Full(psd(rng, 15, rank), ((3,), (4, 3)), TREEDEF) for _ in WEIGHTS]
    else:
        fishers = [
            Kronecker((psd(rng, 4, rank),), (psd(rng, 3, rank),), {0: rng.uniform(0.1, 2, 3)}, (LAYER,), TREEDEF)
            for _ in WEIGHTS
        ]
    models = [{"b": rng.normal(size=3), "w": rng.normal(size=(4, 3))} for _ in WEIGHTS]
    stack = lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves])  # noqa: E731
    return jax.tree.map(stack, *fishers), jax.tree.map(stack, *models)


def explicit(structure, rank=30):
    """The problem, F̄, its right-hand side around θ̄, θ̄, and Q as a numpy function."""
    fishers, models = clients(structure, rank)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], (fishers, models)) for i in range(3)]
    dense = [np.asarray(fisher.to_dense()) for fisher, _ in each]
    flat = [np.asarray(ravel_pytree(model)[0]) for _, model in each]
    mean = sum(p * x for p, x in zip(SHARES, flat, strict=True))
    curvature = sum(p * f for p, f in zip(SHARES, dense, strict=True))
    pull = sum(p * f @ (x - mean) for p, f, x in zip(SHARES, dense, flat, strict=True))
    value = lambda v: sum(p * (v - x) @ f @ (v - x) for p, f, x in zip(SHARES, dense, flat, strict=True))  # noqa: E731
    return solve.objective(fishers, models, jnp.asarray(WEIGHTS)), curvature, pull, mean, value


def flatten(solution):
    return np.asarray(ravel_pytree(solution.params)[0])


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "full"])
def test_objective_is_the_sum_over_clients(structure):
    problem, curvature, pull, mean, value = explicit(structure)
    point = jax.tree.map(lambda leaf: leaf + 0.3, problem.anchor)
    np.testing.assert_allclose(problem.value(point), value(mean + 0.3), rtol=1e-12)
    np.testing.assert_allclose(problem.value_at_anchor, value(mean), rtol=1e-12)
    slope = ravel_pytree(problem.half_gradient(point))[0]
    np.testing.assert_allclose(slope, curvature @ np.full(15, 0.3) - pull, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("structure", "rank"), [("diagonal", 30), ("full", 30), ("full", 3)])
def test_closed_form_is_the_pseudo_inverse(structure, rank):
    problem, curvature, pull, mean, value = explicit(structure, rank)
    solution = solve.closed_form()(problem)
    expected = mean + np.linalg.pinv(curvature, rcond=1e-9, hermitian=True) @ pull
    np.testing.assert_allclose(flatten(solution), expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(solution.diagnostics["objective_end"], value(expected), rtol=1e-9, atol=1e-12)
    assert solution.diagnostics["objective_end"] < solution.diagnostics["objective_start"]
    assert solution.diagnostics["residual"] < 1e-8 and solution.diagnostics["converged"]


def test_closed_form_is_the_limit_of_gradient_descent_and_keeps_the_null_space():
    problem, curvature, _, mean, _ = explicit("full", rank=3)  # three clients of rank 3 leave 6 of 15 directions free
    values, vectors = np.linalg.eigh(curvature)
    assert (values < 1e-10).sum() == 6
    rate = 1 / values[-1]
    start = jax.tree.map(jnp.zeros_like, problem.anchor)

    def descend(_, delta):
        slope = jax.tree.map(jnp.subtract, problem.curvature.matvec(delta), problem.pull)
        return jax.tree.map(lambda d, g: d - rate * g, delta, slope)

    delta = ravel_pytree(jax.lax.fori_loop(0, 100_000, descend, start))[0]
    closed = flatten(solve.closed_form()(problem)) - mean
    np.testing.assert_allclose(closed, delta, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(vectors[:, :6].T @ closed, 0, atol=1e-12)


def test_closed_form_floor_and_no_information():
    fishers, models = clients("diagonal")
    fishers = Diagonal({"b": fishers.values["b"].at[:, 0].set(0).at[:, 1].set(1e-7), "w": fishers.values["w"]})
    problem = solve.objective(fishers, models, jnp.asarray(WEIGHTS))
    plain, floored = (solve.closed_form(floor=floor)(problem).params["b"] for floor in (0.0, 1e-6))
    assert plain[0] == floored[0] == problem.anchor["b"][0]
    np.testing.assert_allclose(plain[1], SHARES @ np.asarray(models["b"][:, 1]))  # equal Fishers: the weighted mean
    assert floored[1] == problem.anchor["b"][1]


def test_a_floor_does_not_count_the_damping():
    """Diagonal and full curvature agree: the direction of which clients know 0.0025 stays at the anchor."""
    values = jnp.array([[1.0, 1e-3], [3.0, 3e-3]])
    models, shares = {"w": jnp.array([[0.0, 0.0], [1.0, 1.0]])}, jnp.ones(2)
    full = Full(jax.vmap(jnp.diag)(values), ((2,),), jax.tree.structure({"w": 0}))
    for fishers in (Diagonal({"w": values}), full):
        found = solve.closed_form(damping=0.1, floor=0.01)(solve.objective(fishers, models, shares)).params["w"]
        assert float(found[0]) > 0.7 and float(found[1]) == 0.5


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "full"])
def test_conjugate_gradients_do_not_depend_on_the_fishers_size(structure):
    """In float32 the squares of 1e-20 are zero, and the average would count as converged."""
    fishers, models = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), clients(structure))
    solver, found = solve.conjugate_gradients(), []
    for size in (1.0, 2.0**-66, 2.0**60):
        small = jax.vmap(lambda fisher, s=size: fisher.scale(jnp.float32(s)))(fishers)
        found.append(solver(solve.objective(small, models, jnp.asarray(WEIGHTS, jnp.float32))))
    assert found[0].diagnostics["iterations"] >= 1
    for one in found[1:]:
        chex.assert_trees_all_equal(one.params, found[0].params)
        for name in ("iterations", "residual", "converged"):
            assert one.diagnostics[name] == found[0].diagnostics[name]


def without_floor(factor):
    """A factor of the nearest product without its 1 %, by its trace: 1.01 times what it was."""
    size = len(factor)
    return np.asarray(factor) - np.trace(factor) / 101 / size * np.eye(size)


def test_the_nearest_product_has_the_partial_traces_of_the_sum():
    fishers, _ = clients("kronecker")
    near = Mixture(fishers, jnp.asarray(SHARES)).nearest()
    pairs = zip(SHARES, fishers.inputs[0], fishers.outputs[0], strict=True)
    total = sum(w * np.kron(a, g) for w, a, g in pairs).reshape(4, 3, 4, 3)
    a, g = without_floor(near.inputs[0]), without_floor(near.outputs[0])
    product = np.kron(a, g).reshape(4, 3, 4, 3)
    for axes in ("igjg->ij", "aiaj->ij"):
        np.testing.assert_allclose(np.einsum(axes, product), np.einsum(axes, total), rtol=1e-12)
    np.testing.assert_allclose(near.rest[0], SHARES @ np.asarray(fishers.rest[0]), rtol=1e-12)


def test_groups_nearest_products_have_the_nearest_product_of_all():
    fishers, _ = clients("kronecker")
    want = Mixture(fishers, jnp.asarray(SHARES)).nearest()
    groups = [
        jax.tree.map(lambda leaf, rows=rows: leaf[rows], fishers).nearest_sum(jnp.asarray(SHARES)[rows], floor=0.0)
        for rows in (slice(0, 1), slice(1, None))
    ]
    got = jax.tree.map(lambda *leaves: jnp.stack(leaves), *groups).nearest_sum(jnp.ones(2))
    chex.assert_trees_all_close(got, want, rtol=1e-10)


def test_of_equal_clients_the_nearest_product_is_their_own_fisher_and_solves_at_once():
    fishers, models = clients("kronecker")
    equal = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 3), fishers)
    near = Mixture(equal, jnp.asarray(SHARES)).nearest()
    a, g = without_floor(near.inputs[0]), without_floor(near.outputs[0])
    np.testing.assert_allclose(np.kron(a, g), np.kron(fishers.inputs[0][0], fishers.outputs[0][0]), rtol=1e-10)
    problem = solve.objective(equal, models, jnp.asarray(WEIGHTS))
    assert solve.conjugate_gradients()(problem).diagnostics["iterations"] <= 4


def test_a_sum_without_curvature_has_a_nearest_product_without():
    fishers, models = clients("kronecker")
    nothing = jax.tree.map(jnp.zeros_like, fishers)
    assert not np.any(Mixture(nothing, jnp.asarray(SHARES)).nearest().to_dense())
    found = solve.conjugate_gradients()(solve.objective(nothing, models, jnp.asarray(WEIGHTS)))
    chex.assert_trees_all_close(found.params, jax.tree.map(lambda leaf: jnp.tensordot(SHARES, leaf, axes=1), models))


def test_closed_form_refuses_kronecker():
    with pytest.raises(TypeError, match="curvature: got a sum of kronecker Fishers, whose spectrum is not known"):
        solve.closed_form()(explicit("kronecker")[0])


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "full"])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_conjugate_gradients_equal_a_dense_solve_with_damping_per_block(structure, damping):
    problem, curvature, pull, mean, _ = explicit(structure)
    blocks = [range(15)] if structure == "full" else [range(3), range(3, 15)]
    shift = np.zeros(15)
    for block in blocks:
        shift[list(block)] = damping * np.diag(curvature)[list(block)].mean()
    expected = mean + np.linalg.solve(curvature + np.diag(shift), pull)
    solution = jax.jit(solve.conjugate_gradients(damping=damping, tolerance=1e-12))(problem)
    np.testing.assert_allclose(flatten(solution), expected, rtol=1e-8, atol=1e-10)
    assert solution.diagnostics["converged"] and solution.diagnostics["residual"] < 1e-9
    assert solution.diagnostics["iterations"] <= 40


def test_conjugate_gradients_say_when_they_stop_early():
    solution = solve.conjugate_gradients(damping=0.0, iterations=2, tolerance=1e-12)(explicit("kronecker")[0])
    assert not solution.diagnostics["converged"] and solution.diagnostics["iterations"] == 2
    assert solution.diagnostics["residual"] > 1e-9


@pytest.mark.slow
def test_closed_form_in_float32_does_not_divide_by_rounding_errors():
    """Sums carry their rounding into the pull; equal clients must still give their common model."""
    rng = np.random.default_rng(0)
    theta = jnp.asarray(rng.normal(size=600), jnp.float32)
    payloads = []
    for weight in (3, 5, 9):  # three matrices of rank 13, so that 561 eigenvalues of their sum are rounding errors
        rows = jnp.asarray(rng.normal(size=(13, 600)), jnp.float32)
        fisher = Full(rows.T @ rows / 13, ((600,),), jax.tree.structure(theta))
        payloads.append(Payload(jnp.float32(weight), theta, fisher))
    rule = fedfisher(lambda p, x: x, categorical(), structure="full", solver=solve.closed_form())
    found = merge_payloads(rule, payloads).params
    assert float(jnp.linalg.norm(found - theta) / jnp.linalg.norm(theta)) < 1e-5


@pytest.mark.parametrize("seed", range(8))
def test_rounding_of_narrow_parameters_is_no_objective_below_zero(seed):
    """Weights are float64 where JAX has it, parameters float32: Q of equal clients, zero, is rounded as those are."""
    random = np.random.default_rng(seed)
    params, values = (jnp.asarray(f(size=300), jnp.float32) for f in (random.normal, random.exponential))
    rule = fisher_merge(lambda w, x: x @ w, gaussian())
    payloads = [Payload(jnp.asarray(float(n)), params, Diagonal(values)) for n in (3, 5, 7)]
    merged = merge_payloads(rule, payloads)
    assert payloads[0].weight.dtype == jnp.float64 and float(merged.diagnostics["objective_start"]) >= 0
    np.testing.assert_allclose(merged.params, params, rtol=1e-5)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "full"])
def test_parameters_without_entries_change_nothing(structure):
    def merged(**empty):
        rule = fedfisher(lambda p, x: x @ p["w"], categorical(), structure=structure)
        draw, found = np.random.default_rng(0), []
        for number in range(2):
            params = {"w": jnp.asarray(draw.normal(size=(3, 2)))} | empty
            data = examples(jnp.asarray(draw.normal(size=(5, 3))))
            found.append(rule.measure(Update(params), data, jax.random.key(number)))
        return merge_payloads(rule, found)

    got, expected = merged(e=jnp.zeros(0), f=jnp.zeros((0, 4))), merged()
    np.testing.assert_allclose(got.params["w"], expected.params["w"], rtol=1e-6)
    assert got.params["e"].shape == (0,) and got.params["f"].shape == (0, 4)
    chex.assert_trees_all_close(got.diagnostics, expected.diagnostics, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weights", [[0, 0, 0], [1.0, -1.0, 1.0], [1.0, np.inf, 1.0], [np.nan, 1.0, 1.0]])
def test_weights_of_an_objective_have_a_positive_sum(weights):
    with pytest.raises(ValueError, match="weights: got .*, expected none below zero and a positive sum"):
        solve.objective(*clients("diagonal"), jnp.asarray(weights))


def test_integer_weights_do_not_wrap():
    fishers, models = clients("diagonal")
    large = np.asarray([2_000_000_000, 2_000_000_000, 1], np.int32)
    found = solve.objective(fishers, models, large)
    expected = solve.objective(fishers, models, large.astype(float))
    chex.assert_trees_all_close(found.anchor, expected.anchor, rtol=1e-12)


@pytest.mark.parametrize("make", [lambda: solve.paper_loop(steps=20), solve.closed_form, solve.conjugate_gradients])
def test_parameters_narrower_than_fishers(make):
    """bfloat16 models with float32 Fishers, given to a solver itself; a merge widens both."""
    fishers, models = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), clients("diagonal"))
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), models)
    found = make()(solve.objective(fishers, narrow, jnp.ones(3))).params
    exact = make()(solve.objective(fishers, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow), jnp.ones(3)))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(found))
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), found), exact.params, atol=0.05)
