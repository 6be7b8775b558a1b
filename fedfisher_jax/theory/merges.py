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
from .two_layer import ClientData, Params, Scaling

Rule = Literal["full", "kfac", "diagonal", "average"]
RULES: tuple[Rule, ...] = ("full", "kfac", "diagonal", "average")


class FullObjective(NamedTuple):
    """The full-Fisher objective Q of M local models, kept in sample space."""

    average: Params  # θ̄ = Σ p_i θ_i
    rows: fisher.Rows
    spectrum: Spectrum


def average(local: Params, data: ClientData) -> Params:
    """Return θ̄ = Σ p_i θ_i."""
    p = two_layer.client_weights(data)
    return jax.tree.map(lambda leaf: jnp.tensordot(p, leaf, axes=1), local)


def full_objective(
    local: Params, data: ClientData, scaling: Scaling = "ntk", train_output: bool = False
) -> FullObjective:
    """Make the objective of the full Fisher: rows, Gram matrix and target; `local` has a leading client axis."""
    centre = average(local, data)
    rows = fisher.jacobian_rows(local, data, scaling, train_output)
    offsets = jax.tree.map(jnp.subtract, local, centre)
    spectrum = sample_space.spectrum(fisher.gram(rows), fisher.push(rows, offsets).reshape(-1))
    return FullObjective(centre, rows, spectrum)


def place(objective: FullObjective, u: Array) -> Params:
    """Return θ̄ + Aᵀu: the parameters that belong to sample-space coefficients u [R]."""
    return jax.tree.map(jnp.add, objective.average, fisher.pull(objective.rows, u))


def full(objective: FullObjective) -> Params:
    """Merge by FedFisher with the full Fisher (2403.12329), the limit of gradient descent from the average."""
    return place(objective, sample_space.minimiser(objective.spectrum))


def kfac(objective: FullObjective, local: Params, data: ClientData) -> Params:
    """Merge by FedFisher with a Kronecker block per layer (2403.12329)."""
    centre = objective.average
    rows = fisher.kronecker_rows(objective.rows, data)
    offsets = jax.tree.map(jnp.subtract, local, centre)
    spectrum = sample_space.spectrum(fisher.kronecker_gram(rows), fisher.kronecker_push(rows, offsets.w).reshape(-1))
    w = centre.w + fisher.kronecker_pull(rows, sample_space.minimiser(spectrum))
    if objective.rows.out is None:
        return Params(w, centre.a)
    out = objective.rows.out  # one output: this layer's block is its full Fisher
    flat = out.reshape(-1, out.shape[-1])
    target = jnp.einsum("inm,im->in", out, offsets.a).reshape(-1)
    return Params(w, centre.a + sample_space.minimiser(sample_space.spectrum(flat @ flat.T, target)) @ flat)


def diagonal(objective: FullObjective, local: Params) -> Params:
    """Merge by FedFisher with the diagonal Fisher (2403.12329), as Fisher merging (2111.09832): weighted means."""
    total = jax.tree.map(lambda f: f.sum(axis=0), fisher.diagonal(objective.rows))

    def leaf(f: Array, f_sum: Array, theta: Array, centre: Array) -> Array:
        seen = f_sum > 0
        return jnp.where(seen, jnp.sum(f * theta, axis=0) / jnp.where(seen, f_sum, 1), centre)

    return jax.tree.map(leaf, fisher.diagonal(objective.rows), total, local, objective.average)


def merge(rule: str, objective: FullObjective, local: Params, data: ClientData) -> Params:
    """Make one global model by the name of its rule, one of `RULES`."""
    if rule == "full":
        return full(objective)
    if rule == "kfac":
        return kfac(objective, local, data)
    if rule == "diagonal":
        return diagonal(objective, local)
    if rule == "average":
        return objective.average
    raise ValueError(f"rule: got {rule!r}, expected one of {', '.join(RULES)}")
