"""The check of each layer when it is found: its gradient, rebuilt from activations and output gradients, is JAX's."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..tracing._jaxpr import Program, depends_on, environment
from ..tracing._stand_ins import stand_ins
from . import _pools
from ._pull_back import Capture, Site, pull_back
from ._reuse import gradient

MOST_ROUNDING = 0.2  # of any type: 10 √ε of bfloat16 is 0.9, which would let nearly everything pass


def without_bad(
    program: Program, sites: list[Site], paths: list[str], found: list
) -> tuple[list[Site], tuple[_pools.Pool, ...]]:
    """Drop every layer whose gradient, rebuilt from a and g on random numbers, is not `jax.vjp`'s, and every such pool.

    Errors are relative to Σ_t |a_t||g_t|ᵀ, as rounding errors are: a bias of attention's keys has no gradient at all.
    """
    hidden = depends_on(program, program.inputs[: len(paths)])
    first = [site for site in sites if program.equations[site.product].inputs[site.operand] not in hidden]
    pools = _pools.find(program, [site.output for site in first if not site.more])
    arguments, program = stand_ins(program)
    leaves, x = arguments[: len(paths)], arguments[len(paths) :]
    outputs = program.avals[program.outputs[0]]
    cotangent = np.asarray(np.random.default_rng(2).normal(size=outputs.shape[1:]), outputs.dtype)
    missing = tuple(set(range(len(paths))) - {leaf for site in sites for leaf in site.layer.leaves})
    trial = Capture(tuple(sites), {}, missing, program)

    def errors(leaves: list[Any], x: list[Any], cotangent: Any) -> tuple[dict[int, jax.Array], list[jax.Array]]:
        def run_all(*leaves: Any) -> tuple[Any, dict[int, Any]]:
            values = environment(program, [*leaves, *x])
            return values[program.outputs[0]], {v: values[v] for pool in pools for v in pool.reads}

        _, vjp, values = jax.vjp(run_all, *leaves, has_aux=True)
        expected = vjp(cotangent[None])
        of_pools = [_pools.error(pool, values) for pool in pools]
        pulled = pull_back(trial, leaves, [one[0] for one in x], lambda _: cotangent[None])
        result = {}
        for site, a, g in zip(sites, pulled.activations, pulled.gradients, strict=True):
            g = jax.tree.map(lambda rows: rows[0], g)
            rebuilt = site.layer.from_matrix(gradient(a, g))
            sizes = site.layer.from_matrix(gradient(jax.tree.map(abs, a), jax.tree.map(abs, g)))
            for leaf, value in rebuilt.items():
                gap = jnp.linalg.norm((value - expected[leaf]).astype(jnp.float32))
                result[leaf] = gap / (jnp.linalg.norm(sizes[leaf].astype(jnp.float32)) + 1e-30)
        return result, of_pools

    with jax.ensure_compile_time_eval():
        compiled = jax.jit(errors)
        error, of_pools = jax.tree.map(float, compiled(leaves, x, cotangent))
        if any(math.isnan(e) for e in error.values()):  # roots and logarithms need positive numbers
            error, of_pools = jax.tree.map(float, compiled([abs(leaf) for leaf in leaves], x, cotangent))
    kept = []
    for site in sites:
        bad = {leaf: e for leaf in site.layer.leaves if not (e := error[leaf]) < _rounding(program, site.output)}
        if not bad:
            kept.append(site)
        for leaf in site.layer.leaves if bad else ():
            if any(math.isnan(e) for e in bad.values()):
                found[leaf] = "its gradient is not finite at random parameters, so it cannot be checked"
            else:
                found[leaf] = f"its rebuilt gradient differs from jax.vjp's by {max(bad.values()):.1g} (relative)"
    for site in kept:
        for leaf in site.layer.leaves:
            found[leaf] = site
    starts = {site.output for site in kept}
    right = [e < _rounding(program, pool.start) for pool, e in zip(pools, of_pools, strict=True)]
    return kept, tuple(pool for pool, fine in zip(pools, right, strict=True) if fine and pool.start in starts)


def _rounding(program: Program, variable: int) -> float:
    """Above which relative error a gradient is wrong: in bfloat16 those of ResNet-18 are right to 0.03."""
    return min(10 * float(jnp.finfo(program.avals[variable].dtype).eps) ** 0.5, MOST_ROUNDING)
