from functools import partial

import explicit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax import lax
from rows import pad_rows

import fedfisher_jax as ff
from fedfisher_jax.curvature import trace

N = 5
NETWORK = {"a": zoo.normal(0, 4, 6), "b": zoo.normal(1, 6), "c": zoo.normal(2, 6, 3), "scale": 1 + zoo.normal(3, 3)}
X = zoo.normal(4, N, 4) * 2
CLASSES = jnp.array([0, 2, 1, 1, 0])
LIKELIHOODS = {
    "categorical": (ff.categorical(), CLASSES),
    "gaussian": (ff.gaussian(0.5), zoo.normal(5, N, 3)),
    "bernoulli": (ff.bernoulli(), jnp.array(np.random.default_rng(0).integers(0, 2, (N, 3)))),
}


def apply(params, x):
    """Two layers, of which one has a bias, and a leaf that is none."""
    return (jnp.tanh(x @ params["a"] + params["b"]) @ params["c"]) * params["scale"]


CAPTURED = ff.capture(apply, NETWORK, X)
EVERY = ("diagonal", "kronecker", "full")


@partial(jax.jit, static_argnames=("likelihood", "structures", "kind", "samples", "batch_size", "skip"))
def run(params, data, key=None, *, likelihood=ff.categorical(), structures=EVERY, **options):
    return ff.fishers(apply, likelihood, params, data, structures=structures, key=key, captured=CAPTURED, **options)


def measure(structures=EVERY, x=X, y=CLASSES, **options):
    return run(NETWORK, ff.examples(x, y), structures=structures, **options)


def assert_close(one, other, rtol=1e-10):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-14)


# Exact, empirical, Monte-Carlo.


@pytest.mark.slow
@pytest.mark.parametrize("skip", [1e-12, 0.1, 0.3])
def test_skipped_columns_lower_the_exact_fisher_within_the_bound(skip):
    likelihood = ff.categorical()
    exact, found = measure(), measure(skip=skip, batch_size=2)
    assert_close(found["kronecker"].inputs, exact["kronecker"].inputs)
    lost = np.asarray(exact["full"].to_dense() - found["full"].to_dense())
    assert np.linalg.eigvalsh(lost).min() > -1e-12
    np.testing.assert_allclose(explicit.flat(found["diagonal"].values), np.diag(found["full"].to_dense()), rtol=1e-9)
    # By brute force: the most columns that may go.
    jacobian = jax.jacobian(lambda p: apply(p, X))(NETWORK)
    factors = np.asarray(jax.vmap(likelihood.fisher_factor)(apply(NETWORK, X)))
    weights = (factors**2).sum(-1).ravel()
    order = np.argsort(weights)
    gone = order[np.cumsum(weights[order]) <= skip * weights.sum()]
    flat = np.concatenate([np.asarray(leaf).reshape(N, 3, -1) for leaf in jax.tree.leaves(jacobian)], -1)
    columns = np.einsum("nkc,ncp->nkp", factors, flat).reshape(N * 3, -1)[gone]
    np.testing.assert_allclose(lost, columns.T @ columns / N, rtol=1e-8, atol=1e-12)
    assert (len(gone) > 0) == (skip > 1e-3)


def test_skipping_does_not_feel_padding_and_needs_exact():
    row, padded = jnp.arange(3), jnp.array([0, 1, 2, 4, 4, 4, 4])
    short = run(NETWORK, ff.Examples(X, CLASSES, row, jnp.asarray(3)), skip=0.1)
    assert_close(run(NETWORK, ff.Examples(X, CLASSES, padded, jnp.asarray(3)), skip=0.1), short)
    for wrong in ({"skip": 0.1, "kind": "empirical"}, {"skip": 1.0}, {"skip": -0.1}):
        with pytest.raises(ValueError, match="skip"):
            measure(**wrong)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_exact_is_the_explicit_matrix(name):
    likelihood, y = LIKELIHOODS[name]
    found = measure(likelihood=likelihood, y=y, batch_size=2)
    expected = np.asarray(explicit.fisher(apply, likelihood, NETWORK, X, y))
    np.testing.assert_allclose(found["full"].to_dense(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(explicit.flat(found["diagonal"].values), np.diag(expected), rtol=1e-9)
    np.testing.assert_allclose(explicit.flat(found["full"].diagonal()), np.diag(expected), rtol=1e-9)


def test_exact_does_not_look_at_targets():
    assert_close(measure(y=CLASSES), measure(y=CLASSES[::-1]), rtol=0)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_empirical_is_the_mean_square_of_gradients(name):
    likelihood, y = LIKELIHOODS[name]
    found = measure(likelihood=likelihood, y=y, kind="empirical", batch_size=2)
    each = np.asarray(explicit.gradients(apply, likelihood, NETWORK, X, y))
    np.testing.assert_allclose(found["full"].to_dense(), each.T @ each / N, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(explicit.flat(found["diagonal"].values), (each**2).mean(0), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_monte_carlo_converges_to_exact(name):
    """The mean of 400 independent estimates lies within five of its standard errors, for every entry."""
    likelihood, y = LIKELIHOODS[name]

    def one(key):
        return measure(("diagonal", "full"), likelihood=likelihood, y=y, kind="monte_carlo", key=key, samples=2)

    found = jax.vmap(one)(jax.random.split(jax.random.key(0), 400))
    exact = measure(likelihood=likelihood, y=y)["full"].to_dense()
    draws = np.asarray(found["full"].matrix)
    error = draws.std(0) / 20
    assert (abs(draws.mean(0) - exact) <= 5 * error + 1e-12).all()
    assert (abs(1.1 * draws.mean(0) - exact) > 5 * error).any()  # ten per cent too much would show
    diagonals = np.stack([np.diag(draw) for draw in draws])
    each = [leaf.reshape(400, -1) for leaf in jax.tree.leaves(found["diagonal"].values)]
    np.testing.assert_allclose(np.concatenate(each, 1), diagonals, rtol=1e-9, atol=1e-14)


def test_more_samples_vary_less():
    def spread(samples):
        def one(key):
            return trace(measure(("diagonal",), kind="monte_carlo", key=key, samples=samples)["diagonal"])

        return np.var(jax.vmap(one)(jax.random.split(jax.random.key(1), 400)))

    # A variance from 400 draws has a relative standard error of about 2·√(2/400) in their ratio of 16.
    assert 16 / 2 < spread(1) / spread(16) < 16 * 2


def test_monte_carlo_keys_follow_the_place_of_an_example():
    """Not the batch size, and not padding."""
    options = {"kind": "monte_carlo", "key": jax.random.key(3), "samples": 2}
    expected = measure(**options)
    assert_close(measure(batch_size=2, **options), expected)
    padded = ff.Examples(X, CLASSES, jnp.array([0, 1, 2, 3, 4, 0, 0, 0]), jnp.asarray(N))
    assert_close(run(NETWORK, padded, **options), expected)
    other = measure(**options | {"key": jax.random.key(4)})
    assert abs(float(trace(other["diagonal"]) / trace(expected["diagonal"])) - 1) > 1e-3


# Examples.


def test_masks_padding_and_batches_change_nothing():
    rows = np.array([3, 0, 4])
    expected = measure(x=X[rows], y=CLASSES[rows], kind="empirical")
    assert_close(run(NETWORK, ff.examples(X, CLASSES, mask=np.isin(np.arange(N), rows)), kind="empirical"), expected)
    for batch_size in (1, 2, 4):
        padded = ff.Examples(X, CLASSES, jnp.array([3, 0, 4, 1, 1]), jnp.asarray(3))
        assert_close(run(NETWORK, padded, kind="empirical", batch_size=batch_size), expected)


def test_padding_may_hold_anything():
    """Rows past the size that are not even finite."""
    x = X.at[1].set(jnp.nan)
    padded = ff.Examples(x, CLASSES, jnp.array([3, 0, 1, 1]), jnp.asarray(2))
    assert_close(run(NETWORK, padded), measure(x=X[jnp.array([3, 0])], y=CLASSES[jnp.array([3, 0])]))


def test_the_mean_over_examples_is_the_mean_of_their_fishers():
    parts = [measure(x=X[i : i + 1], y=CLASSES[i : i + 1]) for i in range(N)]
    whole = measure()
    for structure in ("diagonal", "full"):
        mean = jax.tree.map(lambda *leaves: sum(leaves) / N, *[part[structure] for part in parts])
        assert_close(whole[structure], mean)


def test_clients_in_one_program_equal_one_by_one():
    rows, sizes = map(jnp.asarray, pad_rows([np.array([4]), np.array([0, 1, 2]), np.array([3, 1])]))
    models = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.5 * leaf, -leaf]), NETWORK)
    keys = jax.random.split(jax.random.key(0), 3)

    def one(params, data, key):
        return run(params, data, key, kind="monte_carlo", batch_size=2)

    axes = (0, ff.Examples(None, None, 0, 0), 0)
    together = jax.vmap(one, axes)(models, ff.Examples(X, CLASSES, rows, sizes), keys)
    for i in range(3):
        params, result = jax.tree.map(lambda leaf, i=i: leaf[i], (models, together))
        assert_close(result, one(params, ff.Examples(X, CLASSES, rows[i], sizes[i]), keys[i]), rtol=1e-9)


def test_sequences_sum_over_their_positions():
    """Outputs [T, C] are T·C outputs of one example."""

    def positions(params, x):
        return jnp.tanh(x @ params["a"] + params["b"]) @ params["c"]

    params = {name: NETWORK[name] for name in "abc"}
    x, y = zoo.normal(6, 3, 5, 4), jnp.asarray(np.random.default_rng(1).integers(0, 3, (3, 5)))
    found = ff.fishers(positions, ff.categorical(), params, ff.examples(x, y), structures=("diagonal", "full"))
    flattened = ff.fishers(
        positions, ff.categorical(), params, ff.examples(x.reshape(15, 4)), structures=("diagonal", "full")
    )
    assert_close(found, jax.tree.map(lambda leaf: 5 * leaf, flattened), rtol=1e-9)


# Kronecker factors.


def kronecker_and_full(function, params, x, y=None, likelihood=ff.categorical(), **options):
    found = ff.fishers(
        function, likelihood, params, ff.examples(x, y), structures=("diagonal", "kronecker", "full"), **options
    )
    return np.asarray(found["kronecker"].to_dense()), np.asarray(found["full"].to_dense()), found["kronecker"]


ONE_POSITION = {  # convolutions whose output is one pixel
    "padded": ((3, 2, 2, 3), (1, 2, 1, 2), {"padding": ((1, 0), (0, 1))}),
    "dilated": ((2, 2, 1, 3), (1, 3, 4, 1), {"rhs_dilation": (2, 3)}),
    "grouped": ((2, 2, 2, 6), (1, 2, 2, 4), {"feature_group_count": 2}),
}


def _one_pixel(name):
    kernel, shape, options = ONE_POSITION[name]
    return zoo.convolution(kernel, shape, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ONE_POSITION, "transposed_and_einsum_weights"])
def test_one_example_and_one_position_is_exact(name):
    """One activation vector per layer: each block is its outer product times the mean of the gradients'."""
    model = _one_pixel(name) if name in ONE_POSITION else zoo.CASES[name]()
    found, full, fisher = kronecker_and_full(model.apply, model.params, model.x[:1])
    expected = explicit.block_diagonal(full, fisher, model.params)
    if name == "grouped":  # blocks of groups, not of the layer, are exact: others are left out
        expected = np.where(found != 0, expected, 0)
        assert (expected != 0).sum() > 100
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_deep_linear_networks_with_gaussian_outputs_are_exact():
    """Gradients do not depend on the example, so the mean of products is the product of means (1905.10961)."""
    params = [zoo.normal(0, 4, 5), zoo.normal(1, 5, 5), zoo.normal(2, 5, 2)]
    found, full, fisher = kronecker_and_full(
        lambda p, x: x @ p[0] @ p[1] @ p[2], params, X, zoo.normal(5, N, 2), ff.gaussian()
    )
    np.testing.assert_allclose(found, explicit.block_diagonal(full, fisher, params), rtol=1e-9, atol=1e-12)


def test_the_last_layer_is_exact_for_gaussian_outputs():
    params = [zoo.normal(0, 4, 5), zoo.normal(1, 5, 2), zoo.normal(2, 2)]

    def function(p, x):
        return jnp.tanh(x @ p[0]) @ p[1] + p[2]

    found, full, _ = kronecker_and_full(function, params, X, zoo.normal(5, N, 2), ff.gaussian())
    last = slice(20, None)
    np.testing.assert_allclose(found[last, last], full[last, last], rtol=1e-9, atol=1e-12)
    first = slice(0, 20)
    assert np.linalg.norm(found[first, first] - full[first, first]) > 1e-2 * np.linalg.norm(full)  # not so the first


def test_every_layer_is_exact_where_all_examples_are_one():
    """n copies of one input: activations and gradients are constant."""
    found, full, fisher = kronecker_and_full(apply, NETWORK, jnp.tile(X[:1], (4, 1)))
    expected = explicit.block_diagonal(full, fisher, NETWORK)
    layers = slice(0, -3)  # the last three are the leaf that is no layer
    np.testing.assert_allclose(found[layers, layers], expected[layers, layers], rtol=1e-8, atol=1e-12)


def test_leaves_that_are_no_layers_keep_their_diagonal():
    found = measure()["kronecker"]
    position = sorted(NETWORK).index("scale")
    assert set(found.rest) == {position}
    expected = np.diag(explicit.fisher(apply, ff.categorical(), NETWORK, X, CLASSES))[-3:]
    np.testing.assert_allclose(found.rest[position], expected, rtol=1e-9)
    dense = np.asarray(found.to_dense())
    np.testing.assert_allclose(dense[-3:, -3:], np.diag(expected), rtol=1e-9)
    assert not dense[:-3, -3:].any()


def test_conventions_of_convolutions():
    """A sums over positions and G averages over them, offsets before channels, the bias last (1602.01407)."""
    model = zoo.convolution((2, 2, 2, 3), (N, 4, 3, 2))
    factors = ff.fisher(model.apply, ff.categorical(), model.params, ff.examples(model.x), structure="kronecker")
    x, kernel = np.asarray(model.x), model.params["k"]
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(1, 2))  # n, h, w, channel, kh, kw
    rows = np.concatenate([windows.transpose(0, 1, 2, 4, 5, 3).reshape(N, 6, 8), np.ones((N, 6, 1))], -1)
    np.testing.assert_allclose(factors.inputs[0], np.einsum("nti,ntj->ij", rows, rows) / N, rtol=1e-10)

    def from_output(y):  # y: the convolution's output [n, h, w, o]
        return jnp.tanh(y).reshape(len(y), -1) @ model.params["w"]

    y = lax.conv_general_dilated(model.x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    g = np.zeros((3, 3))
    for one in y + model.params["b"]:
        outputs, vjp = jax.vjp(lambda out: from_output(out[None])[0], one)
        p = np.asarray(jax.nn.softmax(outputs))
        for c in range(len(p)):
            rows = np.asarray(vjp(jnp.asarray(p - np.eye(len(p))[c]))[0]).reshape(6, 3)  # of −log p_c
            g += p[c] * rows.T @ rows / 6 / N
    np.testing.assert_allclose(factors.outputs[0], g, rtol=1e-10)


@pytest.mark.parametrize("kind", ["exact", "monte_carlo", "empirical"])
def test_everything_is_positive_semi_definite(kind):
    found = measure(kind=kind, key=jax.random.key(0))
    for fisher in found.values():
        matrix = np.asarray(fisher.to_dense())
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-14)
        values = np.linalg.eigvalsh(matrix)
        assert values[0] > -1e-12 * values[-1] and values[-1] > 0


# The face.


def test_structures_do_not_depend_on_which_others_are_asked_for():
    together = measure()
    for structure, expected in together.items():
        assert_close(measure((structure,))[structure], expected)
    alone = ff.fisher(apply, ff.categorical(), NETWORK, ff.examples(X, CLASSES), structure="kronecker")
    assert_close(alone, together["kronecker"])


def test_a_capture_can_be_handed_in():
    captured = ff.capture(apply, NETWORK, X, structured=False)
    found = ff.fishers(apply, ff.categorical(), NETWORK, ff.examples(X), captured=captured)
    assert_close(found["diagonal"], measure()["diagonal"], rtol=1e-9)
    assert set(found["kronecker"].rest) == {0, 1, 2, 3} and not found["kronecker"].layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structures": ("diag",)}, "structure.*'diag'.*diagonal, full, kronecker"),
        ({"kind": "true"}, "kind: got 'true', expected one of exact, monte_carlo, empirical"),
        ({"kind": "monte_carlo"}, "key: got None, expected a random key, since monte_carlo draws targets"),
        ({"kind": "monte_carlo", "key": jax.random.key(0), "samples": 0}, "samples: got 0, expected at least 1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        measure(**options)


def test_a_full_fisher_of_a_large_model_is_refused_before_any_work():
    params = {"w": jax.ShapeDtypeStruct((200, 200), jnp.float32)}
    with pytest.raises(ValueError, match="structure: got a full Fisher of 40000 parameters.*at most 20000"):
        ff.fisher(lambda p, x: x @ p["w"], ff.gaussian(), params, ff.examples(np.ones((2, 200))), structure="full")


def test_many_examples_of_a_bfloat16_layer():
    """The bias' entry of A is one, however many there are: a running sum in bfloat16 stops at 256 times a batch."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20_000, 5)), jnp.float32)
    params = {"b": jnp.zeros(3, jnp.float32), "w": jnp.ones((5, 3), jnp.float32)}
    found = {}
    for dtype in (jnp.bfloat16, jnp.float32):

        def apply(p, x, t=dtype):
            return (x.astype(t) @ p["w"].astype(t) + p["b"].astype(t)).astype(jnp.float32)

        options = {"structures": ("diagonal", "kronecker", "full"), "batch_size": 64}
        found[dtype] = ff.curvature.fishers(apply, ff.gaussian(), params, ff.examples(x), **options)
    narrow, wide = found[jnp.bfloat16], found[jnp.float32]
    assert narrow["kronecker"].inputs[0].dtype == jnp.float32
    np.testing.assert_allclose(narrow["kronecker"].inputs[0][-1, -1], 1, rtol=1e-6)
    for name in wide:
        for a, b in zip(jax.tree.leaves(narrow[name]), jax.tree.leaves(wide[name]), strict=True):
            np.testing.assert_allclose(a, b, atol=0.01)
