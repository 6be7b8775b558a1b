"""What public functions ask of their arguments before any work: "name: got X, expected Y" for one of the wrong kind.

Traced values are not looked into, so that nothing of this costs anything under `jit`.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._compat import Tracer
from ._examples import Examples, known
from ._likelihood import Likelihood, check_targets
from ._trees import outline

PyTree = Any


def require_likelihood(likelihood: Any) -> None:
    """Refuse what is no likelihood, such as the function that makes one.

    Raises:
        TypeError: what was given.
    """
    if not isinstance(likelihood, Likelihood):
        given = getattr(likelihood, "__name__", type(likelihood).__name__)
        call = f"; call it: {given}()" if callable(likelihood) else ""
        raise TypeError(f"likelihood: got {given}, expected a Likelihood, such as categorical(){call}")


def require_known(options: Iterable[str], known: Sequence[str]) -> None:
    """Refuse options of unknown names.

    Raises:
        TypeError: the first such option, and the known ones.
    """
    for name in options:
        if name not in known:
            raise TypeError(f"option: got {name!r}, expected one of {', '.join(known)}")


def require_examples(data: Any) -> None:
    """Refuse what is no `Examples`, such as a pair of arrays.

    Raises:
        TypeError: what was given.
    """
    if not isinstance(data, Examples):
        raise TypeError(f"data: got {type(data).__name__}, expected Examples: examples(x, y) makes them of arrays")


def require_weights(weights: Any) -> None:
    """Refuse weights of clients that are negative or not finite, or of which none is positive; None is none given.

    Raises:
        ValueError: what was given.
    """
    if weights is None or any(isinstance(weight, Tracer) for weight in jax.tree.leaves(weights)):
        return
    given = np.asarray(weights)
    if not (given >= 0).all() or not 0 < given.sum(dtype=float) < np.inf:
        raise ValueError(f"weights: got {str(given.tolist())[:60]}, expected none below zero and a positive sum")


def require_optimizer(optimizer: Any, name: str = "optimizer") -> None:
    """Refuse what is no optax optimiser, such as a learning rate.

    Raises:
        TypeError: what was given.
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        given = f"{type(optimizer).__name__} {str(optimizer)[:40]}"
        raise TypeError(f"{name}: got {given}, expected an optax optimiser, such as optax.sgd(0.1)")


def require_at_least(name: str, value: Any, least: int) -> None:
    """Refuse a setting that is too small or not finite; one that is traced is not looked at.

    Raises:
        ValueError: its name, the value and what is allowed.
    """
    if not isinstance(value, Tracer) and not least <= value < float("inf"):
        raise ValueError(f"{name}: got {value}, expected a finite number of at least {least}")


def require_arrays(params: PyTree, name: str = "params") -> None:
    """Refuse parameters that are no arrays, or none at all.

    Args:
        params: the parameters.
        name: what messages call them.

    Raises:
        TypeError: the first leaf that is none, by its path.
    """
    found = jax.tree.leaves_with_path(params)
    if not found:
        raise TypeError(f"{name}: got {type(params).__name__} without arrays, expected at least one")
    for path, leaf in found:
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            given = getattr(leaf, "__name__", type(leaf).__name__)
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)}: got {given}, expected an array (of a number jnp.asarray makes "
                "one; of a module pass the arrays alone, and put the rest into apply)"
            )


def require_params(params: PyTree, name: str = "params") -> None:
    """Refuse parameters that are no arrays of floating-point numbers, or none at all.

    Args:
        params: the parameters.
        name: what messages call them.

    Raises:
        TypeError: the first leaf that is none, by its path.
    """
    require_arrays(params, name)
    for path, leaf in jax.tree.leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{name}{jax.tree_util.keystr(path)}: got {leaf.dtype}, expected floating-point numbers")


@contextlib.contextmanager
def applying(x: Any) -> Iterator[None]:
    """Say which examples a model was given that cannot take them.

    Raises:
        ValueError: what the model says, and the examples' shape.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        shapes = ", ".join(str(tuple(jnp.shape(leaf)[1:])) for leaf in jax.tree.leaves(x))
        raise ValueError(f"x: got examples of shape {shapes}, which apply fails on: {said}") from error


def require_targets(likelihood: Likelihood, apply: Any, params: PyTree, data: Examples, *, empty: bool = False) -> None:
    """Refuse targets that do not fit the model's outputs, where arrays are there to be looked at.

    Raises:
        ValueError: as `check_targets`.
    """
    known(data.y)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, data))):
        return
    rows = np.asarray(data.indices)[: int(data.size)]
    with applying(data.x):
        outputs = jax.eval_shape(apply, params, outline(data.x, len(rows)))
    check_targets(likelihood, outputs.shape, np.asarray(data.y)[rows], empty=empty)
