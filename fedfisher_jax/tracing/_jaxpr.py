"""A function's jaxpr as one flat list of equations, which can be searched and evaluated with replacements.

The capture of layers and the rewriting of convolutions both read a user's function this way, so that no wrapper of ours
ever stands around a user's layers.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from .. import _compat


class Equation(NamedTuple):
    """One primitive applied to variables, which are integers."""

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scope: str = ""  # names of the modules that it stands in, where the user's framework gives them

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.primitive.name


class Program(NamedTuple):
    """A flat jaxpr: `avals[v]` is variable v's shape and type, `constants` the variables known when tracing."""

    equations: tuple[Equation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: dict[int, Any]
    avals: dict[int, Any]


Replacement = Callable[[list[Any]], Sequence[Any]]


def trace(function: Callable, *args: Any) -> Program:
    """Trace `function` at arguments like `args` into a flat program, whose inputs are the flattened arguments."""
    closed = jax.make_jaxpr(function)(*args)
    equations: list[Equation] = []
    constants: dict[int, Any] = {}
    avals: dict[int, Any] = {}

    def new(aval: Any) -> int:
        avals[len(avals)] = aval
        return len(avals) - 1

    def constant(value: Any, aval: Any) -> int:
        variable = new(aval)
        constants[variable] = value
        return variable

    def inline(jaxpr: Any, consts: Sequence[int], inputs: Sequence[int], within: str = "") -> list[int]:
        names = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> int:
            return constant(atom.val, atom.aval) if _compat.is_literal(atom) else names[atom]

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            scope = "/".join(filter(None, (within, _compat.scope(eqn))))
            if (body := _compat.called(eqn)) is not None:
                inner, values = body
                consts_inside = [constant(v, var.aval) for v, var in zip(values, inner.constvars, strict=True)]
                results = inline(inner, consts_inside, operands, scope)
            else:
                results = [new(var.aval) for var in eqn.outvars]
                equations.append(Equation(eqn.primitive, eqn.params, tuple(operands), tuple(results), scope))
            names |= dict(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    consts = [constant(v, var.aval) for v, var in zip(closed.consts, closed.jaxpr.constvars, strict=True)]
    inputs = tuple(new(var.aval) for var in closed.jaxpr.invars)
    outputs = tuple(inline(closed.jaxpr, consts, inputs))
    return Program(tuple(equations), inputs, outputs, constants, avals)


def evaluate(program: Program, args: Sequence[Any], replacements: dict[int, Replacement] | None = None) -> list[Any]:
    """Run the program on flat arguments; `replacements[i]` computes equation i's outputs in place of its primitive."""
    values = environment(program, args, replacements)
    return [values[v] for v in program.outputs]


def environment(
    program: Program, args: Sequence[Any], replacements: dict[int, Replacement] | None = None
) -> dict[int, Any]:
    """Run the program as `evaluate` does, and give the values of all its variables."""
    values = dict(program.constants) | dict(zip(program.inputs, args, strict=True))
    for position, equation in enumerate(program.equations):
        operands = [values[v] for v in equation.inputs]
        if replacements and position in replacements:
            results = replacements[position](operands)
        else:
            results = _compat.bind(equation.primitive, operands, equation.params)
        values |= dict(zip(equation.outputs, results, strict=True))
    return values


def uses(program: Program) -> dict[int, list[int]]:
    """List for each variable the positions of the equations that read it, once per reading; −1 is the result."""
    readers: dict[int, list[int]] = {v: [] for v in program.avals}
    for position, equation in enumerate(program.equations):
        for variable in equation.inputs:
            readers[variable].append(position)
    for variable in program.outputs:
        readers[variable].append(-1)
    return readers


def leading_to(program: Program, targets: Sequence[int]) -> set[int]:
    """Find the positions of the equations on which one of `targets` depends."""
    needed, wanted = set(), set(targets)
    for position in reversed(range(len(program.equations))):
        if wanted.intersection(program.equations[position].outputs):
            needed.add(position)
            wanted.update(program.equations[position].inputs)
    return needed


def depends_on(program: Program, sources: Sequence[int]) -> set[int]:
    """Find the variables whose value depends on one of `sources`."""
    reached = set(sources)
    for equation in program.equations:
        if reached.intersection(equation.inputs):
            reached.update(equation.outputs)
    return reached
