"""What the server sees of a client: its payload, a compressed one, a sum over clients, or a noisy one.

A view is a payload again, so every attack takes every view. The differentially private one is `noise.privatise`.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from ..._trees import scaled
from ...curvature import Capture
from ...merge._fold import check_payload, lift
from ...merge._rule import Payload, Rule
from ...payload import About, dumps, fingerprint, loads
from ...payload.plan import fit
from .._secure_merge import total


def quantised(payload: Payload, rule: str, likelihood: str, start: object, captured: Capture, budget: float) -> Payload:
    """Make the payload as it is after a file of at most `budget` times 32 bits per parameter was read.

    Args:
        payload: one client's.
        rule: its name, which the file tells.
        likelihood: likewise.
        start: parameters that all clients began with.
        captured: the model's layers.
        budget: multiple of FedAvg's 32 bits per parameter.

    Raises:
        ValueError: the budget is too small for the payload.
    """
    kind = None if payload.kind is None else payload.kind.name
    about = About(rule, likelihood, fingerprint(start), kind)
    data = dumps(payload, about, fit(payload, about, budget))
    return loads(data, start, layers=captured.layers)[0]


def summed(rule: Rule, payloads: Sequence[Payload]) -> Payload:
    """Make what a secure sum leaves: weighted means of parameters and Fishers, in fixed point under masks.

    The masks are really drawn, and cancel. The protocol tells a little more than is returned, which the attacks here
    do not use: the scale of each client's arrays (`secure_merge.total`) and, by rules with a Fisher, Σ wFθ and Σ wθᵀFθ.

    Raises:
        ValueError: the rule stacks payloads, so it cannot be summed; fewer than two payloads, or unequal ones.
    """
    if rule.combine != "add":
        raise ValueError(f"rule: {rule.name} needs each client's payload, expected one whose contributions add up")
    if len(payloads) < 2:
        raise ValueError(f"payloads: expected at least two, got {len(payloads)}")
    for number, payload in enumerate(payloads):
        check_payload(payload, payloads[0], f"payloads[{number}]")
    sums = total([lift(rule, payload) for payload in payloads])
    share = 1 / sums["weight"]
    fisher = scaled(share, sums["fisher"]) if "fisher" in sums else None
    return Payload(jnp.asarray(sums["weight"]), scaled(share, sums["params"]), fisher)
