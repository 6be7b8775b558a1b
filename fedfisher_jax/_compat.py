"""What may change with a release of JAX: how jaxprs and tracers are written. Elsewhere JAX is used as it documents it.

JAX promises little about jaxprs. Everything that is read from one beside its equations' variables is therefore here,
and `make test-newest` runs what stands on it with the newest JAX.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
from jax.core import Tracer as Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

Function = TypeVar("Function", bound=Callable)

# Calls whose body is the same program written elsewhere, by all their names so far; anything else that holds a jaxpr
# (loops, branches, custom derivatives) is one opaque equation.
INLINED = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")


def is_literal(atom: Any) -> bool:
    """Tell whether an equation's operand is a constant, with its value in `val`, and no variable."""
    return isinstance(atom, Literal)


def called(equation: Any) -> tuple[Any, Sequence[Any]] | None:
    """Return the jaxpr that an equation calls and the values of its constants; None where the equation is opaque."""
    body = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    if equation.primitive.name not in INLINED or body is None:
        return None
    return (body.jaxpr, body.consts) if isinstance(body, ClosedJaxpr) else (body, [])


def bodies(equation: Any) -> list[Any]:
    """List the jaxprs that an equation holds, whatever it does with them."""
    held = [part for value in equation.params.values() for part in (value if isinstance(value, tuple) else (value,))]
    return [p.jaxpr if isinstance(p, ClosedJaxpr) else p for p in held if isinstance(p, (ClosedJaxpr, Jaxpr))]


def scope(equation: Any) -> str:
    """Return the names of `jax.named_scope` that an equation stands in, as Flax's modules have, joined by "/"."""
    return str(equation.source_info.name_stack)


def bind(primitive: Any, operands: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
    """Apply a primitive with the parameters that its equation in a jaxpr has; the results always are a sequence."""
    results = primitive.bind(*operands, **primitive.get_bind_params(params))
    return list(results) if primitive.multiple_results else [results]  # a `shard_map` gives a tree of its own


def varying(tree: Any) -> set[str]:
    """Name the axes of a `shard_map` along which an array of a tree (or of its shapes) differs between devices."""
    kinds = [leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf) for leaf in jax.tree.leaves(tree)]
    marks = [getattr(kind, "manual_axis_type", None) for kind in kinds]
    return {axis for mark in marks if mark is not None for axis in mark.varying}


def vary(tree: Any, axes: set[str]) -> Any:
    """Mark all arrays of a tree as differing along these axes.

    A loop's first values must be so if its last ones are; and the gradient in what does not differ is a sum over the
    axes' devices.
    """

    def one(leaf: Any) -> Any:
        missing = tuple(sorted(axes - varying(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(one, tree) if axes else tree


def standard_promotion(function: Function) -> Function:
    """Let a function mix types by JAX's standard rules, as this library does on purpose, whatever the caller's switch.

    `jax_numpy_dtype_promotion=strict` is a check of the caller's own code.
    """

    @functools.wraps(function)
    def standard(*args: Any, **options: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **options)

    return cast(Function, standard)
