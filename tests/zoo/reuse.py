"""Weights that are used several times, and stacks of experts."""

import jax
import jax.numpy as jnp

from zoo.case import Case, case, normal
from zoo.tables import embedding


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
