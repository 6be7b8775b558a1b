import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.fedfish import toy


@pytest.mark.parametrize("overlap", [0.0, 0.4, 1.0])
def test_clients_see_their_own_ranges(overlap):
    x, y = toy.two_clients(jax.random.key(0), jnp.asarray(overlap))
    a, b = np.split(np.asarray(x)[:, 0], 2)
    for seen, low, high in ((a, -1, overlap), (b, -overlap, 1)):
        assert low <= seen.min() < low + 0.1 and high - 0.1 < seen.max() <= high
    residual = np.asarray(y - toy.function(x))
    assert abs(residual.mean()) < 4 * toy.NOISE / len(x) ** 0.5 and 0.8 < residual.std() / toy.NOISE < 1.2


def test_errors_are_distances_over_each_range():
    """Without training every client and every merge is the start, whose error is computed again here."""
    overlap, grid = 0.25, np.linspace(-1, 1, toy.GRID)
    for method in ("average", "fedfish-squares"):
        found = toy.run("relu, one layer", overlap, method, num_rounds=2, epochs=0, learning_rate=0.1, seed=3, seeds=2)
        np.testing.assert_allclose(found["alone"], np.stack([found["merged"]] * 2), atol=1e-6)
        squares = (found["merged"] - np.asarray(toy.function(grid))) ** 2
        for error, inside in (("error_a", grid <= overlap), ("error_b", grid >= -overlap)):
            assert found[error].shape == (2, 2)
            np.testing.assert_allclose(found[error][0], squares[inside].mean(), rtol=1e-4)
