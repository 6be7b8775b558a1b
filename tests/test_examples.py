import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfisher_jax.examples import Examples, examples, pad_rows, sum_over_batches, take


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
        (np.ones((0, 3)), None, None, r"x: expected at least one example, got an array of shape \(0, 3\)"),
        (np.ones(()), None, None, "x: expected at least one example"),
        (np.ones((4, 3)), np.ones(3), None, r"y: expected 4 targets.*got shape \(3,\)"),
        (np.ones((4, 3)), None, np.ones(3, bool), r"mask: expected shape \(4,\), got \(3,\)"),
    ],
)
def test_refusals(x, y, mask, message):
    with pytest.raises(ValueError, match=message):
        examples(x, y, mask)


def test_rows_are_padded_with_their_own_first_index():
    rows, sizes = pad_rows([np.array([7, 3, 5]), np.array([2])])
    np.testing.assert_array_equal(rows, [[7, 3, 5], [2, 2, 2]])
    np.testing.assert_array_equal(sizes, [3, 1])


def test_take_masks_what_is_past_the_size():
    batch = take(_client([4, 9, 1, 0, 0], 3), 2, 4)
    np.testing.assert_array_equal(batch.mask, [True, False, False, False])
    np.testing.assert_array_equal(batch.position, [2, 3, 4, 5])
    assert int(batch.y[0]) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("padding", [0, 4])
def test_sums_do_not_depend_on_batches_or_padding(batch_size, padding):
    rows = [3, 17, 5, 8, 11, 2, 0]
    data = _client(rows + [19] * padding, len(rows))

    def function(batch):
        return {"sum": jnp.where(batch.mask[:, None], batch.x, 0).sum(0), "count": batch.mask.sum()}

    found = sum_over_batches(function, data, batch_size)
    np.testing.assert_allclose(found["sum"], np.asarray(data.x)[rows].sum(0), rtol=1e-12)
    assert int(found["count"]) == len(rows)


def test_padding_is_not_computed():
    """Outside of vmap the number of batches follows the size, not the padded length."""
    data = _client([1] * 12, 3)
    found = sum_over_batches(lambda batch: jnp.ones(()), data, 2)
    assert float(found) == 2
