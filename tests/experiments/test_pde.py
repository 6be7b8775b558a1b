"""Physics-informed residuals as a Gaussian likelihood, and the scripts of fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedfisher_jax as ff
from experiments.fipa import equations, fields, pde, regression, tuned
from fedfisher_jax.curvature import Subspace, fisher, top_eigenpairs


def one_layer(v, x):
    """A network with one hidden layer, its first two derivatives in x by hand; v = (w, b, c, b₂)."""
    w, b, c = v[:4], v[4:8], v[8:12]
    h = jnp.tanh(x * w + b)
    slope = 1 - h**2
    return c @ h + v[12], c @ (slope * w), c @ (-2 * h * slope * w**2)


def parameters_of(v):
    return [{"w": v[None, :4], "b": v[4:8]}, {"w": v[8:12, None], "b": v[12:]}]


VECTOR = jnp.asarray(np.random.default_rng(0).normal(size=13))
ORDER = np.r_[4:8, 0:4, 12, 8:12]  # of `ravel_pytree`: b before w


def poisson_by_hand(v, row):
    u, _, curved = one_layer(v, row[0])
    source = -(np.pi**2) * jnp.sin(np.pi * row[0]) - 0.2 * 16 * np.pi**2 * jnp.sin(4 * np.pi * row[0])
    return equations.BOUNDARY * u if row[1] > 0 else (curved - source) / np.pi**2


ROWS = np.array([[-0.9, 0], [-0.2, 0], [0.3, 0], [0.77, 0], [-1, 1], [1, 1], [0.1, 0]])


def gauss_newton():
    """(1/n) Σ r'(v) r'(v)ᵀ of the residuals by hand."""
    rows = [jax.grad(lambda v, row=row: poisson_by_hand(v, row))(VECTOR) for row in ROWS]
    jacobian = np.asarray(jnp.stack(rows))[:, ORDER]
    return jacobian.T @ jacobian / len(ROWS)


def test_a_residual_is_what_the_equation_says():
    found = equations.poisson_residual(parameters_of(VECTOR), jnp.asarray(ROWS))[:, 0]
    np.testing.assert_allclose(found, [poisson_by_hand(VECTOR, row) for row in ROWS], rtol=1e-10)


def test_the_fisher_of_a_residual_is_gauss_newton():
    params, data = parameters_of(VECTOR), ff.examples(ROWS, np.zeros((len(ROWS), 1)))
    expected = gauss_newton()
    full = fisher(equations.poisson_residual, ff.gaussian(), params, data, structure="full").to_dense()
    np.testing.assert_allclose(full, expected, rtol=0, atol=1e-10 * expected.max())


def test_the_top_eigenpairs_of_a_residual_are_those_of_gauss_newton():
    params, data = parameters_of(VECTOR), ff.examples(ROWS, np.zeros((len(ROWS), 1)))
    effort = Subspace(rank=4, oversampling=6, power_steps=2)
    pairs = top_eigenpairs(equations.poisson_residual, ff.gaussian(), params, data, jax.random.key(0), subspace=effort)
    sizes, turn = np.linalg.eigh(gauss_newton())
    np.testing.assert_allclose(pairs.fisher.values, sizes[::-1][:4], rtol=1e-8)
    top = turn[:, ::-1][:, :4]
    expected = top * sizes[::-1][:4] @ top.T
    np.testing.assert_allclose(pairs.fisher.to_dense(), expected, rtol=0, atol=1e-7 * expected.max())


def test_allen_cahn_residual_by_finite_differences():
    params = fields.init((2, 5, 1), jax.random.key(1))
    points, h = np.array([[-0.7, 0.2], [0.1, 0.9], [0.5, 0.5]]), 1e-4

    def u(dx, dt):
        return np.asarray(equations.allen_cahn_solution(params, jnp.asarray(points + [dx, dt])))[:, 0]

    curved, slope = (u(h, 0) - 2 * u(0, 0) + u(-h, 0)) / h**2, (u(0, h) - u(0, -h)) / (2 * h)
    expected = slope - 1e-3 * curved - 5 * (u(0, 0) - u(0, 0) ** 3)
    np.testing.assert_allclose(equations.allen_cahn_residual(params, jnp.asarray(points))[:, 0], expected, atol=1e-6)
    edges = jnp.asarray([[-1.0, 0.3], [1.0, 0.8], [0.4, 0.0]])
    start = 0.4**2 * np.cos(0.4 * np.pi)
    np.testing.assert_allclose(equations.allen_cahn_solution(params, edges)[:, 0], [-1, -1, start], atol=1e-12)


def test_reference_solutions_converge():
    """Halving the step divides the error by four; extrapolated, by about sixteen."""
    exact = lambda n: np.sin(np.pi * np.linspace(-1, 1, n + 1)) + 0.2 * np.sin(4 * np.pi * np.linspace(-1, 1, n + 1))  # noqa: E731
    errors = [np.abs(equations.poisson_reference(n) - exact(n)).max() for n in (200, 400)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.02)
    assert np.abs(equations.poisson_truth() - exact(equations.POINTS - 1)).max() < 1e-8
    times = np.linspace(0, 1, 3)
    runs = [equations.allen_cahn_reference(n, times)[:, :: n // 200] for n in (400, 800, 1600)]
    gaps = [np.abs(b - a).max() for a, b in zip(runs[:-1], runs[1:], strict=True)]
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.1)
    assert gaps[1] < 1e-3


def test_the_residual_of_two_dimensions_by_finite_differences():
    params, h = fields.init((2, 5, 1), jax.random.key(1)), 1e-3
    points = np.array([[-0.7, 0.2], [0.1, 0.9], [0.5, -0.5]])

    def u(function, dx, dy):
        return np.asarray(function(jnp.asarray(points + [dx, dy])))[:, 0]

    def curved(function):
        ends = sum(u(function, *end) for end in ((h, 0), (-h, 0), (0, h), (0, -h)))
        return (ends - 4 * u(function, 0, 0)) / h**2

    source = curved(equations.plane_truth)
    expected = (curved(lambda at: equations.plane_solution(params, at)) - source) / np.pi**2
    np.testing.assert_allclose(equations.plane_residual(params, jnp.asarray(points))[:, 0], expected, atol=1e-4)
    edges = jnp.asarray([[-1.0, 0.3], [1.0, 0.8], [0.4, -1.0], [0.4, 1.0]])
    for function in (equations.plane_truth, lambda at: equations.plane_solution(params, at)):
        np.testing.assert_allclose(function(edges)[:, 0], 0, atol=1e-12)


def test_strips_of_a_square_are_dealt_and_pooled():
    """A client has every fourth strip; each cell of the square has one point."""
    places = equations.dealt("poisson, two dimensions", 4, 3)
    x, _ = equations.draw_plane(4 * 144, jax.random.key(0))
    strips = np.floor((np.asarray(x[:, 0]) + 1) / 2 * 12).astype(int)
    assert [sorted(set(strips[row])) for row in places] == [[n, n + 4, n + 8] for n in range(4)]
    assert len(set(map(tuple, np.floor((np.asarray(x) + 1) * 12).astype(int)))) == 576
    np.testing.assert_array_equal(np.unique(equations.dealt("poisson", 4, 2)), np.arange(162))


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_pieces_are_dealt_round_robin(pieces):
    places = fields.deal(24, 3, pieces)
    owner = np.empty(24, int)
    for number, row in enumerate(places):
        owner[row] = number
    np.testing.assert_array_equal(owner, np.repeat(np.tile(np.arange(3), pieces), 24 // (3 * pieces)))
    with pytest.raises(ValueError, match="pieces"):
        fields.deal(24, 3, 5)


@pytest.mark.slow
def test_methods_share_the_warm_up_and_count_their_bits():
    """FIPA's first rounds are FedAvg's, number by number; then they part. d + r (d + 1) numbers a round."""
    settings = {"seeds": 2, "rounds": 3, "warm_up": 2, "epochs": 1, "width": 3, "clients": 2}
    plain = pde.run("poisson", "fedavg", 1, settings)
    found = pde.run("poisson", "fipa-5", 1, settings)
    assert plain["error"].shape == (2, 4)
    np.testing.assert_allclose(found["error"][:, :3], plain["error"][:, :3], rtol=1e-9)
    assert np.abs(found["error"][:, 3] - plain["error"][:, 3]).min() > 1e-6
    d = (1 + 1) * 3 + (3 + 1) * 3 + 3 + 1
    assert found["parameters"] == d
    np.testing.assert_array_equal(plain["bits"], 32 * d * np.arange(4))
    np.testing.assert_array_equal(found["bits"], 32 * np.array([0, d, 2 * d, 3 * d + 5 * (d + 1)]))


@pytest.mark.slow
def test_regression_run():
    settings = {"seeds": 2, "rounds": 2, "warm_up": 1, "epochs": 0, "width": 3, "clients": 2}
    found = regression.run("fedavg", 1, settings)
    grid = np.linspace(-1, 1, regression.POINTS)
    truth = np.sin(3 * grid) + 0.3 * np.cos(9 * grid)
    key = jax.random.split(jax.random.key(0), 3)[1]
    values = np.asarray(fields.network(fields.init((1, 3, 3, 1), key), grid[:, None]))[:, 0]
    expected = np.linalg.norm(values - truth) / np.linalg.norm(truth)
    np.testing.assert_allclose(found["error"][0], expected, rtol=1e-6)  # nobody trains, so nothing moves


def test_a_setting_is_chosen_by_the_geometric_mean_of_all_pieces():
    tried = tuned.candidates(tuned.Settings(rates=(1.0, 2.0), taus=(0.1, 0.2)), "fipa-5-clipped", 7)
    assert [(one["learning_rate"], one["tau"], one["seed"]) for one in tried] == [
        (1.0, 0.1, 7), (1.0, 0.2, 7), (2.0, 0.1, 7), (2.0, 0.2, 7)
    ]  # fmt: skip
    assert len(tuned.candidates(tuned.Settings(), "fedavg", 7)) == 3
    errors = {0: (0.1, 0.1, 8.0), 1: (0.2, 0.2, 0.2), 2: (0.3, 0.3, 0.3), 3: (0.01, 0.01, np.nan)}
    records = [
        {
            "settings": {"problem": "poisson", "method": "fipa-5-clipped", "pieces": pieces, "settings": tried[number]},
            "result": {"error": [[1.0, error]]},
        }
        for number, several in errors.items()
        for pieces, error in zip((1, 2, 4), several, strict=True)
    ]
    assert tuned.best(records, "poisson", "fipa-5-clipped", tried) == tried[1]
