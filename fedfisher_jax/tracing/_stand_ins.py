"""Random numbers in the place of a program's arguments, and of constants that are not known yet."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._compat import Tracer
from ._jaxpr import Program


def stand_ins(program: Program) -> tuple[list[Any], Program]:
    """Draw arguments of a program's shapes, and the program with numbers for the values of a function being traced.

    The numbers are always the same. Matrices keep activations of unit size; integers are 0 or 1, which
    index anything; masks leave nothing out.
    """
    random = np.random.default_rng(0)
    arguments = [_drawn(program.avals[v], random) for v in program.inputs]
    constants = {  # equal shapes get equal numbers, in any program that closes over them
        v: _drawn(program.avals[v], np.random.default_rng(1)) if isinstance(value, Tracer) else value
        for v, value in program.constants.items()
    }
    return arguments, program._replace(constants=constants)


def _drawn(aval: Any, random: np.random.Generator) -> Any:
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        with jax.ensure_compile_time_eval():
            return jax.random.split(jax.random.key(0), aval.shape) if aval.shape else jax.random.key(0)
    if aval.dtype == bool:
        return np.ones(aval.shape, bool)  # a mask that leaves nothing out
    if jnp.issubdtype(aval.dtype, jnp.integer):
        return random.integers(0, 2, aval.shape).astype(aval.dtype)
    if not jnp.issubdtype(aval.dtype, jnp.inexact):
        return np.zeros(aval.shape, aval.dtype)
    fan_in = math.prod(aval.shape[:-1]) if len(aval.shape) > 1 else 1
    return np.asarray(random.normal(size=aval.shape) / math.sqrt(max(fan_in, 1)), aval.dtype)
