"""Distillation of merged modes on draws: the student comes to say what its teacher says, whatever class was drawn."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.fedfisher import modes
from fedfisher_jax.merge._pseudo_data import Gaussians, draw


def test_a_student_learns_its_teachers_probabilities_and_not_the_classes():
    source = Gaussians(
        logits=jnp.log(jnp.array([0.2, 0.8])),
        mean=jnp.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]),
        root=jnp.stack([jnp.eye(3)] * 2),
        matrix=jnp.eye(3),
        low=-9.0,
        high=9.0,
        example=((3,), "float64"),
    )
    wanted = jnp.array([[0.1, -0.1], [0.2, 0.0], [0.0, -0.2]])  # the classes differ in the first feature alone
    apply = lambda params, x: x @ params  # noqa: E731
    found = modes.distilled(apply, lambda x: x @ wanted, source, jnp.zeros((3, 2)))
    x, _ = draw(source, 200, jax.random.key(7))
    np.testing.assert_allclose(jax.nn.softmax(x @ found), jax.nn.softmax(x @ wanted), atol=0.02)
