"""FIPA (arXiv 2601.13608): Gauss–Newton steps in the span of the clients' top Fisher eigenvectors.

Each client sends its step Δ_m and the top eigenpairs (U_m, Λ_m) of its Fisher at the round's start; with
H = Σ w_m U_m Λ_m U_mᵀ, b = Σ w_m U_m Λ_m U_mᵀ Δ_m and w_m = N_m / N the server moves by

    H⁺ b, or with damping (H + τ)⁻¹ b,                    where nothing outside of the span moves ("stay"), or
    (H + τ)⁻¹ (b + τ Σ w_m Δ_m), outside of it Σ w_m Δ_m, which tends to FedAvg as τ grows ("fedavg").

Where the sampled clients' eigenvectors do not overlap, H⁺ follows each one's drift in full. Over rounds, H + ρ H̄ may
take H's place, H̄ the running mean of past rounds' H: directions that clients of past rounds care about are held.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._likelihood import Likelihood
from ..curvature import Subspace
from ._joint_step import PAPER_FIPA, FipaStep, joint_step
from ._measure import MeasureFisher, require_options
from ._past_fishers import PastFishers, no_past, remembered, weighed
from ._rule import Carry, Merged, Payload, Rule, moved

PyTree = Any


def public_fipa_step(gamma: float = 1.0, tau: float = 0.1) -> FipaStep:
    """Make the step of public codes, γ τ (H + τ)⁻¹ b: τ as it is, not relative; off the span nothing moves.

    Their γ τ is 0.01 to 0.25, after a FedAvg warm-up of 200 to 1,000 rounds.

    Raises:
        ValueError: a γ or τ that is not positive.
    """
    for name, value in (("gamma", gamma), ("tau", tau)):
        if not value > 0:
            raise ValueError(f"{name}: got {value}, expected a positive number")
    return dataclasses.replace(PAPER_FIPA, tau=tau, relative=False, rate=gamma * tau)


def fipa(
    apply: Callable,
    likelihood: Likelihood,
    *,
    rank: int | None = None,
    subspace: Subspace | None = None,
    step: FipaStep = FipaStep(),
    past: PastFishers | None = None,
    **options: Any,
) -> Rule:
    """Make FIPA's rule (arXiv 2601.13608); a client sends its d parameters and r eigenpairs, r (d + 1) numbers.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what is fitted; a physics-informed network's residual is Gaussian.
        rank: the number r of eigenpairs per client, in place of the subspace's.
        subspace: rank and effort of the eigenpairs, and which parameters they cover; default `Subspace()`, over all.
        step: damping and length of the server's step. The default is damped and clipped, so that it does not explode;
            `PAPER_FIPA` is the paper's H⁺ b, which needs some rounds of FedAvg first, since it never leaves the span;
            `public_fipa_step()` is the form of public codes.
        past: the memory of past rounds' Fishers, over rounds alone; by default none.
        options: what else `MeasureFisher` takes: kind, samples, batch_size.

    Raises:
        TypeError: an unknown option.
        ValueError: a bound below the rank.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> clients = [(jnp.zeros((1, 1)), jnp.ones((1, 1))), (jnp.full((1, 1), 5.0), jnp.full((1, 1), 2.0))]  # (w, x)
        >>> rule = ff.fipa(lambda w, x: x @ w, ff.gaussian(), rank=1, step=ff.merge.PAPER_FIPA)
        >>> start = jnp.zeros((1, 1))
        >>> payloads = [rule.measure(ff.Update(w, start), ff.examples(x), jax.random.key(0)) for w, x in clients]
        >>> print(f"{ff.merge_payloads(rule, payloads, start).params.item():.4f}")  # (1² · 0 + 2² · 5) / (1² + 2²)
        4.0000
    """
    chosen = subspace or Subspace()
    if rank is not None:
        chosen = dataclasses.replace(chosen, rank=rank)
    if step.bound is not None and step.bound < chosen.rank:
        raise ValueError(f"bound: got {step.bound}, expected at least the rank, {chosen.rank}")
    require_options(options, fipa, MeasureFisher, "at")
    measure = MeasureFisher(apply, likelihood, "low_rank", subspace=chosen, at="start", **options)

    def solve(payloads: Payload, start: PyTree) -> Merged:
        found, diagnostics = joint_step(moved(payloads, start), step)
        return Merged(jax.tree.map(jnp.add, start, found), diagnostics)

    rule = Rule("fipa", measure, lambda payload, start: payload, solve, "stack", takes=measure.takes())
    if past is None:
        return rule

    def solve_on(payloads: Payload, start: PyTree, kept: Any) -> tuple[Merged, Any]:
        found, diagnostics = joint_step(moved(payloads, start), step, weighed(past, kept))
        kept = remembered(past, kept, payloads)
        told = diagnostics | {"past_dropped_trace": kept.dropped / kept.mass}
        return Merged(jax.tree.map(jnp.add, start, found), told), kept

    return rule._replace(carry=Carry(lambda params: no_past(past, params, chosen), solve_on))
