"""What may change with a release of JAX: how jaxprs and tracers are written. Elsewhere JAX is used as it documents it.

JAX promises little about jaxprs. Everything that is read from one beside its equations' variables is therefore here,
and `make test-newest` runs what stands on it with the newest JAX.
"""

from collections.abc import Sequence
from typing import Any

from jax.core import Tracer as Tracer
from jax.extend.core import ClosedJaxpr, Literal

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


def bind(primitive: Any, operands: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
    """Apply a primitive with the parameters that its equation in a jaxpr has; the results always are a sequence."""
    results = primitive.bind(*operands, **primitive.get_bind_params(params))
    return list(results) if primitive.multiple_results else [results]  # a `shard_map` gives a tree of its own
