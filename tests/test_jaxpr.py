import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax import lax

from fedfisher_jax import _compat
from fedfisher_jax.tracing import _jaxpr as jaxpr


@pytest.mark.parametrize("name", ["linen_jit_and_remat", "branches", "trap_custom_vjp", "embedding"])
def test_the_flat_program_is_the_function_derivatives_included(name):
    model = zoo.CASES[name]()
    program = jaxpr.trace(model.apply, model.params, model.x)

    def flat(params):
        return jaxpr.evaluate(program, jax.tree.leaves((params, model.x)))[0]

    cotangent = zoo.normal(5, *model.apply(model.params, model.x).shape)
    expected, expected_vjp = jax.vjp(lambda params: model.apply(params, model.x), model.params)
    found, found_vjp = jax.vjp(flat, model.params)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for one, other in zip(*map(jax.tree.leaves, (found_vjp(cotangent), expected_vjp(cotangent))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-14)


def test_calls_are_inlined_and_loops_are_not():
    @jax.jit
    def function(x, constant=np.arange(3.0)):
        y = jax.checkpoint(jnp.sin)(x) + constant
        return lax.fori_loop(0, 3, lambda _, z: jnp.cos(z), y)

    names = [equation.name for equation in jaxpr.trace(function, jnp.ones(3)).equations]
    assert "sin" in names and "cos" not in names
    assert not set(names) & set(_compat.INLINED)


def test_replacements_compute_outputs_in_place_of_their_equation():
    program = jaxpr.trace(lambda x: jnp.sin(x) * 2, jnp.ones(()))
    (position,) = [number for number, equation in enumerate(program.equations) if equation.name == "sin"]
    (found,) = jaxpr.evaluate(program, [jnp.asarray(3.0)], {position: lambda operands: [operands[0] ** 2]})
    assert float(found) == 18.0


def test_uses_count_every_reading_and_the_result():
    program = jaxpr.trace(lambda x, y, z: (x * x + y, y), *[jnp.ones(())] * 3)
    readers = jaxpr.uses(program)
    x, y, z = program.inputs
    assert len(readers[x]) == 2 and readers[x][0] == readers[x][1]
    assert sorted(readers[y])[0] == -1 and len(readers[y]) == 2
    assert readers[z] == []


def test_depends_on_follows_every_path():
    program = jaxpr.trace(lambda x, y: (jnp.sin(x) + y, jnp.cos(y)), *[jnp.ones(())] * 2)
    from_x = jaxpr.depends_on(program, program.inputs[:1])
    assert [output in from_x for output in program.outputs] == [True, False]
