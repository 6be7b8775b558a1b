"""Merging by a rule whose contributions add up, with a server that sees their sum alone."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..merge.rule import Merged, Rule, check_payload
from . import fixed_point
from .secure_sum import secure_sum

PyTree = Any


def to_vector(contribution: PyTree) -> np.ndarray:
    """All numbers of a tree in one float64 vector."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(contribution)])


def from_vector(vector: np.ndarray, like: PyTree) -> PyTree:
    """The inverse of `to_vector`, in the shapes and types of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    pieces = np.split(vector, ends[:-1])
    shaped = [jnp.asarray(x.reshape(leaf.shape), leaf.dtype) for x, leaf in zip(pieces, leaves, strict=True)]
    return treedef.unflatten(shaped)


def secure_merge(
    rule: Rule, payloads: Sequence[Any], *, fraction_bits: int = fixed_point.FRACTION_BITS, **options: Any
) -> Merged:
    """`merge_payloads` with a secure sum in place of the plain one, clients and server in this process.

    Sends 64 bits a number, uncompressed: masks must cancel exactly.

    Args:
        rule: one whose contributions add up (FedAvg, Fisher merging, FedFisher with a diagonal, RegMean …).
        payloads: of all clients, at least two.
        fraction_bits: resolution of the sum, see `fixed_point`.
        options: of `secure_sum`: threshold, silent, lost, dropouts; clients' numbers there start at 1.

    Raises:
        ValueError: the rule stacks payloads, one of them is refused, or a number is too large for the sum.
        RoundVoid: too many clients dropped out.
    """
    if rule.combine != "add":
        raise ValueError(
            f"rule: {rule.name} needs each client's payload; a secure sum serves rules that add: fedavg, …"
        )
    if len(payloads) < 2:
        raise ValueError(f"payloads: expected at least two, got {len(payloads)}")
    for number, payload in enumerate(payloads):
        check_payload(payload, payloads[0], f"payloads[{number}]")
    lifted = [rule.lift(payload) for payload in payloads]
    encoded = [fixed_point.encode(to_vector(one), len(payloads), fraction_bits) for one in lifted]
    total = secure_sum(encoded, **options).total
    return rule.solve(from_vector(fixed_point.decode(total, fraction_bits), lifted[0]))
