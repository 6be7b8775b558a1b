"""Merging by a rule whose contributions add up, with a server that sees their sum alone."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._compat import standard_promotion
from .._trees import named_leaves
from ..merge._fold import check_payload, lift, merge_summary, require_squares, require_taken
from ..merge._rule import Merged, Rule, require_rule
from . import _fixed_point as fixed_point
from ._secure_sum import secure_sum

PyTree = Any


def to_vector(contribution: PyTree) -> np.ndarray:
    """Write all numbers of a tree in one float64 vector."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(contribution)])


def from_vector(vector: np.ndarray, like: PyTree) -> PyTree:
    """Undo `to_vector`, in the shapes and types of `like`."""
    with np.errstate(over="ignore"):  # beyond a narrow type is infinite
        return jax.tree.map(
            lambda x, leaf: jnp.asarray(x.astype(jax.dtypes.canonicalize_dtype(leaf.dtype))), shaped(vector, like), like
        )


def shaped(vector: np.ndarray, like: PyTree) -> PyTree:
    """Undo `to_vector` in float64, in the shapes of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    pieces = np.split(vector, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return treedef.unflatten([piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)])


def total(contributions: Sequence[PyTree], **options: Any) -> PyTree:
    """Sum the clients' trees, of which the server sees the total and their scales alone.

    A Fisher may be ten orders of magnitude smaller than parameters. So every client first announces, array by array,
    how large its largest number is, as a power of two, and the largest of these sets the resolution for all.

    Args:
        contributions: a tree of floating-point arrays of each client, of equal structure, shapes and types.
        options: options of `secure_sum`.

    Raises:
        ValueError: trees that differ, numbers that are not finite, integers (whose sum could wrap), complex numbers, or
            a sum beyond an array's type; client and array are named.
        RoundVoid: too many clients dropped out.
    """
    _require_alike(contributions)
    count = len(contributions)
    announced = [scales(tree, f"contributions[{n}]") for n, tree in enumerate(contributions)]
    bits = resolution(announced, count, contributions[0])
    encoded = [fixed_point.encode(to_vector(one), count, bits) for one in contributions]
    summed = from_vector(fixed_point.decode(secure_sum(encoded, **options).total, bits), contributions[0])
    for path, leaf in named_leaves(summed):
        if not np.isfinite(np.asarray(leaf, np.float64)).all():
            raise ValueError(f"contributions: {path}: the sum is beyond {leaf.dtype}")
    return summed


def scales(contribution: PyTree, name: str = "contribution") -> list[int]:
    """List what a client announces of its tree before a sum: each array's exponent of its largest number.

    Raises:
        ValueError: numbers that are not finite; the array is named.
    """
    return [_exponent(f"{name}: {path}", leaf) for path, leaf in named_leaves(contribution)]


def resolution(announced: Sequence[Sequence[int]], clients: int, like: PyTree) -> np.ndarray:
    """Choose fraction bits of every number of a sum, int [n], as fine as each array's largest scale allows.

    Args:
        announced: `scales` of every client.
        clients: at most so many are summed.
        like: a contribution, or shapes in the place of its arrays.
    """
    sizes = [leaf.size for leaf in jax.tree.leaves(like)]
    return np.repeat([fixed_point.finest(max(each), clients) for each in zip(*announced, strict=True)], sizes)


def _exponent(name: str, leaf: Any) -> int:
    try:
        return fixed_point.exponent(np.asarray(leaf))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _require_alike(contributions: Sequence[PyTree]) -> None:
    """Refuse trees that cannot be added, leaf by leaf, without a word being lost."""
    if not contributions or not jax.tree.leaves(contributions[0]):
        raise ValueError("contributions: expected trees with at least one array, got none")
    first = named_leaves(contributions[0])
    for number, tree in enumerate(contributions):
        if jax.tree.structure(tree) != jax.tree.structure(contributions[0]):
            raise ValueError(f"contributions[{number}]: another tree than contributions[0]")
        for (path, leaf), (_, like) in zip(named_leaves(tree), first, strict=True):
            dtype = getattr(leaf, "dtype", None)
            if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
                given = type(leaf).__name__ if dtype is None else dtype
                raise ValueError(f"contributions[{number}]: {path}: got {given}, expected a floating-point array")
            if leaf.shape != like.shape or dtype != like.dtype:
                given, wanted = f"{dtype} {leaf.shape}", f"{like.dtype} {like.shape}"
                raise ValueError(f"contributions[{number}]: {path}: got {given}, expected {wanted}")


@standard_promotion
def secure_merge(rule: Rule, payloads: Sequence[Any], start: PyTree = None, **options: Any) -> Merged:
    """Merge as `merge_payloads` does, by a secure sum of clients and a server in this process.

    Sends 64 bits a number, uncompressed: masks must cancel exactly.

    Args:
        rule: one whose contributions add up (FedAvg, Fisher merging, FedFisher with a diagonal, RegMean …).
        payloads: payloads of all clients, at least two.
        start: the model that the clients were sent, where the rule reads it.
        options: options of `secure_sum`: threshold, silent, lost, dropouts; clients' numbers there start at 1.

    Raises:
        ValueError: the rule stacks payloads, one of them is refused, or the objective ends below zero.
        RoundVoid: too many clients dropped out.
    """
    require_rule(rule)
    if rule.combine != "add":
        raise ValueError(
            f"rule: {rule.name} needs each client's payload; a secure sum serves rules that add: fedavg, …"
        )
    if len(payloads) < 2:
        raise ValueError(f"payloads: expected at least two, got {len(payloads)}")
    for number, payload in enumerate(payloads):
        require_taken(rule, payload)
        check_payload(payload, payloads[0], f"payloads[{number}]")
    summary = total([lift(rule, payload, start) for payload in payloads], **options)
    return require_squares(rule, merge_summary(rule, summary, payloads[0].params, start))
