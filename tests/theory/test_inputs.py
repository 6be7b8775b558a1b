import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax.theory import inputs


def test_inputs_have_norm_one_and_targets_are_bounded():
    data = inputs.gaussian(jax.random.key(0), 3, 50, 4, dtype=jnp.float64)
    np.testing.assert_allclose(jnp.linalg.norm(data.x, axis=-1), 1, rtol=1e-12)
    assert float(jnp.abs(data.y).max()) == 1
    assert float(data.weights.sum()) == pytest.approx(1)
    assert float(jnp.linalg.norm(inputs.unit(jnp.zeros(3)))) == 0


def test_shift_separates_the_clients():
    def overlap(shift):
        x = inputs.gaussian(jax.random.key(0), 2, 200, 4, shift).x
        centre = x.mean(axis=1)
        return float(jnp.linalg.norm(centre, axis=1).min())

    assert overlap(0.0) < 0.2 < overlap(1.0) < overlap(8.0)
    assert overlap(8.0) > 0.95


def test_images_are_two_classes_without_repetition():
    x = np.arange(60, dtype=np.float64).reshape(20, 3) + 1
    y = np.arange(20) % 4
    data = inputs.images(jax.random.key(0), x, y, (1, 3), 2, 5)
    assert data.x.shape == (2, 5, 3)
    units = np.asarray(inputs.unit(jnp.asarray(x)))
    index = [int(np.argmin(np.abs(units - row).sum(axis=1))) for row in np.asarray(data.x).reshape(10, 3)]
    assert len(set(index)) == 10
    np.testing.assert_array_equal(data.y.reshape(-1), np.where(y[index] == 3, 1, -1))
    with pytest.raises(ValueError, match="10"):
        inputs.images(jax.random.key(0), x, y, (1, 3), 3, 5)


def test_teacher_is_linear_plus_noise():
    clean, noisy = (inputs.teacher(jax.random.key(0), 2, 100, 3, noise, jnp.float64) for noise in (0.0, 0.5))
    x, y = clean.x.reshape(-1, 3), clean.y.reshape(-1)
    v, residual, *_ = np.linalg.lstsq(np.asarray(x), np.asarray(y))
    assert float(residual[0]) < 1e-20
    assert np.linalg.norm(v) == pytest.approx(3**0.5)
    assert float(jnp.std(noisy.y - clean.y)) == pytest.approx(0.5, rel=0.15)
