"""The Fisher matrices of two-layer networks as rows: F̄ = AᵀA with A held by its two thin factors, never as [R, P].

A row of the weighted Jacobian of client i at its own parameters is an outer product,

    √(p_i/n_i) ∂f(x_a)/∂w = x_a ⊗ left_a,   left_a = √(p_i/n_i) s a_r 1[w_rᵀx_a > 0]   [m],

so A (all examples of all clients) is a Khatri–Rao product: memory R (m + d), and K = AAᵀ = (x xᵀ) ∘ (left leftᵀ).
K-FAC replaces Σ_a (x_a x_aᵀ) ⊗ (left_a left_aᵀ) by the Kronecker product of the two sums: its rows are all pairs of
left_a and a row of a root of the input covariance. Derived in docs/theory.md.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import two_layer
from .two_layer import ClientData, Params, Scaling


class Rows(NamedTuple):
    """Weighted Jacobian rows of M clients with n examples each, every client at its own parameters."""

    left: Array  # [M, n, m]
    x: Array  # [M, n, d]
    out: Array | None = None  # [M, n, m], the derivative by a, where a is trained


class KroneckerRows(NamedTuple):
    """Rows of Σ p_i A_i ⊗ G_i: every row of `left` with every row of `right`, within each client."""

    left: Array  # [M, l, m], leftᵀ left = p_i G_i; l = min(n, m)
    right: Array  # [M, k, d], rightᵀ right = A_i, the weighted second moment of the client's inputs; k = min(n, d)


def jacobian_rows(local: Params, data: ClientData, scaling: Scaling = "ntk", train_output: bool = False) -> Rows:
    """Rows √(p_i/n_i) ∂f(x_a; θ_i); `local` has a leading client axis."""
    scale = two_layer.output_scale(local.a.shape[-1], scaling)

    def client(args: tuple[Params, Array, Array]) -> Rows:
        params, x, weights = args
        z = x @ params.w
        root = scale * jnp.sqrt(weights)[:, None]
        out = root * jnp.where(z > 0, z, 0) if train_output else None
        return Rows(jnp.where(z > 0, root * params.a, 0), x, out)

    return jax.lax.map(client, (local, data.x, data.weights))


def _flat(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])


def gram(rows: Rows) -> Float[Array, "R R"]:
    """K = AAᵀ over all R = M n rows."""
    left, x = _flat(rows.left), _flat(rows.x)
    hidden = (left @ left.T) * (x @ x.T)
    return hidden if rows.out is None else hidden + _flat(rows.out) @ _flat(rows.out).T


def push(rows: Rows, delta: Params) -> Float[Array, "M n"]:
    """A δ; with a leading client axis on `delta`, the rows of client i act on δ_i."""
    own = (None, 0)[delta.a.ndim - 1]

    def client(row: Rows, d: Params) -> Array:
        hidden = jnp.sum((row.x @ d.w) * row.left, axis=1)
        return hidden if row.out is None else hidden + row.out @ d.a

    return jax.vmap(client, in_axes=(0, own))(rows, delta)


def pull(rows: Rows, u: Float[Array, " R"]) -> Params:
    """Aᵀ u as parameters."""
    left, x = _flat(rows.left), _flat(rows.x)
    a = jnp.zeros(left.shape[-1], left.dtype) if rows.out is None else u @ _flat(rows.out)
    return Params((x * u[:, None]).T @ left, a)


def diagonal(rows: Rows) -> Params:
    """The diagonals of p_i F_i with a leading client axis (zeros for `a` where it is fixed)."""
    w = jnp.einsum("ind,inm->idm", rows.x**2, rows.left**2)
    return Params(w, jnp.zeros_like(rows.left[:, 0]) if rows.out is None else jnp.sum(rows.out**2, axis=1))


def kronecker_rows(rows: Rows, data: ClientData) -> KroneckerRows:
    """The K-FAC approximation of the hidden layer's Fisher, as rows."""
    q = two_layer.shares(data.weights)
    _, n, width = rows.left.shape
    left = rows.left if n <= width else jnp.linalg.qr(rows.left, mode="r")
    return KroneckerRows(left, jnp.linalg.qr(jnp.sqrt(q)[..., None] * data.x, mode="r"))


def kronecker_gram(rows: KroneckerRows) -> Float[Array, "R R"]:
    """K = AAᵀ over all R = M l k rows, in the order (client, row of `left`, row of `right`)."""
    (clients, n, _), k = rows.left.shape, rows.right.shape[1]
    left, right = _flat(rows.left), _flat(rows.right)
    left_gram = (left @ left.T).reshape(clients, n, 1, clients, n, 1)
    right_gram = (right @ right.T).reshape(clients, 1, k, clients, 1, k)
    return (left_gram * right_gram).reshape(clients * n * k, clients * n * k)


def kronecker_push(rows: KroneckerRows, w: Float[Array, "M d m"]) -> Float[Array, "M l k"]:
    """A δ with the rows of client i acting on its own δ_i."""
    return jnp.einsum("inm,idm,ikd->ink", rows.left, w, rows.right)


def kronecker_pull(rows: KroneckerRows, u: Float[Array, " R"]) -> Float[Array, "d m"]:
    """Aᵀ u."""
    u = u.reshape(*rows.left.shape[:2], -1)
    return jnp.einsum("ink,inm,ikd->dm", u, rows.left, rows.right)
