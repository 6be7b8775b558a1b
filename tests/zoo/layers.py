"""Models whose every layer is captured: dense layers of all kinds of libraries, attention, recurrences."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from zoo.case import Case, case, linen, normal
from zoo.tables import embedding


@case
def linen_dense():
    return linen(nn.Sequential([nn.Dense(5), nn.tanh, nn.Dense(3)]), 4, 6)


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
def residual_reads_the_output_twice():
    def apply(p, x):
        y = x @ p["w"] + p["b"]
        return jnp.tanh(y) + y @ p["v"]

    return Case(apply, {"w": normal(0, 4, 3), "b": normal(1, 3), "v": normal(2, 3, 3)}, normal(3, 5, 4))


@case
def layer_norm():
    result = linen(nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.tanh, nn.Dense(3)]), 5, 3)
    norm = "['params']['layers_1']"
    return result._replace(fallback={f"{norm}['scale']": "read by", f"{norm}['bias']": "read by"})


@case
def lstm():
    layers = [nn.RNN(nn.OptimizedLSTMCell(3, param_dtype=jnp.float64)), lambda x: x[:, -1], nn.Dense(2)]
    result = linen(nn.Sequential(layers), 2, 4, 2)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(result.params)]
    return result._replace(fallback={path: "read by scan|read 2 times" for path in paths if "layers_2" not in path})
