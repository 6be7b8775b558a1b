"""Past rounds as one more client: it stayed at the round's start, with the running mean of earlier rounds' Fishers.

So parameters that clients of past rounds care about are held, as the online Laplace approximation does (1805.07810).
After round k the mean is F̄ = Σ_i (1 − β) β^(k − i) F_i / (1 − β^k), F_i = Σ w_m F_m of round i's clients.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .._trees import scaled, weighted_sum, wide
from ..curvature import Diagonal, Kronecker
from ._fold import combine, lift
from ._past_fishers import PastFishers
from ._rule import Carry, Merged, Payload, Rule, exchanges

PyTree = Any


def with_past(rule: Rule, past: PastFishers, like: Diagonal | Kronecker) -> Rule:
    """Make a rule that remembers past rounds' Fishers, over rounds alone: FedFish's or FedFisher's.

    Diagonals are averaged exactly. The sides of Kronecker factors are averaged, so the product of two means stands for
    the mean of products: 5 % off in Frobenius norm in the example of tests/merge/test_past_client.py. With FedFish it
    cost accuracy where it was tried (docs/fisher-over-rounds.md), so no rule has it unless asked. A robust rule with a
    memory is `robust(with_past(…), …)`: the other way round the past would be one more client to distrust.

    Args:
        rule: one exchange, whose clients send diagonals to be summed, or Kronecker factors.
        past: ρ and β; the past weighs ρ times a round's clients together. Its rank is not read.
        like: a client's Fisher, or its shapes as `jax.eval_shape` gives them.

    Raises:
        ValueError: several exchanges, a rule that has a memory already, or one that does not take such a Fisher.

    Example:
        >>> import jax, jax.numpy as jnp, fedfisher_jax as ff
        >>> rule, start = ff.fedfish(lambda w, x: x @ w, ff.gaussian()), jnp.zeros((1, 1))
        >>> past = ff.merge.PastFishers(rho=1.0)
        >>> sent = [rule.measure(ff.Update(start + 4.0, start), ff.examples(jnp.ones((1, 1))), jax.random.key(0))]
        >>> remembering = ff.merge.with_past(rule, past, sent[0].statistics)
        >>> summary = ff.merge.lift(rule, sent[0], start)
        >>> kept = remembering.carry.init(start)
        >>> for _ in range(2):  # the second round's client has as much to say as the past, which stays where it is
        ...     merged, kept = remembering.carry.solve(summary, start, kept)
        ...     print(f"{merged.params.item():.3f}")
        4.000
        2.000
    """
    takes = () if rule.takes is None else rule.takes.types
    if len(exchanges(rule)) > 1 or rule.carry is not None or not isinstance(like, takes):
        raise ValueError(f"rule: got {rule.name}, expected one exchange without a memory that takes {like.name}")
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide(leaf.dtype)), like)

    def solve(summary: Any, start: PyTree, kept: tuple[Any, jax.Array]) -> tuple[Merged, Any]:
        adds, (mean, mass) = rule.combine == "add", kept
        weights = summary["weight"] if adds else summary.weight
        total = jnp.sum(weights)
        known = scaled(1 / jnp.where(mass > 0, mass, 1), mean)
        stayed = lift(rule, Payload(jnp.where(mass > 0, past.rho, 0) * total, start, known), start)
        if adds:
            here = scaled(1 / total, summary["fisher"])
        else:
            here = weighted_sum(weights / total, summary.statistics)
            stayed = jax.tree.map(lambda leaf: leaf[None], stayed._replace(kind=summary.kind))
        more = combine(rule, summary, stayed)
        mean = jax.tree.map(lambda old, new: past.decay * old + (1 - past.decay) * new, mean, here)
        return rule.solve(more, start), (mean, past.decay * mass + 1 - past.decay)

    return rule._replace(carry=Carry(lambda params: (zeros, jnp.zeros((), wide(jnp.float32))), solve))
