"""Models that look like layers and are none, or only in part: silently wrong when they are taken for layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from zoo.case import Case, case, normal


@jax.custom_vjp
def straight_through(x, w):
    return x @ w


straight_through.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, 2 * saved[0].T @ g))


@case
def trap_custom_vjp():
    params = {"w": normal(0, 4, 5), "v": normal(1, 5, 3)}
    return Case(
        lambda p, x: jnp.tanh(straight_through(x, p["w"])) @ p["v"], params, normal(2, 5, 4), {"['w']": "custom"}
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
def numbers_one_by_one():
    params = {"s": normal(0, 4), "v": normal(1, 4, 3)}
    product = lambda x, s: lax.dot_general(x, s, (((), ()), ((1,), (0,)))).T  # noqa: E731
    return Case(
        lambda p, x: jnp.tanh(product(x, p["s"])) @ p["v"], params, normal(2, 5, 4), {"['s']": "numbers one by one"}
    )


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
