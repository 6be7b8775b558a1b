"""Two-layer ReLU networks of any width, and their full-batch gradient descent on many clients.

The network is f(x) = s Σ_r a_r σ(w_rᵀx) with s = 1/√m (``"ntk"``, the setting of the theorem of 2403.12329) or s = 1/m
(``"mean_field"``). Weights are kept as [d, m]: the width is the fast axis of every array, which is what makes
10⁵ neurons cheap on a processor.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

Scaling = Literal["ntk", "mean_field"]


class Params(NamedTuple):
    """Parameters of one network, or of several along leading axes."""

    w: Array  # [..., d, m] input weights, one column per neuron
    a: Array  # [..., m] output weights


class ClientData(NamedTuple):
    """The examples of M clients, n rows each; padded rows have weight zero."""

    x: Array  # [M, n, d], or [M, n, ...] for `matrix_free`
    y: Array  # [M, n] regression targets, or [M, n, C] for `matrix_free`
    weights: Array  # [M, n], p_i / n_i for a real example of client i: they sum to one over everything


def clients(x: Float[Array, "M n d"], y: Float[Array, "M n"]) -> ClientData:
    """Make clients of equal size and weight: p_i = 1/M."""
    return ClientData(x, y, jnp.full(y.shape, 1 / y.size, x.dtype))


def pool(data: ClientData) -> ClientData:
    """Give all examples to a single client."""
    return ClientData(*(leaf.reshape(1, -1, *leaf.shape[2:]) for leaf in data))


def real(data: ClientData) -> Bool[Array, "M n"]:
    """Return which rows are examples; the others have weight zero and are padding."""
    return data.weights > 0


def hide_padding(data: ClientData) -> ClientData:
    """Put a client's example of the largest weight where it has padding: NaN times a weight of zero is NaN."""

    def client(x: Array, y: Array, weights: Array) -> ClientData:
        rows = jnp.where(weights > 0, jnp.arange(len(weights)), jnp.argmax(weights))
        return ClientData(x[rows], y[rows], weights)

    return jax.vmap(client)(*data)


def shares(weights: Float[Array, "*clients n"]) -> Float[Array, "*clients n"]:
    """Return each row's share of its client's weight; zero where the client has none, as padding of clients."""
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)


def client_weights(data: ClientData) -> Float[Array, " M"]:
    """Return p_i, the share of each client."""
    return data.weights.sum(axis=1)


def output_scale(width: int, scaling: str) -> float:
    """The factor s before the sum over neurons."""
    if scaling not in ("ntk", "mean_field"):
        raise ValueError(f"scaling: got {scaling!r}, expected 'ntk' or 'mean_field'")
    return width**-0.5 if scaling == "ntk" else 1.0 / width


def init(key: Key[Array, ""], inputs: int, width: int, dtype=jnp.float32) -> Params:
    """Draw w_r ~ N(0, I) and a_r = ±1 with equal probability (arXiv 2403.12329, theory).

    Args:
        key: random key.
        inputs: number of inputs, d.
        width: number of neurons, m.
        dtype: type of the parameters.

    Example:
        >>> import jax
        >>> from fedfisher_jax.theory import two_layer
        >>> params = two_layer.init(jax.random.key(0), 3, 8)
        >>> params.w.shape, sorted(set(params.a.tolist()))
        ((3, 8), [-1.0, 1.0])
    """
    key_w, key_a = jax.random.split(key)
    w = jax.random.normal(key_w, (inputs, width), dtype)
    return Params(w, jax.random.rademacher(key_a, (width,), dtype))


def apply(params: Params, x: Float[Array, "n d"], scaling: Scaling = "ntk") -> Float[Array, " n"]:
    """Return the outputs of one network, [n]."""
    return output_scale(params.a.shape[-1], scaling) * (jax.nn.relu(x @ params.w) @ params.a)


def client_outputs(params: Params, data: ClientData, scaling: Scaling = "ntk") -> Float[Array, "M n"]:
    """Return outputs on every client's examples, of one network or (leading axis M) of each client's own."""
    if params.a.ndim == 1:
        return jax.lax.map(lambda x: apply(params, x, scaling), data.x)
    return jax.lax.map(lambda args: apply(args[0], args[1], scaling), (params, data.x))


def loss(params: Params, data: ClientData, scaling: Scaling = "ntk") -> Float[Array, ""]:
    """Return Σ_i p_i L_i with L_i the mean squared error (no factor ½); `params` as in `client_outputs`."""
    data = hide_padding(data)
    return jnp.sum(data.weights * (client_outputs(params, data, scaling) - data.y) ** 2)


def gradient(
    params: Params,
    x: Float[Array, "n d"],
    y: Float[Array, " n"],
    q: Float[Array, " n"],
    scaling: Scaling = "ntk",
    train_output: bool = False,
) -> Params:
    """Return the gradient of ½ Σ_a q_a (f(x_a) − y_a)², as written out; zero for `a` unless `train_output`.

    Written by hand because a factor per neuron is then applied after the product, on [d, m] instead of [n, m].
    """
    scale = output_scale(params.a.shape[-1], scaling)
    z = x @ params.w  # [n, m]
    hidden = jnp.where(z > 0, z, 0)
    residual = q * (scale * (hidden @ params.a) - y)  # [n]
    grad_w = (x.T @ jnp.where(z > 0, residual[:, None], 0)) * (scale * params.a)
    return Params(grad_w, scale * (residual @ hidden) if train_output else jnp.zeros_like(params.a))


def train(
    params: Params,
    data: ClientData,
    steps: int | Array,
    step_size: float | Array,
    scaling: Scaling = "ntk",
    train_output: bool = False,
) -> Params:
    """Train every client by full-batch gradient descent from common parameters.

    The objective of client i is ½ L_i (its mean squared error, halved). In mean-field scaling the step is multiplied
    by m, so that outputs move by O(1) per unit of time at every width.

    Args:
        params: Common start, w [d, m] and a [m].
        data: M clients.
        steps: Number K of steps; may be traced.
        step_size: η.
        scaling: Output scale, see `output_scale`.
        train_output: Also train `a`.

    Returns:
        Parameters with a leading client axis: w [M, d, m] and a [M, m].
    """
    step_size = step_size * (params.a.shape[-1] if scaling == "mean_field" else 1)

    def client(example: tuple[Array, Array, Array]) -> Params:
        x, y, weights = example
        q = shares(weights)

        def body(_: Array, p: Params) -> Params:
            g = gradient(p, x, y, q, scaling, train_output)
            return Params(p.w - step_size * g.w, p.a - step_size * g.a if train_output else p.a)

        return jax.lax.fori_loop(0, steps, body, params)

    data = hide_padding(data)
    return jax.lax.map(client, tuple(data))  # one after the other: batched products are slower on processors
