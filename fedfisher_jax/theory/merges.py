"""The models the server can make of M two-layer networks: the average and three Fishers, all at memory linear in width.

Each solves min Σ p_i (θ − θ_i)ᵀ F_i (θ − θ_i) for the minimiser nearest the average, with F_i full, K-FAC or diagonal.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from . import rows as fisher
from . import sample_space, two_layer
from .sample_space import Spectrum
from .two_layer import Clients, Params, Scaling

Rule = Literal["full", "kfac", "diagonal", "average"]
RULES: tuple[Rule, ...] = ("full", "kfac", "diagonal", "average")


class Problem(NamedTuple):
    """The full-Fisher objective of M local models in sample space."""

    average: Params  # θ̄ = Σ p_i θ_i
    rows: fisher.Rows
    spectrum: Spectrum


def average(local: Params, data: Clients) -> Params:
    """θ̄ = Σ p_i θ_i."""
    p = two_layer.client_weights(data)
    return jax.tree.map(lambda leaf: jnp.tensordot(p, leaf, axes=1), local)


def full_problem(local: Params, data: Clients, scaling: Scaling = "ntk", train_output: bool = False) -> Problem:
    """Rows, Gram matrix and target of the full Fisher; `local` has a leading client axis."""
    centre = average(local, data)
    rows = fisher.jacobian_rows(local, data, scaling, train_output)
    offsets = jax.tree.map(jnp.subtract, local, centre)
    spectrum = sample_space.spectrum(fisher.gram(rows), fisher.push(rows, offsets).reshape(-1))
    return Problem(centre, rows, spectrum)


def place(problem: Problem, u: Array) -> Params:
    """θ̄ + Aᵀu: the parameters that belong to sample-space coefficients u [R]."""
    return jax.tree.map(jnp.add, problem.average, fisher.pull(problem.rows, u))


def full(problem: Problem) -> Params:
    """FedFisher with the full Fisher (2403.12329), the limit of gradient descent from the average."""
    return place(problem, sample_space.minimiser(problem.spectrum))


def kfac(problem: Problem, local: Params, data: Clients) -> Params:
    """FedFisher with a Kronecker block per layer (2403.12329)."""
    centre = problem.average
    rows = fisher.kronecker_rows(problem.rows, data)
    offsets = jax.tree.map(jnp.subtract, local, centre)
    spectrum = sample_space.spectrum(fisher.kronecker_gram(rows), fisher.kronecker_push(rows, offsets.w).reshape(-1))
    w = centre.w + fisher.kronecker_pull(rows, sample_space.minimiser(spectrum))
    if problem.rows.out is None:
        return Params(w, centre.a)
    out = problem.rows.out  # one output: this layer's block is its full Fisher
    flat = out.reshape(-1, out.shape[-1])
    target = jnp.einsum("inm,im->in", out, offsets.a).reshape(-1)
    return Params(w, centre.a + sample_space.minimiser(sample_space.spectrum(flat @ flat.T, target)) @ flat)


def diagonal(problem: Problem, local: Params) -> Params:
    """FedFisher with the diagonal Fisher (2403.12329), as Fisher merging (2111.09832): weighted means."""
    total = jax.tree.map(lambda f: f.sum(axis=0), fisher.diagonal(problem.rows))

    def leaf(f: Array, f_sum: Array, theta: Array, centre: Array) -> Array:
        seen = f_sum > 0
        return jnp.where(seen, jnp.sum(f * theta, axis=0) / jnp.where(seen, f_sum, 1), centre)

    return jax.tree.map(leaf, fisher.diagonal(problem.rows), total, local, problem.average)


def merge(rule: str, problem: Problem, local: Params, data: Clients) -> Params:
    """One global model by name; see `RULES`."""
    if rule == "full":
        return full(problem)
    if rule == "kfac":
        return kfac(problem, local, data)
    if rule == "diagonal":
        return diagonal(problem, local)
    if rule == "average":
        return problem.average
    raise ValueError(f"rule must be one of {RULES}, got {rule!r}")
