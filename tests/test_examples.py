import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax._examples import Examples, examples, mean_over_batches, take
from fedfisher_jax.curvature import Subspace


def _client(rows, size, seed=0):
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(20, 3)))
    return Examples(x, jnp.arange(20), jnp.asarray(rows), jnp.asarray(size))


def test_everything_is_one_client():
    x, y = np.ones((4, 2)), np.arange(10, 14)
    data = examples(x, y)
    assert int(data.size) == 4
    np.testing.assert_array_equal(data.y[data.indices], y)


def test_a_mask_leaves_the_chosen_in_order():
    data = examples(np.ones((5, 2)), np.arange(5), mask=[False, True, True, False, True])
    assert int(data.size) == 3
    np.testing.assert_array_equal(data.y[data.indices[:3]], [1, 2, 4])


def test_a_mask_may_be_traced():
    sizes = jax.vmap(lambda mask: examples(jnp.ones((3, 1)), mask=mask).size)(jnp.eye(3, dtype=bool))
    np.testing.assert_array_equal(sizes, [1, 1, 1])


@pytest.mark.parametrize(
    ("x", "y", "mask", "message"),
    [
        (np.ones((0, 3)), None, None, r"x: got an array of shape \(0, 3\), expected at least one example"),
        (np.ones(()), None, None, "x: got an array .*expected at least one example"),
        (np.ones((4, 3)), np.ones(3), None, r"y: got shape \(3,\), expected 4 targets"),
        (np.ones((4, 3)), None, np.ones(3, bool), r"mask: got shape \(3,\), expected \(4,\)"),
        (np.ones((4, 3)), None, np.zeros(4, bool), "mask: got no example, expected at least one"),
    ],
)
def test_refusals(x, y, mask, message):
    with pytest.raises(ValueError, match=message):
        examples(x, y, mask)


def test_take_masks_what_is_past_the_size():
    batch = take(_client([4, 9, 1, 0, 0], 3), 2, 4)
    np.testing.assert_array_equal(batch.mask, [True, False, False, False])
    np.testing.assert_array_equal(batch.position, [2, 3, 4, 5])
    assert int(batch.y[0]) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("padding", [0, 4])
def test_means_do_not_depend_on_batches_or_padding(batch_size, padding):
    rows = [3, 17, 5, 8, 11, 2, 0]
    data = _client(rows + [19] * padding, len(rows))

    def function(batch):
        return {"x": jnp.where(batch.mask[:, None], batch.x, 0).sum(0), "one": batch.mask.sum().astype(float)}

    found = mean_over_batches(function, data, batch_size)
    np.testing.assert_allclose(found["x"], np.asarray(data.x)[rows].mean(0), rtol=1e-12)
    assert float(found["one"]) == 1


def _slopes(data):
    return ff.fisher(lambda w, x: x @ w, ff.gaussian(), jnp.ones((3, 1)), data).values


def _low_rank(data):
    options = {"structure": "low_rank", "key": jax.random.key(0), "subspace": Subspace(2)}
    return ff.fisher(lambda w, x: x @ w, ff.gaussian(), jnp.ones((3, 1)), data, **options).diagonal()


def _trained(data):
    training = ff.LocalTraining(lambda w, x: x @ w, ff.gaussian(), optax.sgd(0.1), 2, 2)
    found = ff.train(training, jnp.ones((3, 1)), data._replace(y=data.y[:, None] / 20), jax.random.key(0))
    return found.params, found.loss


@pytest.mark.parametrize("function", [_slopes, _low_rank, _trained])
def test_a_size_may_be_a_python_integer(function):
    data = _client([3, 17, 5, 8, 0, 0], 4)
    for plain, expected in zip(*map(jax.tree.leaves, map(function, (data._replace(size=4), data))), strict=True):
        np.testing.assert_array_equal(plain, expected)


def test_padding_is_not_computed():
    """Outside of vmap the number of batches follows the size, not the padded length."""
    data = _client([1] * 12, 3)
    found = mean_over_batches(lambda batch: jnp.ones(()), data, 2)
    assert float(found) == 2 / 3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_long_sums_of_narrow_types_lose_nothing(dtype):
    """A running sum of bfloat16 ones stops at 256; one of float16 is infinite at 65,520."""
    data = examples(jnp.ones((70_000, 1), dtype))
    found = mean_over_batches(lambda batch: jnp.sum(jnp.where(batch.mask[:, None], batch.x, 0)), data, 100)
    assert float(found) == 1
