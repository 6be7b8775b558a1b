"""Tables whose rows are looked up, in every way to say so."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo.case import Case, case, normal


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
