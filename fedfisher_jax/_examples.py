"""A client's examples: a row of indices into arrays that all clients share."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ._compat import Tracer, standard_promotion, vary, varying
from ._trees import array, arrays, count_rows, pick, wide

PyTree = Any


class Examples(NamedTuple):
    """The first `size` entries of `indices` are this client's rows of `x` and `y`; the rest is padding.

    Stays valid under `vmap(in_axes=Examples(None, None, 0, 0))`: data lie on the device once, clients are rows of
    indices.
    """

    x: Any  # [N, ...], or a tree of such arrays for a model of several inputs
    y: Any  # [N, ...], or None where nothing reads them
    indices: Any  # int [n]
    size: Any  # int scalar, at most n


class Batch(NamedTuple):
    """Some examples; where `mask` is false the row is padding."""

    x: Any
    y: Any
    mask: Bool[Array, " b"]
    position: Int[Array, " b"]  # place in the client's row of indices: what random keys are folded with

    def zeroed(self, tree: PyTree) -> PyTree:
        """Put zero in the rows of padding, in leaves [b, ...]."""
        return jax.tree.map(lambda leaf: jnp.where(self._along(leaf), leaf, 0), tree)

    def sound(self, tree: PyTree) -> PyTree:
        """Put the first row in those of padding, which may hold anything, even what is not finite."""
        return jax.tree.map(lambda leaf: jnp.where(self._along(leaf), leaf, leaf[:1]), tree)

    def _along(self, leaf: Any) -> Any:
        return self.mask.reshape(-1, *[1] * (leaf.ndim - 1))


def examples(x: Any, y: Any = None, mask: Any = None) -> Examples:
    """Make one client of all of `x` and `y`, or of those examples where `mask` holds.

    Args:
        x: [N, ...] inputs: an array, or a dictionary or tuple of arrays for a model that takes one.
        y: [N, ...] targets; None where nothing reads them.
        mask: [N] booleans; all examples by default.

    Raises:
        ValueError: lengths differ, there is no example, or integers are beyond what JAX's types hold. A mask that is
            traced is not looked into.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> data = ff.examples(jnp.ones((4, 2)), mask=jnp.asarray([True, False, True, False]))
        >>> int(data.size), data.indices[:2].tolist()
        (2, [0, 2])
    """
    x = arrays("x", x)
    count = count_rows("x", x)
    y = None if y is None else array("y", y)
    if y is not None and y.shape[:1] != (count,):
        raise ValueError(f"y: got shape {y.shape}, expected {count} targets, one for each example of x")
    if mask is None:
        return Examples(x, y, jnp.arange(count), jnp.asarray(count))
    kept = jnp.asarray(mask, bool)
    if kept.shape != (count,):
        raise ValueError(f"mask: got shape {kept.shape}, expected ({count},)")
    if not isinstance(kept, Tracer) and not kept.any():
        raise ValueError("mask: got no example, expected at least one")
    return Examples(x, y, jnp.argsort(~kept, stable=True), kept.sum())


def take(data: Examples, start: Any, batch_size: int) -> Batch:
    """Take the examples at places start … start + batch_size − 1 of the client's row, masked past its size."""
    position = start + jnp.arange(batch_size)
    rows = data.indices[jnp.clip(position, 0, data.size - 1)]  # never a row that is masked out, whatever it holds
    targets = None if data.y is None else data.y[rows]
    return Batch(pick(data.x, rows), targets, position < data.size, position)


def known(y: Any) -> Any:
    """Return targets that are about to be read.

    Raises:
        ValueError: there are none.
    """
    if y is None:
        raise ValueError("y: got None, expected targets: examples without them serve only what reads none")
    return y


def require_whole(name: str, number: Any, least: int) -> None:
    """Refuse what is no whole number of at least `least`; what is traced is not looked at.

    Raises:
        ValueError: what was given, by its name.
    """
    if isinstance(number, Tracer):
        return
    try:
        right = operator.index(number) >= least
    except TypeError:
        right = False
    if not right:
        raise ValueError(f"{name}: got {number}, expected a whole number of at least {least}")


def require_batch_size(batch_size: int) -> None:
    """Refuse batches of nothing.

    Raises:
        ValueError: a batch size that is no whole number of at least 1.
    """
    require_whole("batch_size", batch_size, 1)


@standard_promotion
def mean_over_batches(
    function: Callable[[Batch], PyTree], data: Examples, batch_size: int, count: Any = None
) -> PyTree:
    """Add up `function(batch)` over the client's batches and divide by the number of its examples.

    Padding costs nothing outside `vmap`. The result has `wide` types: a narrow running sum loses what is added late.

    Args:
        function: batch → pytree of real sums over the batch.
        data: the client's examples.
        batch_size: examples at a time, at most.
        count: what to divide by, in place of the number of examples.

    Raises:
        ValueError: a batch size below 1.
    """
    require_batch_size(batch_size)
    count = jnp.asarray(data.size if count is None else count)
    batch_size = min(batch_size, data.indices.shape[0])

    def add(step: Any, total: PyTree) -> PyTree:
        new = function(take(data, step * batch_size, batch_size))
        return jax.tree.map(lambda old, leaf: old + leaf.astype(old.dtype), total, new)

    shapes = jax.eval_shape(lambda: function(take(data, 0, batch_size)))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, wide(s.dtype)), shapes)
    zeros = vary(zeros, varying((shapes, data.size)))
    total = jax.lax.fori_loop(0, -(-data.size // batch_size), add, zeros)
    return jax.tree.map(lambda leaf: leaf / count.astype(leaf.dtype), total)
