"""How much memory a measurement needs, as the compiler says: no gradient is dense for each example and class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

import fedfisher_jax as ff
from fedfisher_jax._examples import Examples
from fedfisher_jax.curvature import _estimate
from fedfisher_jax.curvature.structures import _diagonal

WORDS, WIDTH, CLASSES = 30_000, 128, 20
OWN = 4 * (WORDS + CLASSES) * WIDTH  # bytes of the model


def pooled(rows):
    return jnp.tanh(rows.mean(1))


READINGS = {
    "indexed": lambda p, x: pooled(p["table"][x]) @ p["head"],
    "taken": lambda p, x: pooled(jnp.take(p["table"], x, axis=0)) @ p["head"],
    "twice": lambda p, x: (pooled(p["table"][x[:, :25]]) - pooled(p["table"][x[:, 25:]])) @ p["head"],
    "scaled": lambda p, x: (pooled(p["table"][x]) * p["scale"] + p["shift"]) @ p["head"],
}
TIED = {"read in two ways": lambda p, x: (pooled(p["table"][x]) + p["table"].mean(0)) @ p["head"]}


def needed(apply, structure, **options):
    shapes = {"table": (WORDS, WIDTH), "head": (WIDTH, CLASSES), "scale": (WIDTH,), "shift": (WIDTH,)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    captured = ff.capture(apply, params, jax.ShapeDtypeStruct((1, 50), jnp.int32))

    def measure(params, x, y):
        data = Examples(x, y, jnp.arange(64), jnp.asarray(64))
        return ff.fisher(apply, ff.categorical(), params, data, structure=structure, captured=captured, **options)

    x, y = jax.ShapeDtypeStruct((64, 50), jnp.int32), jax.ShapeDtypeStruct((64,), jnp.int32)
    return jax.jit(measure).lower(params, x, y).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
@pytest.mark.parametrize("reading", READINGS)
def test_a_table_needs_a_few_times_itself(reading, structure):
    """Its gradients for 32 examples and 20 classes alone would be 640 times the model."""
    assert needed(READINGS[reading], structure) < 4 * OWN


def test_what_falls_back_is_pulled_back_in_parts():
    found = needed(TIED["read in two ways"], "diagonal")
    assert found < 3 * (_estimate.ROOM + _estimate.COPIES * OWN)
    assert needed(TIED["read in two ways"], "diagonal", batch_size=8) > 2 * found


def test_parts_give_the_same(monkeypatch):
    model = zoo.CASES["trap_position_embedding"]()
    data = ff.examples(model.x)

    names = ("diagonal", "kronecker", "full")

    def found():
        return ff.fishers(model.apply, ff.categorical(), model.params, data, structures=names)

    expected = found()
    monkeypatch.setattr(_estimate, "ROOM", 0)  # room for a few copies of the parameters: some columns at a time
    monkeypatch.setattr(_estimate, "COPIES", 2)
    monkeypatch.setattr(_diagonal, "ROOM", 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), found(), expected)
