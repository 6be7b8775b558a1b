"""What rounds of one step send: clients with one example per class, and a network that was trained on them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.privacy.world import Federation, World, guarantee
from fedfisher_jax import categorical
from fedfisher_jax.merge import Payload
from fedfisher_jax.privacy import noise
from fedfisher_jax.privacy.attacks import views

RATE, BEFORE = 0.1, 20  # of SGD, on all of a client's examples at once; steps that come before the one that is attacked


def step_seen(here: Federation, world: World, seed: int, protection: str) -> tuple[Any, Any, jax.Array, jax.Array]:
    """One round's start and what the server sees after it, the first client's images and everybody's labels.

    Alone, compressed and private, the network was trained on the first client's examples; under a secure sum on all
    clients', a mean step a round.
    """
    people = world.clients if protection == "sum" else 1
    random, full = np.random.default_rng([seed, 1]), here.dataset
    chosen = [
        [random.choice(np.flatnonzero(full.train_y == label)) for label in range(full.num_classes)]
        for _ in range(people)
    ]
    everybody = np.concatenate(chosen)
    x, y = jnp.asarray(full.train_x[everybody]), jnp.asarray(full.train_y[everybody])

    def step(params: Any, x: jax.Array, y: jax.Array) -> Any:
        nll = lambda p: jnp.mean(jax.vmap(categorical().nll)(here.network.apply(p, x), y))  # noqa: E731
        return jax.tree.map(lambda p, g: p - RATE * g, params, jax.grad(nll)(params))

    step, before = jax.jit(step), here.start
    for _ in range(BEFORE):
        before = step(before, x, y)
    size, rule = full.num_classes, here.rules["weights"]
    each = [(x[n * size : (n + 1) * size], y[n * size : (n + 1) * size]) for n in range(people)]
    payloads = [Payload(jnp.asarray(float(size)), step(before, *examples)) for examples in each]
    after = payloads[0]
    if protection == "sum":
        after = views.summed(rule, payloads)
    elif protection == "quantised":
        after = views.quantised(after, rule.name, "categorical", before, here.captured, world.budget)
    elif protection == "dp":
        after = noise.privatise(after, before, guarantee(world.epsilon))
    return before, after.params, x[:size], y
