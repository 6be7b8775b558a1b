"""Parameters that nobody trains, left out of what is trained, measured and merged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ._trees import paths as paths_of

PyTree = Any


class Trainable(NamedTuple):
    """A model whose frozen parameters are part of its function.

    Attributes:
        apply: (trained parameters, x) → outputs.
        params: the parameters that are trained, by path.
        whole: trained parameters → the tree of all of them.
    """

    apply: Callable[[Any, Any], Any]
    params: dict[str, Any]
    whole: Callable[[Any], Any]


def trainable(apply: Callable, params: PyTree, where: Callable[[str], bool]) -> Trainable:
    """Leave out of a model's parameters those that are not trained.

    A rule that weighs parameters by Kronecker or full Fishers moves parameters on which all clients agree, since Q's
    minimum lies there: a block couples a weight with its bias. Who froze a layer wants it to stay, so frozen
    parameters belong into the function. Train, measure and merge `params` of the result with `apply` of the result.
    Under `jax.jit` frozen parameters are constants, which XLA folds: with many, call a rule's `measure` as it is.

    Args:
        apply: (params, x) → outputs.
        params: all parameters; the frozen ones have their final values.
        where: path of a parameter, its keys joined by "/" → whether it is trained.

    Raises:
        ValueError: `where` holds for no parameter, or two parameters have one path.

    Example:
        >>> import jax.numpy as jnp, fedfisher_jax as ff
        >>> params = {"body": jnp.ones((3, 2)), "head": jnp.zeros((2, 2))}
        >>> model = ff.trainable(lambda p, x: x @ p["body"] @ p["head"], params, lambda path: path == "head")
        >>> list(model.params), sorted(model.whole(model.params))
        (['head'], ['body', 'head'])
    """
    leaves, treedef = jax.tree.flatten(params)
    paths = paths_of(params)
    chosen = {path: leaf for path, leaf in zip(paths, leaves, strict=True) if where(path)}
    if not chosen:
        raise ValueError(f"where: expected it to hold for a parameter, but it does for none of {', '.join(paths)}")

    def whole(trained: dict[str, Any]) -> PyTree:
        return treedef.unflatten([trained.get(path, leaf) for path, leaf in zip(paths, leaves, strict=True)])

    return Trainable(lambda trained, x: apply(whole(trained), x), chosen, whole)
