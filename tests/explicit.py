"""Fishers as explicit matrices, from Jacobians and Hessians that `jax` takes of the whole model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


@partial(jax.jit, static_argnums=(0, 1))
def fisher(apply, likelihood, params, x, y):
    """Mean over examples of Jᵀ (Hessian of the loss in the outputs) J; for these families that is the Fisher."""
    vector, unravel = ravel_pytree(params)
    outputs = apply(params, x)
    size = outputs[0].size
    jacobian = jax.jacobian(lambda v: apply(unravel(v), x))(vector).reshape(len(x), size, -1)
    hessians = jax.vmap(jax.hessian(likelihood.nll))(outputs, y).reshape(len(x), size, size)
    return jnp.einsum("nkp,nkl,nlq->pq", jacobian, hessians, jacobian) / len(x)


@partial(jax.jit, static_argnums=(0, 1))
def gradients(apply, likelihood, params, x, y):
    """[n, d] of each example's loss."""
    vector, unravel = ravel_pytree(params)

    def loss(vector, one, target):
        return likelihood.nll(apply(unravel(vector), one[None])[0], target)

    return jax.vmap(jax.grad(loss), (None, 0, 0))(vector, x, y)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def block_diagonal(matrix, fisher, params):
    """The matrix with the entries between different blocks of `fisher` set to zero."""
    leaves, treedef = jax.tree.flatten(params)
    owner = {leaf: number for number, block in enumerate(fisher.blocks()) for leaf in block}
    numbers = [jnp.full(leaf.shape, float(owner[position])) for position, leaf in enumerate(leaves)]
    block = flat(jax.tree.unflatten(treedef, numbers))
    return np.where(block[:, None] == block, matrix, 0)
