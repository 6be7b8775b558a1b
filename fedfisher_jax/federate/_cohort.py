"""The clients of a federation as one record: the arrays that all share, and each client's rows of them.

The same record is a simulated federation, a round's sample of it, and one silo with its own examples. Rows lie one
client after the other, so that memory follows the number of examples and not the longest client.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _doors
from .._examples import Examples
from .._likelihood import Likelihood
from .._trees import array, arrays, count_rows, pick

PyTree = Any
SHORTEST, RATIO = 256, 16  # rows come in lengths that differ by this ratio, since each is a program of its own


class Client(NamedTuple):
    """The place of a client in a cohort: integers, or arrays [M] for many clients."""

    number: Any  # random draws depend on it alone
    start: Any  # where its rows begin
    size: Any  # its number of examples


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cohort:
    """The clients of a federation and their examples.

    Attributes:
        x: [N, ...] inputs of all clients, or a tree of such arrays.
        y: [N, ...] targets.
        rows: [T] rows of x and y, one client after the other.
        clients: where each client's rows are, [M]; None for the shared arrays alone.
        lengths: static; a client's rows are read into the shortest of these lengths that holds them, ascending.
    """

    x: Any
    y: Any
    rows: Any
    clients: Client | None
    lengths: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def sizes(self) -> Any:
        """Each client's number of examples, [M]."""
        return self.members.size

    @property
    def members(self) -> Client:
        """The clients' places, with a leading axis [M].

        Raises:
            ValueError: these are the shared arrays alone.
        """
        if self.clients is None:
            raise ValueError("cohort: expected one with clients, got shared arrays alone")
        return self.clients

    @property
    def shared(self) -> "Cohort":
        """The shared arrays without the clients: what a program that runs for each client reads."""
        return dataclasses.replace(self, clients=None)

    def sample(self, chosen: Any) -> "Cohort":
        """The cohort of the clients at the places `chosen` [K], in this order; `chosen` may be traced."""
        return dataclasses.replace(self, clients=pick(self.members, chosen))


def cohort(
    x: Any, y: Any, parts: Sequence[np.ndarray], *, numbers: Sequence[int] | None = None, length: int = 0
) -> Cohort:
    """Make a cohort from the index arrays of a split.

    Args:
        x: [N, ...] inputs of all clients: an array, or a dictionary or tuple of arrays.
        y: [N, ...] targets of all clients.
        parts: each client's rows of x and y, as integer arrays.
        numbers: the clients' numbers, on which their random draws depend; default 0, 1, …
        length: rows are read into arrays of at least this length. Results do not depend on it. With one length, all
            splits of a data set run the same compiled programs.

    Raises:
        ValueError: no client, one without examples, or with rows that are not whole numbers from 0 to N − 1; it is
            named. Also where `numbers` does not hold one whole number from 0 to 2³¹ − 1 for each client, all of them
            different, or where integers of x or y are beyond what JAX's types hold.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> two = ff.cohort(np.eye(5), np.arange(5), [np.array([0, 3]), np.array([1, 2, 4])])
        >>> two.sizes.tolist()
        [2, 3]
    """
    if not len(parts):
        raise ValueError("parts: expected at least one client, got none")
    x = arrays("x", x)
    count = count_rows("x", x)
    if np.shape(y)[:1] != (count,):
        raise ValueError(f"y: expected {count} targets, one for each row of x, got shape {np.shape(y)}")
    rows = [_checked(np.asarray(part), count, number) for number, part in enumerate(parts)]
    named = np.arange(len(rows)) if numbers is None else _numbers(np.asarray(numbers), len(rows))
    sizes = np.array([len(part) for part in rows], np.int32)
    starts = (np.cumsum(sizes) - sizes).astype(np.int32)
    clients = Client(named.astype(np.int32), starts, sizes)
    lengths = _lengths(sizes, length)
    return Cohort(x, array("y", y), jnp.asarray(np.concatenate(rows), jnp.int32), clients, lengths)


def with_examples(everyone: Cohort, client: Client, function: Callable[[Examples], PyTree]) -> PyTree:
    """Apply `function` to one client's examples in the shortest row that holds them: small clients cost little.

    Under `vmap` every length is tried, since all clients of a group are one program.
    """

    def read(length: int) -> PyTree:
        places = client.start + jnp.minimum(jnp.arange(length), client.size - 1)
        return function(Examples(everyone.x, everyone.y, everyone.rows[places], client.size))

    branches = [partial(read, length) for length in everyone.lengths]
    if len(branches) == 1:
        return branches[0]()
    return jax.lax.switch(jnp.searchsorted(jnp.asarray(everyone.lengths), client.size), branches)


def by_length(everyone: Cohort) -> list[tuple[Cohort, np.ndarray]]:
    """Cut the cohort into ones whose rows have one length, each with its clients' places; for groups under `vmap`."""
    which = np.searchsorted(everyone.lengths, np.asarray(everyone.sizes))
    found = []
    for number, length in enumerate(everyone.lengths):
        places = np.flatnonzero(which == number)
        if places.size:
            found.append((dataclasses.replace(everyone.sample(places), lengths=(length,)), places))
    return found


def _lengths(sizes: np.ndarray, least: int) -> tuple[int, ...]:
    lengths = [max(int(sizes.max()), least)]
    while (shorter := -(-lengths[0] // RATIO)) >= max(SHORTEST, least) and sizes.min() <= shorter:
        lengths.insert(0, shorter)
    return tuple(lengths)


def _numbers(named: np.ndarray, count: int) -> np.ndarray:
    if named.shape != (count,):
        raise ValueError(f"numbers: got shape {named.shape}, expected ({count},), one for each client")
    shown = str(named.tolist())[:60]
    if not np.issubdtype(named.dtype, np.integer) or named.min() < 0 or named.max() >= 2**31:
        raise ValueError(f"numbers: got {shown}, expected whole numbers from 0 to {2**31 - 1}")
    if len(np.unique(named)) < count:
        raise ValueError(f"numbers: got {shown}, expected different ones, or clients have the same random draws")
    return named


def _checked(part: np.ndarray, count: int, number: int) -> np.ndarray:
    if part.ndim != 1 or not part.size:
        raise ValueError(f"parts: client {number} has rows of shape {part.shape}, expected a list of at least one")
    if not np.issubdtype(part.dtype, np.integer):
        raise ValueError(
            f"parts: client {number} has rows of {part.dtype}, expected whole numbers (of a mask: nonzero)"
        )
    if part.min() < 0 or part.max() >= count:
        bad = part[(part < 0) | (part >= count)][0]
        raise ValueError(f"parts: client {number} has row {bad}, expected rows from 0 to {count - 1}")
    return part


def require_targets(likelihood: Likelihood, apply: Callable, params: PyTree, everyone: Cohort) -> None:
    """Refuse targets that do not fit the model's outputs, where the arrays are there to be looked at: not under `jit`.

    Raises:
        ValueError: as `check_targets`.
    """
    rows = everyone.rows
    _doors.require_targets(likelihood, apply, params, Examples(everyone.x, everyone.y, rows, np.shape(rows)[0]))
