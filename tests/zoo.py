"""Models of every kind that a user may bring, and what the capture of layers must make of each.

`CASES[name]()` gives a case; `fallback` holds a pattern of the reason for every leaf that must not be captured.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax


class Case(NamedTuple):
    apply: Callable
    params: Any
    x: Any
    fallback: dict[str, str] = {}


CASES: dict[str, Callable[[], Case]] = {}


def case(function):
    CASES[function.__name__] = cache(function)
    return function


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape) / np.sqrt(max(shape[0], 1)))


def linen(module, *shape, fallback=None, seed=0):
    x = normal(seed, *shape)
    shapes = jax.eval_shape(module.init, jax.random.key(seed), x)
    params = jax.tree.map(lambda leaf: normal(seed + 1, *leaf.shape), shapes)
    return Case(module.apply, params, x, fallback or {})


# Plainly captured.


@case
def linen_dense():
    return linen(nn.Sequential([nn.Dense(5), nn.tanh, nn.Dense(3)]), 4, 6)


@case
def linen_convolution():
    layers = [nn.Conv(3, (3, 3)), nn.relu, lambda x: nn.max_pool(x, (2, 2), (2, 2)), nn.Conv(4, (2, 2), use_bias=False)]
    return linen(nn.Sequential([*layers, lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)]), 3, 6, 6, 2)


@case
def linen_dense_general():
    return linen(nn.Sequential([nn.DenseGeneral((2, 3)), nn.tanh, nn.DenseGeneral((4,), axis=(-2, -1))]), 3, 5, seed=3)


@case
def linen_jit_and_remat():
    return linen(nn.Sequential([nn.jit(nn.Dense)(4), nn.tanh, nn.remat(nn.Dense)(3)]), 4, 5)


@case
def nnx_split():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 2, (2, 2), rngs=rngs, param_dtype=jnp.float64)
            self.head = nnx.Linear(8, 3, rngs=rngs, param_dtype=jnp.float64)
            self.mean = nnx.BatchStat(jnp.full((), 0.2))

        def __call__(self, x):
            return self.head(nnx.tanh(self.conv(x - self.mean[...])).reshape(x.shape[0], -1))

    graph, params, rest = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)
    return Case(lambda p, x: nnx.merge(graph, p, rest)(x), params, normal(0, 3, 2, 2, 1))


@case
def raw_jit_and_checkpoint():
    @jax.jit
    def apply(p, x):
        hidden = jax.checkpoint(lambda w, b, x: jnp.tanh(x @ w + b))(*p["first"], x)
        return hidden @ p["second"]

    return Case(apply, {"first": (normal(0, 4, 5), normal(1, 5)), "second": normal(2, 5, 3)}, normal(3, 6, 4))


@case
def one_example_functions_under_vmap():
    def one(p, x):
        return p[2] @ jnp.tanh(p[0] @ x + p[1]) + p[3]

    params = [normal(0, 5, 4), normal(1, 5), normal(2, 3, 5), normal(3, 3)]
    return Case(lambda p, x: jax.vmap(lambda row: one(p, row))(x), params, normal(4, 6, 4))


@case
def transposed_and_einsum_weights():
    def apply(p, x):
        hidden = jnp.tanh(x @ p["a"].T)
        return jnp.einsum("hco,nh->nco", p["b"], hidden).sum(1) + jnp.einsum("oh,nh->no", p["c"], hidden)

    return Case(apply, {"a": normal(0, 5, 4), "b": normal(1, 5, 2, 3), "c": normal(2, 3, 5)}, normal(3, 4, 4))


@case
def weight_vector():
    return Case(lambda p, x: (jnp.tanh(x @ p[0]) @ p[1])[:, None], [normal(0, 4, 5), normal(1, 5)], normal(2, 6, 4))


@case
def attention():
    module = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6, out_features=3)
    return linen(nn.Sequential([module, lambda x: x.mean(1)]), 3, 4, 5)


@case
def residual_reads_the_output_twice():
    def apply(p, x):
        y = x @ p["w"] + p["b"]
        return jnp.tanh(y) + y @ p["v"]

    return Case(apply, {"w": normal(0, 4, 3), "b": normal(1, 3), "v": normal(2, 3, 3)}, normal(3, 5, 4))


# Convolutions.


def convolution(kernel, shape, layout=("NHWC", "HWIO", "NHWC"), bias=True, **options):
    """A convolution, its bias, tanh and a dense head."""
    x = normal(0, *shape)
    spatial = len(shape) - 2
    options = {"window_strides": (1,) * spatial, "padding": "VALID"} | options

    def body(p, x):
        y = lax.conv_general_dilated(x, p["k"], dimension_numbers=layout, **options)
        return y + p["b"].reshape([-1 if letter == "C" else 1 for letter in layout[2]]) if bias else y

    params = {"k": normal(1, *kernel)}
    if bias:
        params["b"] = normal(2, kernel[layout[1].index("O")])
    size = np.prod(jax.eval_shape(body, params, x).shape[1:])
    params["w"] = normal(3, size, 2)
    return Case(lambda p, x: jnp.tanh(body(p, x)).reshape(x.shape[0], -1) @ p["w"], params, x)


CONVOLUTIONS = {
    "strides_and_same_padding": lambda: convolution(
        (3, 2, 2, 3), (3, 5, 6, 2), window_strides=(2, 3), padding="SAME", bias=False
    ),
    "uneven_padding": lambda: convolution((2, 2, 2, 3), (3, 3, 4, 2), padding=((2, 0), (1, 3))),
    "negative_padding": lambda: convolution((2, 2, 2, 3), (3, 5, 5, 2), padding=((-1, 0), (0, -1))),
    "dilation": lambda: convolution((2, 2, 1, 3), (3, 5, 5, 1), rhs_dilation=(2, 3)),
    "groups": lambda: convolution((2, 2, 2, 6), (3, 3, 4, 4), feature_group_count=2),
    "groups_without_bias": lambda: convolution((2, 2, 1, 6), (3, 3, 3, 3), feature_group_count=3, bias=False),
    "transposed": lambda: convolution(
        (3, 3, 2, 3), (3, 2, 3, 2), lhs_dilation=(2, 2), padding=((2, 1), (2, 1)), window_strides=(1, 1)
    ),
    "channels_first": lambda: convolution((3, 2, 2, 2), (3, 2, 4, 4), ("NCHW", "OIHW", "NCHW")),
    "channels_first_groups": lambda: convolution(
        (4, 1, 2, 2), (3, 2, 3, 3), ("NCHW", "OIHW", "NCHW"), feature_group_count=2
    ),
    "one_dimension": lambda: convolution((3, 2, 3), (3, 7, 2), ("NWC", "WIO", "NWC"), window_strides=(2,)),
    "three_dimensions": lambda: convolution((2, 1, 2, 1, 2), (2, 3, 2, 3, 1), ("NDHWC", "DHWIO", "NDHWC")),
}
CASES |= {name: cache(build) for name, build in CONVOLUTIONS.items()}


@case
def linen_transposed_convolution():
    layers = [nn.ConvTranspose(2, (3, 3), strides=(2, 2)), nn.tanh, lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)]
    return linen(nn.Sequential(layers), 3, 2, 2, 2)


@case
def depthwise_and_circular():
    layers = [nn.Conv(4, (2, 2), feature_group_count=2, padding="CIRCULAR"), nn.tanh, lambda x: x.sum((1, 2))]
    return linen(nn.Sequential(layers), 3, 3, 3, 2)


# The four traps: silently wrong when taken for layers.


@jax.custom_vjp
def _straight_through(x, w):
    return x @ w


_straight_through.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, 2 * saved[0].T @ g))


@case
def trap_custom_vjp():
    params = {"w": normal(0, 4, 5), "v": normal(1, 5, 3)}
    return Case(
        lambda p, x: jnp.tanh(_straight_through(x, p["w"])) @ p["v"], params, normal(2, 5, 4), {"['w']": "custom"}
    )


@case
def trap_stop_gradient():
    params = {"w": normal(0, 4, 5), "v": normal(1, 5, 3)}
    return Case(
        lambda p, x: jnp.tanh(x @ lax.stop_gradient(p["w"])) @ p["v"],
        params,
        normal(2, 5, 4),
        {"['w']": "stop_gradient|differs"},
    )


@case
def trap_position_embedding():
    params = {"w": normal(0, 4, 5), "pos": normal(1, 6, 5), "v": normal(2, 5, 3)}
    return Case(
        lambda p, x: jnp.tanh(x @ p["w"] + p["pos"]).sum(1) @ p["v"], params, normal(3, 5, 6, 4), {"['pos']": "read by"}
    )


@case
def trap_bias_whose_input_is_read_twice():
    def apply(p, x):
        y = x @ p["w"]
        return jnp.tanh(y + p["b"]) * y

    return Case(apply, {"w": normal(0, 4, 3), "b": normal(1, 3)}, normal(2, 5, 4), {"['b']": "read by"})


# More that is not plainly a layer.


@case
def stacked_experts():
    """Experts of which each has its own inputs; both weights have an axis of experts, and one has biases."""

    def apply(p, x):
        own = jnp.stack([x, x**2])
        hidden = jnp.tanh(jnp.einsum("ecd,edh->ech", own, p["w"]) + p["b"][:, None])
        return jax.vmap(lambda v, h: h @ v)(p["v"], hidden).sum(0)

    params = {"w": normal(0, 2, 4, 5), "b": normal(1, 2, 5), "v": normal(2, 2, 5, 3)}
    return Case(apply, params, normal(3, 5, 4))


@case
def experts_of_one_product():
    """The same inputs for all experts, and a sum over them: plain products, whose factors are those of all experts."""

    def apply(p, x):
        return jnp.einsum("end,edo->no", jnp.tanh(jnp.einsum("nd,edh->enh", x, p["w"])), p["v"])

    return Case(apply, {"w": normal(0, 2, 4, 5), "v": normal(1, 2, 5, 3)}, normal(2, 5, 4))


@case
def experts_in_the_middle():
    """Axes of experts that come last, and the weight first."""
    params = {"w": normal(0, 4, 5, 2), "v": normal(1, 10, 3)}
    return Case(
        lambda p, x: jnp.tanh(jnp.einsum("dhe,ntde->nteh", p["w"], x)).mean(1).reshape(len(x), -1) @ p["v"],
        params,
        normal(2, 5, 3, 4, 2),
    )


@case
def numbers_one_by_one():
    params = {"s": normal(0, 4), "v": normal(1, 4, 3)}
    product = lambda x, s: lax.dot_general(x, s, (((), ()), ((1,), (0,)))).T  # noqa: E731
    return Case(
        lambda p, x: jnp.tanh(product(x, p["s"])) @ p["v"], params, normal(2, 5, 4), {"['s']": "numbers one by one"}
    )


@case
def tied_weights():
    params = {"w": normal(0, 4, 4), "v": normal(1, 4, 3)}
    return Case(lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T) @ p["v"], params, normal(2, 5, 4))


@case
def shared_weights():
    """One weight and bias in two layers, the second of which has positions of its own."""

    def apply(p, x):
        places = jnp.tanh(x @ p["w"] + p["b"])[:, None] + x[:, :, None]
        return jnp.tanh(places @ p["w"] + p["b"]).mean(1) @ p["v"]

    return Case(apply, {"w": normal(0, 4, 4), "b": normal(1, 4), "v": normal(2, 4, 3)}, normal(3, 5, 4))


@case
def shared_weights_with_biases_of_their_own():
    params = {"w": normal(0, 4, 4), "b": normal(1, 4), "c": normal(2, 4)}
    return Case(
        lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["w"] + p["c"],
        params,
        normal(3, 5, 4),
        {"['b']": "read by add", "['c']": "read by add"},
    )


@case
def shared_weights_that_are_other_matrices():
    params = {"w": normal(0, 4, 6), "v": normal(1, 4, 3)}
    return Case(
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].reshape(6, 4)) @ p["v"],
        params,
        normal(2, 5, 4),
        {"['w']": "read 2 times, as matrices of different entries"},
    )


@case
def tied_head():
    """A table [7, 4] that is the head, too: its transpose is what hidden states are multiplied with."""
    params = {"table": normal(0, 7, 4), "inner": normal(1, 4, 4)}
    return Case(lambda p, x: jnp.tanh(p["table"][x] @ p["inner"]).mean(1) @ p["table"].T, params, embedding().x)


@case
def table_whose_rows_are_mixed():
    """Rows are looked up, and then averaged by weights: both uses have the table's rows as inputs."""
    params = {"table": normal(0, 7, 4), "w": normal(1, 4, 7), "v": normal(2, 4, 3)}
    return Case(
        lambda p, x: jax.nn.softmax(p["table"][x].mean(1) @ p["w"]) @ p["table"] @ p["v"],
        params,
        embedding().x,
        {"['table']": "a table whose rows are"},
    )


@case
def shared_bias():
    params = {"w": normal(0, 4, 4), "v": normal(1, 4, 4), "b": normal(2, 4)}
    return Case(
        lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["v"] + p["b"], params, normal(2, 5, 4), {"['b']": "2 times"}
    )


@case
def scanned_layers():
    params = {"w": normal(0, 3, 4, 4), "v": normal(1, 4, 3)}
    return Case(
        lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"])[0] @ p["v"],
        params,
        normal(2, 5, 4),
        {"['w']": "read by scan"},
    )


@case
def branches():
    params = {"w": normal(0, 4, 5), "u": normal(1, 4, 5), "v": normal(2, 5, 3)}
    return Case(
        lambda p, x: jnp.tanh(lax.cond(x.shape[1] + jnp.int32(x[0, 0]) > 4, *_sides, x, p["w"], p["u"])) @ p["v"],
        params,
        normal(2, 5, 4),
        {"['w']": "read by cond", "['u']": "read by cond"},
    )


_sides = (lambda x, w, u: x @ w, lambda x, w, u: jnp.sin(x @ u))


@case
def lstm():
    layers = [nn.RNN(nn.OptimizedLSTMCell(3, param_dtype=jnp.float64)), lambda x: x[:, -1], nn.Dense(2)]
    result = linen(nn.Sequential(layers), 2, 4, 2)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(result.params)]
    return result._replace(fallback={path: "read by scan|read 2 times" for path in paths if "layers_2" not in path})


@case
def embedding():
    params = {"table": normal(0, 7, 4), "w": normal(1, 4, 3)}
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 7, (5, 6)))
    return Case(lambda p, x: jnp.tanh(p["table"][x]).mean(1) @ p["w"], params, tokens)


def table(look, offset=0):
    """A model that looks rows up in its own way: (table [7, 4], numbers) → rows [..., 4]."""
    model = embedding()
    return model._replace(apply=lambda p, x: jnp.tanh(look(p["table"], x + offset)).mean(1) @ p["w"])


@case
def table_taken():
    return table(lambda rows, x: jnp.take(rows, x, axis=0))


@case
def table_taken_from_columns():
    return table(lambda rows, x: jnp.moveaxis(jnp.take(rows.T, x, axis=1), 0, -1))


@case
def table_of_one_hot_rows():
    return table(lambda rows, x: jax.nn.one_hot(x, 7) @ rows)


@case
def table_of_comparisons():
    return table(lambda rows, x: (x[..., None] == jnp.arange(7)).astype(rows.dtype) @ rows)


@case
def table_with_numbers_beyond_it():
    return table(lambda rows, x: jnp.take(rows, x, axis=0, mode="fill", fill_value=0), offset=3)


@case
def table_with_numbers_cut_at_its_end():
    return table(lambda rows, x: rows.at[x].get(mode="clip"), offset=3)


@case
def table_counted_from_the_end():
    return table(lambda rows, x: rows[-x])


@case
def table_read_twice():
    return table(lambda rows, x: rows[x] * jnp.cos(rows[x[:, ::-1]]) + rows[x[:, :1]])


@case
def table_read_in_two_ways_falls_back():
    model = table(lambda rows, x: rows[x] + rows.sum(0))
    return model._replace(fallback={"['table']": "read 2 times"})


@case
def table_of_positions():
    """Numbers that do not depend on the example."""
    params = {"words": normal(0, 7, 4), "places": normal(1, 9, 4), "w": normal(2, 4, 3)}
    return Case(
        lambda p, x: jnp.tanh(p["words"][x] + p["places"][jnp.arange(x.shape[1])]).mean(1) @ p["w"],
        params,
        embedding().x,
    )


@case
def table_of_blocks():
    """Two rows at a time are not rows of a table."""
    look = jax.vmap(jax.vmap(lambda rows, i: lax.dynamic_slice(rows, (i, 0), (2, 4)).sum(0), (None, 0)), (None, 0))
    return table(look)._replace(fallback={"['table']": "gather of other things"})


@case
def experts_that_are_chosen():
    """Every position takes a matrix of its own out of a stack."""

    def apply(p, x):
        chosen = p["experts"][jnp.argmax(x @ p["router"], -1)]
        return jnp.tanh(jnp.einsum("...d,...dh->...h", x, chosen)).mean(1) @ p["w"]

    params = {"router": normal(0, 4, 3), "experts": normal(1, 3, 4, 5), "w": normal(2, 5, 3)}
    return Case(apply, params, normal(3, 5, 6, 4))


@case
def experts_whose_matrices_are_squared():
    def apply(p, x):
        chosen = p["experts"][jnp.argmax(x @ p["router"], -1)] ** 2
        return jnp.tanh(jnp.einsum("...d,...dh->...h", x, chosen)).mean(1)

    params = {"router": normal(0, 4, 3), "experts": normal(1, 3, 4, 5)}
    return Case(apply, params, normal(3, 5, 6, 4), {"['experts']": "gather of matrices"})


@case
def bias_times_one():
    """As PyTorch's `addmm` writes it."""
    params = {"w": normal(0, 4, 5), "b": normal(1, 5), "v": normal(2, 5, 3)}
    return Case(lambda p, x: jnp.tanh(1.0 * p["b"] + 1 * (x @ p["w"])) @ p["v"], params, normal(3, 6, 4))


@case
def bias_times_two():
    result = bias_times_one()
    apply = lambda p, x: jnp.tanh(2.0 * p["b"] + x @ p["w"]) @ p["v"]  # noqa: E731
    return result._replace(apply=apply, fallback={"['b']": "read by mul"})


@case
def rotary_attention():
    """Tokens tell positions apart by rotations of queries and keys alone, so equal tokens have no gradient there."""
    params = {name: normal(n, 4, 4) for n, name in enumerate(("q", "k", "v"))} | {"table": 3 * normal(3, 7, 4)}

    def rotate(rows):
        angle = jnp.arange(rows.shape[1])[:, None] / jnp.asarray([1.0, 10.0, 1.0, 10.0])
        halves = jnp.concatenate([-rows[..., 2:], rows[..., :2]], axis=-1)
        return rows * jnp.cos(angle) + halves * jnp.sin(angle)

    def apply(p, x):
        h = p["table"][x]
        weights = jax.nn.softmax(rotate(h @ p["q"]) @ jnp.swapaxes(rotate(h @ p["k"]), -1, -2))
        return jnp.tanh(weights @ (h @ p["v"])).mean(1)

    return Case(apply, params, embedding().x)


@case
def layer_norm():
    result = linen(nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.tanh, nn.Dense(3)]), 5, 3)
    norm = "['params']['layers_1']"
    return result._replace(fallback={f"{norm}['scale']": "read by", f"{norm}['bias']": "read by"})


@case
def weights_computed_from_leaves():
    def apply(p, x):
        hidden = x @ (p["w"] / jnp.linalg.norm(p["w"])) + x @ (2 * p["s"]) + x @ (p["a"] @ p["c"])
        return jnp.tanh(hidden) @ p["v"]

    shapes = {"w": (4, 5), "s": (4, 5), "a": (4, 1), "c": (1, 5), "v": (5, 3)}
    reasons = {"['w']": "read .* times", "['s']": "read by mul"}
    reasons |= {f"['{name}']": "does not depend on the example" for name in "ac"}
    return Case(apply, {n: normal(i, *s) for i, (n, s) in enumerate(shapes.items())}, normal(9, 5, 4), reasons)


@case
def additions_that_are_no_biases():
    def apply(p, x):
        y = x @ p["w"] + p["scalar"] + p["b"]  # the first addition is no bias, so the second is none of the product's
        z = x @ p["u"] + p["reversed"][::-1]
        return jnp.tanh(y) + nn.relu(z) + p["late"]

    shapes = {"w": (4, 3), "u": (4, 3), "scalar": (), "b": (3,), "reversed": (3,), "late": (3,)}
    reasons = {f"['{name}']": "read by" for name in ("scalar", "b", "reversed", "late")}
    params = {n: normal(i, *s) if s else jnp.asarray(0.3) for i, (n, s) in enumerate(shapes.items())}
    return Case(apply, params, normal(9, 5, 4), reasons)


@case
def second_bias():
    params = {"w": normal(0, 4, 3), "b": normal(1, 3), "c": normal(2, 3)}
    return Case(lambda p, x: jnp.tanh(x @ p["w"] + p["b"] + p["c"]), params, normal(3, 5, 4), {"['c']": "read by"})


@case
def bias_of_a_sum_of_products():
    params = {"w": normal(0, 4, 3), "v": normal(1, 4, 3), "b": normal(2, 3)}
    return Case(
        lambda p, x: jnp.tanh(x @ p["w"] + x**2 @ p["v"] + p["b"]), params, normal(3, 5, 4), {"['b']": "read by"}
    )


@case
def unused_and_returned_leaves():
    params = {"w": normal(0, 4, 3), "unused": normal(1, 2), "offset": normal(2, 1, 3)}
    return Case(
        lambda p, x: x @ p["w"] * 2 + jnp.broadcast_to(p["offset"], (x.shape[0], 3)),
        params,
        normal(3, 5, 4),
        {"['unused']": "read 0 times", "['offset']": "read by"},
    )


@case
def integer_weight():
    params = {"w": 10 * normal(0, 4, 5), "v": normal(1, 5, 3)}
    return Case(
        lambda p, x: jnp.tanh((jnp.int32(10 * x) @ p["w"].astype(jnp.int32)) / 9.0) @ p["v"],
        params,
        normal(2, 5, 4),
        {"['w']": "read by|integer"},
    )
