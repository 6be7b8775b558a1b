import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedfisher_jax._augment import crop_and_flip
from fedfisher_jax._examples import Examples
from fedfisher_jax._likelihood import categorical
from fedfisher_jax.federate._local import LocalTraining, train

RANDOM = np.random.default_rng(0)
X, Y = jnp.asarray(RANDOM.normal(size=(30, 3))), jnp.asarray(RANDOM.integers(0, 4, 30))
PARAMS = {"w": jnp.asarray(RANDOM.normal(size=(3, 4))), "b": jnp.zeros(4)}
ROWS = np.array([4, 17, 0, 29, 8, 3, 11])


def apply(params, x):
    return jnp.tanh(x @ params["w"] + params["b"])


def client(rows, padding=0):
    return Examples(X, Y, jnp.asarray([*rows, *[rows[0]] * padding], jnp.int32), jnp.asarray(len(rows)))


def run(data, optimizer=optax.adam(0.1), key=3, **options):
    options = {"epochs": 3, "batch_size": 3} | options
    training = LocalTraining(apply, categorical(), optimizer, **options)
    trained = jax.jit(lambda data, key: train(training, PARAMS, data, key))
    return trained(data, jax.random.key(key))


def assert_close(one, other, rtol=1e-10):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-13)


def by_hand(rows, optimizer, key, epochs, batch_size, augment=lambda key, x: x):
    """A Python loop over optax steps; returns the parameters, the last epoch's mean loss and all batches of rows."""
    params, state, batches, losses = PARAMS, optimizer.init(PARAMS), [], [np.nan]
    for epoch in range(epochs):
        shuffle, augmentation = jax.random.split(jax.random.fold_in(jax.random.key(key), epoch))
        order = np.asarray(rows)[np.argsort(np.asarray(jax.random.uniform(shuffle, (len(rows),), jnp.float32)))]
        losses = []
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            keys = [jax.random.fold_in(augmentation, start + offset) for offset in range(len(batch))]
            x = jnp.stack([augment(k, X[row]) for k, row in zip(keys, batch, strict=True)])

            def loss(p, x=x, y=Y[batch]):
                return -jnp.mean(jax.nn.log_softmax(apply(p, x))[jnp.arange(len(y)), y])

            value, slope = jax.value_and_grad(loss)(params)
            losses += [float(value)] * len(batch)
            updates, state = optimizer.update(slope, state, params)
            params = optax.apply_updates(params, updates)
            batches.append(batch)
    return params, np.mean(losses), batches


@pytest.mark.parametrize(
    ("rows", "optimizer", "batch_size"),
    [
        (ROWS, optax.sgd(0.2, momentum=0.9), 3),  # 3 + 3 + 1
        (ROWS, optax.adam(0.1), 7),
        (ROWS[:2], optax.adam(0.1), 64),  # fewer than a batch
        (ROWS[:1], optax.sgd(0.5), 4),  # one example
    ],
)
def test_equals_a_loop_of_optax_steps(rows, optimizer, batch_size):
    params, loss, batches = by_hand(rows, optimizer, 3, 3, batch_size)
    found = run(client(rows), optimizer, batch_size=batch_size)
    assert_close(found.params, params)
    assert float(found.loss) == pytest.approx(loss, rel=1e-10)
    epochs = np.concatenate(batches).reshape(3, -1)
    np.testing.assert_array_equal(np.sort(epochs), np.sort(rows)[None].repeat(3, 0))  # without replacement


def test_epochs_are_shuffled_differently():
    _, _, batches = by_hand(np.arange(30), optax.sgd(0.1), 3, 2, 30)
    assert (batches[0] != batches[1]).any()


def test_examples_are_augmented_with_keys_of_their_own():
    def augment(key, x):
        return x + jax.random.normal(key, x.shape)

    params, _, _ = by_hand(ROWS, optax.sgd(0.2), 3, 3, 3, augment)
    assert_close(run(client(ROWS), optax.sgd(0.2), augment=augment).params, params)


@pytest.mark.parametrize("padding", [1, 20])
def test_padding_changes_nothing(padding):
    options = {"augment": lambda key, x: x + jax.random.normal(key, x.shape)}
    assert_close(run(client(ROWS, padding), **options), run(client(ROWS), **options))


def test_clients_in_one_program_equal_one_by_one():
    parts = [ROWS, ROWS[:1], ROWS[2:4], ROWS[::-1]]
    longest = max(map(len, parts))
    padded = [client(part, longest - len(part)) for part in parts]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[data[2:] for data in padded])
    keys = jax.random.split(jax.random.key(1), len(parts))

    def one(data, key):
        return train(LocalTraining(apply, categorical(), optax.adam(0.1), 3, 3), PARAMS, data, key)

    together = jax.jit(jax.vmap(one, (Examples(None, None, 0, 0), 0)))(Examples(X, Y, *stacked), keys)
    alone = jax.jit(one)
    for number, part in enumerate(parts):
        expected = alone(client(part), keys[number])
        assert_close(jax.tree.map(lambda leaf, n=number: leaf[n], together), expected)


def test_no_epoch_returns_the_start():
    found = run(client(ROWS), epochs=0)
    assert_close(found.params, PARAMS, rtol=0)
    assert np.isnan(found.loss)


def test_epochs_may_differ_between_clients():
    def one(epochs):
        data, key = client(ROWS), jax.random.key(3)
        return train(LocalTraining(apply, categorical(), optax.adam(0.1), epochs, 3), PARAMS, data, key)

    together = jax.jit(jax.vmap(one))(jnp.array([1, 4]))
    for number, epochs in enumerate([1, 4]):
        expected = run(client(ROWS), epochs=epochs)
        assert_close(jax.tree.map(lambda leaf, n=number: leaf[n], together), expected)


def test_keys_matter_and_nothing_else_is_random():
    assert_close(run(client(ROWS)), run(client(ROWS)), rtol=0)
    assert float(jnp.abs(run(client(ROWS), key=4).params["w"] - run(client(ROWS)).params["w"]).max()) > 1e-4


def test_every_epoch_is_told():
    told = []
    result = run(client(ROWS), epochs=5, on_epoch=lambda: told.append(1))
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert len(told) == 5


IMAGE = jnp.asarray(RANDOM.uniform(1, 2, (6, 5, 3)))


def test_crop_and_flip_is_one_of_the_shifts_or_its_mirror():
    padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)))
    crops = [padded[i : i + 6, j : j + 5] for i in range(5) for j in range(5)]
    allowed = np.stack([*crops, *[crop[:, ::-1] for crop in crops]]).reshape(50, -1)
    found = jax.vmap(lambda key: crop_and_flip(2)(key, IMAGE))(jax.random.split(jax.random.key(0), 1000))
    assert found.shape == (1000, 6, 5, 3)
    matches = (np.asarray(found).reshape(1000, 1, -1) == allowed).all(-1)
    assert (matches.sum(1) == 1).all()
    # Each of the 50 is drawn 20 times on average; five standard deviations are 22.
    assert (abs(matches.sum(0) - 20) < 5 * np.sqrt(1000 * 0.02 * 0.98)).all()


def test_crop_and_flip_follows_its_key():
    augment = jax.jit(crop_and_flip())
    np.testing.assert_array_equal(augment(jax.random.key(5), IMAGE), augment(jax.random.key(5), IMAGE))


def test_long_epochs_in_bfloat16_lose_nothing():
    """An epoch's mean loss and squared gradients are sums of thousands, more than bfloat16 can count to."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20_000, 3)), rng.integers(0, 4, 20_000)
    found = {}
    for dtype in (jnp.bfloat16, jnp.float32):
        data = Examples(jnp.asarray(x, dtype), jnp.asarray(y), jnp.arange(20_000), jnp.asarray(20_000))
        start = jax.tree.map(lambda leaf, t=dtype: leaf.astype(t), PARAMS)
        training = LocalTraining(apply, categorical(), optax.sgd(0.0), epochs=1, batch_size=32, squares=True)
        found[dtype] = train(training, start, data, jax.random.key(0))
    narrow, wide = found[jnp.bfloat16], found[jnp.float32]
    assert narrow.loss.dtype == jnp.float32 and narrow.squares["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(float(narrow.loss), float(wide.loss), rtol=0.01)
    for a, b in zip(jax.tree.leaves(narrow.squares), jax.tree.leaves(wide.squares), strict=True):
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=0.03)
