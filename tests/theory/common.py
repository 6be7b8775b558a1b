"""Small problems and explicit matrices that the sample-space formulas are held against."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fedfisher_jax.theory import inputs, merges, two_layer

# Compiled once per shape: what the tests call again and again.
train = jax.jit(two_layer.train, static_argnums=(4, 5))
full_objective = jax.jit(merges.full_objective, static_argnums=(2, 3))
merge = jax.jit(merges.merge, static_argnums=0)
gaussian = jax.jit(inputs.gaussian, static_argnums=(1, 2, 3), static_argnames="dtype")


def problem(width, *, num_clients=2, examples=4, dims=3, steps=40, seed=0, scaling="ntk", train_output=False):
    """Trained clients: (start, local models, data)."""
    key = jax.random.key(seed)
    data = gaussian(jax.random.fold_in(key, 0), num_clients, examples, dims, dtype=jnp.float64)
    start = two_layer.init(jax.random.fold_in(key, 1), dims, width, jnp.float64)
    local = train(start, data, steps, 0.5, scaling, train_output)
    return start, local, data


def flatten(params, train_output=False):
    """The trained parameters as one vector."""
    return np.asarray(ravel_pytree(params if train_output else params.w)[0])


def client(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def dense_rows(local, data, scaling="ntk", train_output=False):
    """A [R, P] from jax.jacobian, client by client."""
    blocks = []
    for i in range(len(data.x)):
        jac = jax.jacobian(lambda p, x: two_layer.apply(p, x, scaling))(client(local, i), data.x[i])
        leaves = [jac.w.reshape(len(data.x[i]), -1)] + ([jac.a] if train_output else [])
        blocks.append(np.sqrt(np.asarray(data.weights[i]))[:, None] * np.asarray(jnp.concatenate(leaves, axis=1)))
    return np.concatenate(blocks)


def dense_solution(local, data, scaling="ntk", train_output=False):
    """θ̄ + F̄⁺(Σ p_i F_i θ_i − F̄ θ̄) by a dense pseudo-inverse."""
    rows = dense_rows(local, data, scaling, train_output).reshape(len(data.x), data.x.shape[1], -1)
    thetas = np.stack([flatten(client(local, i), train_output) for i in range(len(data.x))])
    fishers = np.einsum("inp,inq->ipq", rows, rows)
    mean = np.asarray(data.weights.sum(axis=1)) @ thetas
    total = fishers.sum(axis=0)
    right = np.einsum("ipq,iq->p", fishers, thetas) - total @ mean
    return mean + np.linalg.pinv(total, rcond=1e-12, hermitian=True) @ right, mean, total, right
