"""The FedFisher objective seen from the examples.

With every weighted Jacobian row of every client stacked into A [R, P] (F̄ = Σ p_i F_i = AᵀA), the objective is

    Q(θ) = Σ p_i (θ − θ_i)ᵀ F_i (θ − θ_i) = ‖A(θ − θ̄) − c‖²,   c = rows of client i applied to θ_i − θ̄,

and everything gradient descent from the average θ̄ can reach is θ̄ + Aᵀu with u in R^R. So the iterates, their limit (the
minimiser nearest θ̄, Lemma 1 of 2403.12329) and Q need only the Gram matrix K = AAᵀ [R, R] and c [R]: no P-vector at all
until the final Aᵀu. Derived in docs/theory.md.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Spectrum(NamedTuple):
    """Eigen-decomposition of K, and c in its eigenbasis; the eigenvalues are those of F̄ on the span of the rows."""

    values: Array  # [R] eigenvalues of K in ascending order, zero where not `kept`
    vectors: Array  # [R, R], a column per eigenvalue
    target: Array  # [R], c in the eigenbasis
    kept: Array  # [R] bool: directions above the numerical rank cut


def spectrum(gram: Float[Array, "R R"], target: Float[Array, " R"], rtol: float | None = None) -> Spectrum:
    """Decomposes the Gram matrix once; what follows is arithmetic on R-vectors.

    Args:
        gram: K = AAᵀ.
        target: c.
        rtol: Eigenvalues up to `rtol` times the largest count as zero; by default 10 R times the machine epsilon.
    """
    values, vectors = jnp.linalg.eigh(gram)
    rtol = 10 * gram.shape[0] * float(jnp.finfo(gram.dtype).eps) if rtol is None else rtol
    kept = values > rtol * values[-1]
    return Spectrum(jnp.where(kept, values, 0), vectors, vectors.T @ target, kept)


def smallest(values: Float[Array, " R"], padding: Int[Array, ""]) -> Float[Array, ""]:
    """Return the smallest eigenvalue of the rows that are examples.

    Args:
        values: eigenvalues of a Gram matrix in ascending order.
        padding: how many of its rows are zero; each gives an eigenvalue of zero, and these come first.
    """
    return values[padding]


def minimiser(spec: Spectrum) -> Float[Array, " R"]:
    """The minimiser of Q nearest the average, θ* = θ̄ + Aᵀu, as its coefficients u = K⁺ c."""
    return spec.vectors @ (spec.kept * spec.target / jnp.where(spec.kept, spec.values, 1))


def remaining(spec: Spectrum, step_size: float | Array, steps: int | Array) -> Float[Array, " R"]:
    """(1 − ηλ_k)^T: the share of eigendirection k that T steps on ½Q leave to go; 1 in the null space."""
    return (1 - step_size * spec.values) ** steps


def iterate(spec: Spectrum, step_size: float | Array, steps: int | Array) -> Float[Array, " R"]:
    """Coefficients u of θ_T = θ̄ + Aᵀu after T gradient steps θ ← θ − η ½∇Q from the average, without taking them."""
    done = (1 - remaining(spec, step_size, steps)) / jnp.where(spec.kept, spec.values, 1)
    return spec.vectors @ (spec.kept * done * spec.target)


def objective(spec: Spectrum, u: Float[Array, " R"]) -> Float[Array, ""]:
    """Q(θ̄ + Aᵀu) = ‖Ku − c‖²."""
    return jnp.sum((spec.values * (spec.vectors.T @ u) - spec.target) ** 2)


def distance(spec: Spectrum, u: Float[Array, " R"]) -> Float[Array, ""]:
    """‖Aᵀu‖, how far θ̄ + Aᵀu is from the average: √(uᵀKu)."""
    return jnp.sqrt(jnp.sum(spec.values * (spec.vectors.T @ u) ** 2))


def largest_step(spec: Spectrum) -> Float[Array, ""]:
    """1/λ_max, the step size up to which Lemma 1 of 2403.12329 promises convergence."""
    return 1 / spec.values[-1]
